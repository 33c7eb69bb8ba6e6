# SPDX-License-Identifier: Apache-2.0
"""`compare`: runs side by side, with ratios, their confidence intervals, and weak scaling.

Every file is judged; an invalid run stands in the table with its reasons, and enters no ratio and no fit.
"""

from __future__ import annotations

import io
import json
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from aiperf_mpi.config import Config
from aiperf_mpi.exits import EXIT_INVALID, EXIT_VALID
from aiperf_mpi.results.evidence.evidence import Evidence
from aiperf_mpi.results.evidence.printable import plain
from aiperf_mpi.results.judge.judge import Verdict, judge_file
from aiperf_mpi.results.report import interval, scaling
from aiperf_mpi.results.report import verdict as verdict_module
from aiperf_mpi.results.report.interval import Estimate, Interval

#: Attributes in which runs must agree for their rates to be of the same work.
ALIKE = (
    "dataset",
    "precision",
    "train_images",
    "val_images",
    "base_json",
    "opcount_method",
    "schema_version",
)


@dataclass(frozen=True)
class Entry:
    """One file: its verdict, its rate with its error (of valid runs), what must agree, and what makes a
    repetition."""

    path: str
    run_id: str
    verdict: Verdict
    rate: Estimate
    alike: dict[str, Any]
    repeats: str
    seed: int


@dataclass(frozen=True)
class Group:
    """Repetitions: valid runs of one configuration on one machine, other seeds; `rate` is their geometric
    mean."""

    entries: tuple[Entry, ...]
    rate: Estimate
    median: float
    ratio: Interval


@dataclass(frozen=True)
class Comparison:
    """Everything that `compare` says. `ratios[i]` is of `entries[i]` to the first valid run (NaN without
    one)."""

    entries: tuple[Entry, ...]
    ratios: tuple[Interval, ...]
    groups: tuple[Group, ...]
    scaling: scaling.Scaling | None
    notes: tuple[str, ...]


def compare_files(paths: Sequence[Path | str], *, as_json: bool = False, width: int = 130) -> int:
    """Print the comparison of result files; returns 0 if all of them are valid, else 3.

    Raises NotAResult if one of them is no result at all.
    """
    found = compare([entry(path) for path in paths])
    print(to_json(found) if as_json else to_text(found, width), end="")
    valid = all(item.verdict.valid for item in found.entries)
    return EXIT_VALID if valid else EXIT_INVALID


def entry(path: Path | str) -> Entry:
    """Judge a file and keep what a comparison needs; raises NotAResult like the judge."""
    result, verdict = judge_file(path)
    return entry_of(str(path), Evidence(result), verdict)


def entry_of(path: str, e: Evidence, verdict: Verdict) -> Entry:
    """What a comparison needs of a judged result."""
    alike = {name: e.result.attributes.get(name) for name in ALIKE}
    seed, run_id = int(e.result.attributes.get("seed", -1)), str(e.result.attributes.get("run_id", ""))
    if not verdict.valid or not verdict.rate > 0:
        return Entry(path, run_id, verdict, Estimate(math.nan), alike, "", seed)
    epochs = e.table("epochs")
    credited = np.array([float(ops) for ops in e.epoch_credited])
    rate = interval.within_run(
        verdict.rate, epochs["t_start"], epochs["t_end"], credited, verdict.core_seconds
    )
    return Entry(path, run_id, verdict, rate, alike, repeats(e), seed)


def repeats(e: Evidence) -> str:
    """Equal texts mean that two runs differ in nothing but seed, place and time."""
    config: Config = replace(e.config, run=replace(e.config.run, seed=0, output="", view="auto"))
    sizes = [
        e.attribute(name) for name in ("n_ranks", "n_nodes", "n_replicas", "n_devices", "aiperf_mpi_version")
    ]
    machine = json.loads(e.result.documents["system/inventory_json"])
    cpu = machine.get("cpu") if isinstance(machine, dict) else None
    devices = sorted(set(e.column("ranks", "device").tolist()))
    return json.dumps(
        [config.to_toml(), sizes, cpu, devices, e.result.documents["system/packages_json"]], default=str
    )


