# SPDX-License-Identifier: Apache-2.0
"""Compare runs: ratios, their confidence intervals, and weak scaling, as text, tables or JSON.

Every file is judged. An invalid run is in the table with its reasons, but in no ratio and no fit.
"""

from __future__ import annotations

import io
import json
import math
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from aiperf_mpi.config import Config
from aiperf_mpi.exits import EXIT_INVALID, EXIT_VALID
from aiperf_mpi.opcount.rates import ops_text, rate_text
from aiperf_mpi.printable import named, plain
from aiperf_mpi.results.evidence.evidence import Evidence
from aiperf_mpi.results.judge.judge import Verdict, judge_file
from aiperf_mpi.results.report import interval, scaling
from aiperf_mpi.results.report.interval import Estimate, Interval
from aiperf_mpi.results.report.reading import compared
from aiperf_mpi.results.report.verdict import error_text, known, rate_pairs, status, verdict_object

#: Attributes that must be equal for the rates of runs to measure the same work.
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
    """One result file.

    Attributes:
        rate: the rate with its error; NaN for an invalid run.
        alike: the attributes ALIKE by name, and the packed set if there is one.
        repeats: equal for runs that are repetitions of each other (see `repeats`).
        data: the packed set and how it was read, see `report.reading.compared`; empty for other data sets.
    """

    path: str
    run_id: str
    verdict: Verdict
    rate: Estimate
    alike: dict[str, Any]
    repeats: str
    seed: int
    data: dict[str, float | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """Repetitions: valid runs of one configuration on one machine that differ in their seeds.

    Attributes:
        rate: their geometric mean with its error.
        median: the median of their rates in op/s.
        ratio: of `rate` to that of the first group.
    """

    entries: tuple[Entry, ...]
    rate: Estimate
    median: float
    ratio: Interval


@dataclass(frozen=True)
class Comparison:
    """The result of `compare`; `ratios[i]` is of `entries[i]` to the first valid run (NaN without one)."""

    entries: tuple[Entry, ...]
    ratios: tuple[Interval, ...]
    groups: tuple[Group, ...]
    scaling: scaling.Scaling | None
    notes: tuple[str, ...]


def compare_files(paths: Sequence[Path | str], *, as_json: bool = False, width: int = 130) -> int:
    """Print the comparison of result files; return 0 if all of them are valid, else 3.

    Raises NotAResult if one of them is not a result.
    """
    comparison = compare([entry(path) for path in paths])
    print(to_json(comparison) if as_json else to_text(comparison, width), end="")
    valid = all(item.verdict.valid for item in comparison.entries)
    return EXIT_VALID if valid else EXIT_INVALID


def entry(path: Path | str) -> Entry:
    """Judge a file and return its entry of a comparison. Raises NotAResult like the judge."""
    result, verdict = judge_file(path)
    return entry_of(os.fspath(path), Evidence(result), verdict)


def entry_of(path: str, e: Evidence, verdict: Verdict) -> Entry:
    """Return the entry of a judged result."""
    alike = {name: e.result.attributes.get(name) for name in ALIKE}
    # Schemas with the same first number differ in what they record, not in what is measured.
    alike["schema_version"] = str(alike["schema_version"]).partition(".")[0]
    seed, run_id = int(e.result.attributes.get("seed", -1)), str(e.result.attributes.get("run_id", ""))
    if not verdict.valid or not verdict.rate > 0:
        return Entry(path, run_id, verdict, Estimate(math.nan), alike, "", seed)
    epochs, data = e.table("epochs"), compared(e)
    alike["packed set"] = data.get("set", "")
    credited = np.array([float(ops) for ops in e.epoch_credited])
    rate = interval.within_run(
        verdict.rate, epochs["t_start"], epochs["t_end"], credited, verdict.core_seconds
    )
    return Entry(path, run_id, verdict, rate, alike, repeats(e), seed, data)


def repeats(e: Evidence) -> str:
    """Return a text that is equal for two runs that differ only in seed, time, and where their files are."""
    given = e.config
    config: Config = replace(
        given,
        run=replace(given.run, seed=0, output="", view="auto"),
        data=replace(given.data, path="", stage=""),
        parallel=replace(given.parallel, cache=""),
    )
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
    """Compare runs: ratios to the first valid run, groups of repetitions, and weak scaling.

    Weak scaling is fitted over the runs that did the same work in the same class as the first valid run.
    """
    valid = [item for item in entries if not math.isnan(item.rate.rate)]
    if not valid:
        return Comparison(
            tuple(entries), (Interval(math.nan),) * len(entries), (), None, tuple(_notes(entries, []))
        )
    first = valid[0]
    ratios = tuple(_ratio(item, first) for item in entries)

    # Group repetitions; a run that is given twice counts once.
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

    # Fit weak scaling over the runs that did the same work.
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
    """Return the ratio of a run's rate to that of the first valid run."""
    if math.isnan(item.rate.rate):
        return Interval(math.nan)
    return Interval(1.0) if item.run_id == first.run_id else interval.ratio(item.rate, first.rate)


def _estimate(own: Sequence[Entry]) -> Estimate:
    """Return the rate of repetitions, or of a single run, with its error."""
    return own[0].rate if len(own) == 1 else interval.repetitions([item.rate.rate for item in own])


def _notes(entries: Sequence[Entry], valid: Sequence[Entry]) -> Iterator[str]:
    """Yield the warnings that a reader needs to interpret the ratios."""
    for item in entries:
        if not item.verdict.valid:
            yield (
                f"{named(item.path)} is INVALID ({','.join(item.verdict.reason_ids)}): it has no ratio and "
                "is in no fit"
            )
        elif math.isnan(item.rate.rate):
            yield f"{named(item.path)} has no rate: nothing was trained"
    for name in (*ALIKE, "packed set"):
        values = list(dict.fromkeys(str(item.alike.get(name, "")) for item in valid))
        if len(values) > 1:
            shown = ", ".join(values) if max(map(len, values)) < 40 else f"{len(values)} different ones"
            yield plain(
                f"not the same work: {name} differs ({shown}); the fit uses the runs like the first valid one"
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
        yield "repetitions with the same seed: their spread underestimates that of different seeds"


# -- text and tables -------------------------------------------------------------------------------


def to_text(comparison: Comparison, width: int = 130) -> str:
    """Return the comparison for a terminal of `width` columns, without colour."""
    out = io.StringIO()
    console = Console(file=out, width=width, no_color=True, highlight=False, emoji=False, markup=False)
    for part in parts(comparison):
        console.print(part)
    return out.getvalue()


def parts(comparison: Comparison) -> Iterator[RenderableType]:
    """Yield the texts and tables of a comparison, in order."""
    numbers = {id(item): str(number) for number, item in enumerate(comparison.entries, 1)}
    for item in comparison.entries:
        yield Text(f"run {numbers[id(item)]}: {named(item.path)}")
    yield Text("")
    yield _runs_table(comparison)

    if any(len(group.entries) > 1 for group in comparison.groups):
        yield Text("\nRepetitions (runs that differ only in their seed)")
        yield _repetitions_table(comparison.groups, numbers)
    if comparison.scaling is not None:
        yield Text("\nWeak scaling (rate against devices)")
        yield _scaling_table(comparison.scaling)
        exponent = interval_text(comparison.scaling.exponent)
        yield Text(f"  rate = {ops_text(comparison.scaling.constant)} x devices^{exponent}")

    yield Text("")
    for note in comparison.notes:
        yield Text(f"note: {note}")
    if any(item.rate.freedom for item in comparison.entries):
        yield Text(
            "note: intervals of single runs come from the spread of the rate within the run (batch means), "
            "and do not include the spread between runs; repeat a run with other seeds to measure that"
        )


def _runs_table(comparison: Comparison) -> Table:
    """Return one row for each run: verdict, rate in all units, and ratio to the first valid run."""
    heads = ("run", "status", "class", "division", "devices", "core (s)", "trials", "best error")
    table = _table(*heads, "what", "value", "ratio (95 %)", left=4)
    for number, (item, against) in enumerate(zip(comparison.entries, comparison.ratios, strict=True), 1):
        verdict = item.verdict
        rates = [*rate_pairs(verdict), *_rates_in_other_units(verdict), *_data_pairs(item)]
        table.add_row(
            str(number),
            status(verdict),
            verdict.cls,
            verdict.division,
            str(verdict.devices),
            f"{verdict.core_seconds:.1f}",
            str(verdict.trials),
            error_text(verdict.best_error),
            "\n".join(name for name, _ in rates),
            "\n".join(value for _, value in rates),
            interval_text(against),
        )
    return table


def _repetitions_table(groups: Sequence[Group], numbers: Mapping[int, str]) -> Table:
    """Return one row for each group of repetitions; `numbers` has the run's number by `id(entry)`."""
    table = _table("runs", "devices", "median", "mean", "95 % of the mean", "ratio (95 %)", left=1)
    for group in groups:
        mean = group.rate.interval
        table.add_row(
            ", ".join(numbers[id(item)] for item in group.entries),
            str(group.entries[0].verdict.devices),
            rate_text(group.median),
            rate_text(mean.value),
            f"{mean.low:.3e} to {mean.high:.3e}" if mean.known else "-",
            interval_text(group.ratio),
        )
    return table


def _scaling_table(scaled: scaling.Scaling) -> Table:
    """Return one row for each number of devices: its runs, rates and efficiency."""
    table = _table("devices", "runs", "rate", "per device", "efficiency (95 %)", left=0)
    for size in scaled.sizes:
        rates = (rate_text(rate) for rate in (size.rate.rate, size.rate.rate / size.devices))
        table.add_row(str(size.devices), str(size.runs), *rates, interval_text(size.efficiency))
    return table


def _table(*columns: str, left: int) -> Table:
    """Return an empty table whose first `left` columns are left-aligned."""
    table = Table(box=None, pad_edge=False, header_style="")
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place < left else "right", overflow="fold")
    return table


def interval_text(value: Interval, digits: int = 3) -> str:
    """Return a value with its interval, for example `1.94 (1.80 to 2.09)`."""
    if math.isnan(value.value):
        return "-"
    limits = f" ({value.low:.{digits}f} to {value.high:.{digits}f})" if value.known else ""
    return f"{value.value:.{digits}f}{limits}"


def _rates_in_other_units(verdict: Verdict) -> Iterator[tuple[str, str]]:
    """Yield the rate of a run with a prefix; of a valid one also as images of ResNet-50 per second, and as a
    share of the peak."""
    yield "rate", ops_text(verdict.rate)
    if not math.isnan(verdict.resnet50_images):
        yield "ResNet-50", f"{verdict.resnet50_images:,.3g} images/s"
    if not math.isnan(verdict.mfu):
        yield "MFU", f"{verdict.mfu:.2%}"


def _data_pairs(item: Entry) -> Iterator[tuple[str, str]]:
    """Yield how a packed set was read: encoding, rate of a node, and the share of waiting for it."""
    if item.data:
        yield "pictures", str(item.data["encoding"])
        yield "read, a node", f"{float(item.data['bytes_per_second_node']) / 1e6:,.3f} MB/s"
        yield "waiting for data", f"{float(item.data['data_share']):.2%}"


# -- JSON ------------------------------------------------------------------------------------------


def to_json(comparison: Comparison) -> str:
    """Return the comparison as one JSON object; unknown numbers are null."""
    runs = [
        {
            "file": item.path,
            **verdict_object(item.verdict, findings=False),
            "rate_interval": asdict(item.rate.interval) | {"origin": item.rate.origin},
            "ratio": asdict(against),
            **({"data": item.data} if item.data else {}),
        }
        for item, against in zip(comparison.entries, comparison.ratios, strict=True)
    ]
    groups = [
        {
            "files": [item.path for item in group.entries],
            "median": group.median,
            "mean": asdict(group.rate.interval) | {"origin": group.rate.origin},
            "ratio": asdict(group.ratio),
        }
        for group in comparison.groups
    ]
    data = {
        "runs": runs,
        "repetitions": groups,
        "weak_scaling": None if comparison.scaling is None else _scaling_object(comparison.scaling),
        "notes": list(comparison.notes),
    }
    return json.dumps(known(data), indent=1) + "\n"


def _scaling_object(scaled: scaling.Scaling) -> dict[str, Any]:
    """Return weak scaling as a JSON object."""
    sizes = [
        {
            "devices": size.devices,
            "runs": size.runs,
            "rate": asdict(size.rate.interval),
            "efficiency": asdict(size.efficiency),
        }
        for size in scaled.sizes
    ]
    return {"exponent": asdict(scaled.exponent), "constant": scaled.constant, "sizes": sizes}
