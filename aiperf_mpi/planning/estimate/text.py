# SPDX-License-Identifier: Apache-2.0
"""Print an estimate: as a JSON object, and as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from textwrap import wrap
from typing import Any

from aiperf_mpi.config import Config
from aiperf_mpi.opcount.rates import prefixed
from aiperf_mpi.planning.estimate.machine import Machine
from aiperf_mpi.planning.estimate.number import Number

#: Binary prefixes by the power of 1024.
_BINARY = ("byte", "KiB", "MiB", "GiB", "TiB", "PiB")


def to_object(config: Config, machine: Machine, numbers: Sequence[Number]) -> dict[str, Any]:
    """Return the estimate as a JSON object: the machine, and each number with its unit and assumption.

    Whole numbers are exact.
    """
    return {
        "preset": config.run.preset,
        "machine": asdict(machine),
        "numbers": [asdict(number) for number in numbers],
    }


def to_text(machine: Machine, numbers: Sequence[Number], width: int) -> str:
    """Return the estimate as text of `width` columns: a line for each number, and below it its assumption."""
    lines: list[str] = []
    for group, own in groupby(numbers, key=lambda number: number.group):
        lines += ["", group.capitalize()] if lines else [group.capitalize()]
        for number in own:
            lines.append(f"  {number.name:<44} {_shown(number)}")
            lines += wrap(number.assumption, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
    if machine.ops_per_device is None:
        lines += ["", "Time and score need the rate of a device: --ops-per-device or --images-per-second."]
    return "\n".join(lines)


def _shown(number: Number) -> str:
    """Format the value or the range of a number."""
    if isinstance(number.value, tuple):
        low, high = (_scaled(value, number.unit) for value in number.value)
        return low if low == high else f"{low} to {high}"
    return _scaled(number.value, number.unit)


def _scaled(value: float, unit: str) -> str:
    """Format a number with its unit, with a decimal or binary prefix if the unit takes one."""
    if unit.startswith("byte"):
        power = min(int(math.log(value, 1024)), len(_BINARY) - 1) if value >= 1 else 0
        return f"{value / 1024**power:.4g} {_BINARY[power]}{unit.removeprefix('byte')}"
    if unit not in ("op", "op/s"):
        if isinstance(value, int):
            return f"{value:,} {unit}"
        return f"{value:,.1f} {unit}" if value >= 10 else f"{value:.3g} {unit}"
    return f"{prefixed(value, 6)}{unit}"