def compare(entries: Sequence[Entry]) -> Comparison:
    """Ratios to the first valid run, groups of repetitions, and weak scaling over the runs that are like the
    first."""
    valid = [item for item in entries if not math.isnan(item.rate.rate)]
    if not valid:
        return Comparison(
            tuple(entries), (Interval(math.nan),) * len(entries), (), None, tuple(_notes(entries, []))
        )
    first = valid[0]
    ratios = tuple(_ratio(item, first) for item in entries)

    # A run that is given twice is no repetition.
    once = list({item.run_id: item for item in reversed(valid)}.values())[::-1]
    members: dict[str, list[Entry]] = {}
    for item in once:
        members.setdefault(item.repeats, []).append(item)
    groups: list[Group] = []
    for own in members.values():
        rate = _estimate(own)
        median = statistics.median(item.rate.rate for item in own)
        against = interval.ratio(rate, groups[0].rate) if groups else Interval(1.0)
        groups.append(Group(tuple(own), rate, median, against))

    same = [item for item in once if item.alike == first.alike and item.verdict.cls == first.verdict.cls]
    by_size: dict[int, list[Entry]] = {}
    for item in same:
        by_size.setdefault(item.verdict.devices, []).append(item)
    scaled = scaling.fit(
        {devices: [item.rate.rate for item in own] for devices, own in by_size.items()},
        {devices: _estimate(own) for devices, own in by_size.items()},
    )
    return Comparison(tuple(entries), ratios, tuple(groups), scaled, tuple(_notes(entries, valid)))


def _ratio(item: Entry, first: Entry) -> Interval:
    if math.isnan(item.rate.rate):
        return Interval(math.nan)
    return Interval(1.0) if item.run_id == first.run_id else interval.ratio(item.rate, first.rate)


def _estimate(own: Sequence[Entry]) -> Estimate:
    """The rate of repetitions, of one run with the error that it shows by itself."""
    return own[0].rate if len(own) == 1 else interval.repetitions([item.rate.rate for item in own])


def _notes(entries: Sequence[Entry], valid: Sequence[Entry]) -> Iterator[str]:
    """What a reader must know before believing a ratio."""
    for item in entries:
        if not item.verdict.valid:
            yield (
                f"{item.path} is INVALID ({','.join(item.verdict.reason_ids)}): it has no ratio and "
                f"enters no fit"
            )
        elif math.isnan(item.rate.rate):
            yield f"{item.path} has no rate: nothing was trained"
    for name in ALIKE:
        values = list(dict.fromkeys(str(item.alike[name]) for item in valid))
        if len(values) > 1:
            shown = ", ".join(values) if max(map(len, values)) < 40 else f"{len(values)} different ones"
            yield plain(
                f"not the same work: {name} differs ({shown}); the fit takes the runs like the first valid "
                f"one"
            )
    for what, values in (
        ("class", [item.verdict.cls for item in valid]),
        ("division", [item.verdict.division for item in valid]),
    ):
        if len(set(values)) > 1:
            yield f"runs of different {what}: {', '.join(dict.fromkeys(values))}"
    if len({item.run_id for item in valid}) < len(valid):
        yield "a run that is given more than once counts once"
    seeds = {item.run_id: (item.repeats, item.seed) for item in valid}
    if len(set(seeds.values())) < len(seeds):
        yield "repetitions with the same seed: their spread is too small"


# -- saying it -------------------------------------------------------------------------------------


def interval_text(value: Interval, digits: int = 3) -> str:
    """A value with its interval, for example `1.94 (1.80 to 2.09)`."""
    if math.isnan(value.value):
        return "-"
    limits = f" ({value.low:.{digits}f} to {value.high:.{digits}f})" if value.known else ""
    return f"{value.value:.{digits}f}{limits}"


def to_text(found: Comparison, width: int = 130) -> str:
    """The comparison for a terminal of `width` columns, without colour."""
    out = io.StringIO()
    console = Console(file=out, width=width, no_color=True, highlight=False, emoji=False, markup=False)
    for part in parts(found):
        console.print(part)
    return out.getvalue()


