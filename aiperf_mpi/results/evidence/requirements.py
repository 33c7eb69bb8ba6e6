# SPDX-License-Identifier: Apache-2.0
"""What an official run needs, of what is known before its core time: rules, data, devices, machine, program.

A run looks before its core time, and the judge in the result: each missing thing is one line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiperf_mpi.config import Config
from aiperf_mpi.config.classes import RULES, OfficialRules, fixed_departures
from aiperf_mpi.config.ilsvrc import Reference, differences
from aiperf_mpi.planning.provenance import provenance
from aiperf_mpi.results.evidence.ceiling import has_peak
from aiperf_mpi.results.evidence.reading import PackedSet, packed_set

#: Keys that an inventory must have, and texts that count as blank.
INVENTORY = (
    "hostname",
    "platform",
    "python",
    "cpu",
    "memory_bytes",
    "packages",
    "mpi",
    "file_systems",
    "nodes",
)
BLANK = ("", "unknown", "none", "null", "na", "n/a", "todo", "tbd")

#: Most things that a trial lacks which are shown at its start.
_SHOWN = 6

NO_PEAK = (
    "an official run's devices have a peak rate in aiperf_mpi/machine/peaks.py, or a declared one "
    "(section declared of the configuration)"
)


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a run before its core time.

    Attributes:
        config: its configuration, with the precision in which it trains.
        manifest: the record of its packed data set, `{}` without one.
        device: number and kind of a trainer's devices, as in /ranks/device.
        inventory: of the machine and the program.
    """

    config: Config
    manifest: str
    device: str
    inventory: Mapping[str, Any]


def missing(known: Known, rules: OfficialRules = RULES) -> list[str]:
    """Return what a run lacks to be official, one line for each thing; nothing if it is official."""
    config, packed = known.config, packed_set(known.manifest)
    lines = [str(one) for one in fixed_departures(config, packed.manifest if packed else None, rules)]
    if config.data.name == "imagenet":
        lines += missing_of_data(packed, rules.reference)
    if not has_peak(known.device, known.inventory, config.train.precision, config.declared):
        lines.append(f"{known.device}: {NO_PEAK}")
    lines += missing_of_machine(known.inventory)
    return [*lines, *missing_of_program(known.inventory.get("source"))]


def missing_before_data(
    config: Config, source: Mapping[str, Any] | None, rules: OfficialRules = RULES
) -> list[str]:
    """Return what a run lacks to be official by its settings and its program, before its data are staged."""
    return [*map(str, fixed_departures(config, rules=rules)), *missing_of_program(source)]


def class_lines(lacks: Sequence[str]) -> list[str]:
    """Return the class of a run in words: of a trial, what it lacks to be official, a line for each thing.

    A run that lacks more than some few things is a trial on purpose, and gets one line.
    """
    if not lacks:
        return ["this run is official: nothing is missing before its core time"]
    if len(lacks) > _SHOWN:
        others = f"and {len(lacks) - 1} more things (run.official=true lists them)"
        return [f"this run is a trial, by {lacks[0]} {others}"]
    return ["this run is a trial; an official run would need this to be mended:", *lacks]


def missing_of_data(packed: PackedSet | None, reference: Reference) -> Iterator[str]:
    """Yield where a packed set of ImageNet differs from what is public of it."""
    if packed is None or packed.labels is None:
        yield "the classes and labels of the packed pictures are not recorded"
        return
    manifest, labels = packed.manifest, packed.labels
    counts = labels.train, labels.val
    for text in differences(reference, manifest.classes, counts, labels.val_sha256, manifest.source):
        yield f"the packed set: {text}"


def missing_of_machine(inventory: Mapping[str, Any]) -> Iterator[str]:
    """Yield which entries of an inventory are blank: the first value of each."""
    for name in INVENTORY:
        blank = next(_blanks(name, inventory.get(name)), None)
        if blank is not None:
            yield f"/system/inventory_json does not name {blank}"


def missing_of_program(source: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield why others cannot get the program, where they cannot."""
    finding = provenance(source or {})
    if finding.level != "ok":
        yield str(finding)


def _blanks(name: str, value: Any) -> Iterator[str]:
    """Yield the names of blank values in an entry of the inventory: empty, or a placeholder.

    A reason why a value is not known is not a blank.
    """
    if isinstance(value, dict | list) and value:
        for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _blanks(f"{name}.{key}", entry)
    elif (text := str(value).strip().lower()) in BLANK or "placeholder" in text or value in ([], {}):
        yield name