def parts(found: Comparison) -> Iterator[RenderableType]:
    """What is said of a comparison: texts and tables."""
    places = {id(item): str(number) for number, item in enumerate(found.entries, 1)}
    for item in found.entries:
        yield Text(f"run {places[id(item)]}: {item.path}")
    yield Text("")
    runs = _table(
        "run",
        "status",
        "class",
        "division",
        "devices",
        "core (s)",
        "trials",
        "best error",
        "what",
        "value",
        "ratio (95 %)",
        left=4,
    )
    for item, against in zip(found.entries, found.ratios, strict=True):
        verdict = item.verdict
        said = [*verdict_module.rate_pairs(verdict), *_beside(verdict)]
        runs.add_row(
            places[id(item)],
            verdict_module.status(verdict),
            verdict.cls,
            verdict.division,
            str(verdict.devices),
            f"{verdict.core_seconds:.1f}",
            str(verdict.trials),
            verdict_module.error_text(verdict.best_error),
            "\n".join(key for key, _ in said),
            "\n".join(text for _, text in said),
            interval_text(against),
        )
    yield runs

    if any(len(group.entries) > 1 for group in found.groups):
        yield Text("\nRepetitions (runs that differ in their seed alone)")
        table = _table("runs", "devices", "median", "mean", "95 % of the mean", "ratio (95 %)", left=1)
        for group in found.groups:
            mean = group.rate.interval
            limits = f"{mean.low:.3e} to {mean.high:.3e}" if mean.known else "-"
            own = ", ".join(places[id(item)] for item in group.entries)
            table.add_row(
                own,
                str(group.entries[0].verdict.devices),
                verdict_module.rate_text(group.median),
                verdict_module.rate_text(mean.value),
                limits,
                interval_text(group.ratio),
            )
        yield table

    if found.scaling is not None:
        yield Text("\nWeak scaling (rate against devices)")
        table = _table("devices", "runs", "rate", "per device", "efficiency (95 %)", left=0)
        for size in found.scaling.sizes:
            rates = (
                verdict_module.rate_text(rate) for rate in (size.rate.rate, size.rate.rate / size.devices)
            )
            table.add_row(str(size.devices), str(size.runs), *rates, interval_text(size.efficiency))
        yield table
        yield Text(
            f"  rate = {found.scaling.constant:.3e} op/s x devices^{interval_text(found.scaling.exponent)}"
        )
    yield Text("")
    for note in found.notes:
        yield Text(f"note: {note}")
    if any(item.rate.freedom for item in found.entries):
        yield Text(
            "note: intervals of single runs come from the spread of the rate within the run (batch means), "
            "and "
            "do not know how runs differ; repeat a run with other seeds for that"
        )


def _beside(verdict: Verdict) -> Iterator[tuple[str, str]]:
    """What the rate of a valid run is in other units: images of ResNet-50, part of the devices' peak."""
    if not math.isnan(verdict.resnet50_images):
        yield "ResNet-50", f"{verdict.resnet50_images:,.3g} images/s"
    if not math.isnan(verdict.mfu):
        yield "MFU", f"{verdict.mfu:.2%}"


def _table(*columns: str, left: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="")
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place < left else "right", overflow="fold")
    return table


def to_json(found: Comparison) -> str:
    """The comparison as one JSON object; numbers that are unknown are null."""
    runs = [
        {
            "file": item.path,
            **verdict_module.verdict_object(item.verdict, findings=False),
            "rate_interval": asdict(item.rate.interval) | {"origin": item.rate.origin},
            "ratio": asdict(against),
        }
        for item, against in zip(found.entries, found.ratios, strict=True)
    ]
    groups = [
        {
            "files": [item.path for item in group.entries],
            "median": group.median,
            "mean": asdict(group.rate.interval) | {"origin": group.rate.origin},
            "ratio": asdict(group.ratio),
        }
        for group in found.groups
    ]
    sizes = None
    if found.scaling is not None:
        sizes = {
            "exponent": asdict(found.scaling.exponent),
            "constant": found.scaling.constant,
            "sizes": [
                {
                    "devices": size.devices,
                    "runs": size.runs,
                    "rate": asdict(size.rate.interval),
                    "efficiency": asdict(size.efficiency),
                }
                for size in found.scaling.sizes
            ],
        }
    data = {"runs": runs, "repetitions": groups, "weak_scaling": sizes, "notes": list(found.notes)}
    return json.dumps(verdict_module.known(data), indent=1) + "\n"
