# SPDX-License-Identifier: Apache-2.0
"""Features of architectures: counts at stable addresses, at several resolutions.

Every architecture descends from the base network. A unit therefore has an address that never shifts: the base
unit that it is or that it was inserted after (its *slot*). Changes to the network are counted by slot, in
seven channels. Sums over a block, a stage and the whole network are the coarser resolutions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from aiperf_mpi.network.architecture import POOL, Architecture, Base, Morph, Unit

#: The channels of a slot: doublings of the base unit's filters; steps of two by which its kernel grew; number
#: of units inserted after it, the sum of their doublings, and the sum of their kernels' steps over 1x1; added
#: edges that start in it and that end in it.
CHANNELS = ("width", "kernel", "inserted", "inserted_width", "inserted_kernel", "skip_out", "skip_in")
WIDTH, KERNEL, INSERTED, INSERTED_WIDTH, INSERTED_KERNEL, SKIP_OUT, SKIP_IN = range(len(CHANNELS))

#: Resolutions from the finest to the coarsest; `size` is the logarithms of multiply-accumulates and
#: parameters.
LEVELS = ("slot", "block", "stage", "total", "size")


@dataclass(frozen=True, slots=True)
class Plan:
    """The properties that all architectures of one base share, by slot.

    Attributes:
        units: the base units.
        filters, kernels: of the base units.
        blocks: first slots of the stem and of each block (int64).
        stages: first slots of the stem and of each stage (int64).
    """

    units: tuple[Unit, ...]
    filters: tuple[int, ...]
    kernels: tuple[int, ...]
    blocks: np.ndarray
    stages: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """Features of one architecture.

    Attributes:
        slots: counts of the seven channels, int16 [7, slots].
        macs: multiply-accumulates of all convolutions of the forward pass for one image.
        parameters: trainable parameters.
    """

    slots: np.ndarray
    macs: int
    parameters: int

    @property
    def key(self) -> tuple[bytes, int, int]:
        """Hashable value, equal for equal features."""
        return self.slots.tobytes(), self.macs, self.parameters


@lru_cache(maxsize=64)
def plan_of(base: Base) -> Plan:
    """Return the plan of a base network."""
    units = Architecture(base).units
    blocks = [0, *range(1, len(units), 3)]
    stages = [0, *(1 + 3 * sum(base.blocks[:stage]) for stage in range(len(base.blocks)))]
    return Plan(
        units,
        tuple(u.filters for u in units),
        tuple(u.kernel for u in units),
        np.array(blocks),
        np.array(stages),
    )


def features(architecture: Architecture) -> Features:
    """Return the features of an architecture, counted from scratch."""
    plan = plan_of(architecture.base)
    table, slot_of = np.zeros((len(CHANNELS), len(plan.units)), np.int16), {POOL: 0}
    for slot, unit in _in_slots(plan, architecture.units):
        slot_of[unit.id] = slot
        base = plan.units[slot]
        if unit is base:
            # The unit is unchanged, so its counts are 0. Skipping such units matters: a search counts
            # thousands of networks before its first proposal.
            continue
        if unit.id == slot:
            table[WIDTH, slot] = _doublings(plan, slot, unit)
            table[KERNEL, slot] = (unit.kernel - base.kernel) // 2
            for edge in base.edges:
                table[SKIP_OUT, max(edge.source, 0)] -= 1
                table[SKIP_IN, slot] -= 1
        else:
            table[INSERTED : INSERTED_KERNEL + 1, slot] += (
                1,
                _doublings(plan, slot, unit),
                (unit.kernel - 1) // 2,
            )
        for edge in unit.edges:
            table[SKIP_OUT, slot_of[edge.source]] += 1
            table[SKIP_IN, slot] += 1
    return Features(table, architecture.macs, architecture.parameters)


def child_features(parent: Features, before: Architecture, morph: Morph, child: Architecture) -> Features:
    """Return the features of `child`, which is `before` plus one morph, from those of `before`.

    Arguments:
        parent: features of `before`.
    """
    plan, units = plan_of(child.base), before.units
    table = parent.slots.copy()
    if morph.op == "deeper":
        slot, unit = next((s, u) for s, u in _in_slots(plan, units) if u.id == morph.a)
        table[INSERTED : INSERTED_KERNEL + 1, slot] += (
            1,
            _doublings(plan, slot, unit),
            (morph.kernel - 1) // 2,
        )
    elif morph.op == "wider":
        for (slot, old), new in zip(_in_slots(plan, units), child.units, strict=True):
            if old is not new:
                table[WIDTH if old.id == slot else INSERTED_WIDTH, slot] += 1
    elif morph.op == "skip":
        slot_of = {unit.id: slot for slot, unit in _in_slots(plan, units)}
        table[SKIP_OUT, slot_of[morph.a]] += 1
        table[SKIP_IN, slot_of[morph.b]] += 1
    else:
        slot, unit = next((s, u) for s, u in _in_slots(plan, units) if u.id == morph.a)
        origin = plan.kernels[slot] if unit.id == slot else 1
        steps = (morph.kernel - origin) // 2 - (unit.kernel - origin) // 2
        table[KERNEL if unit.id == slot else INSERTED_KERNEL, slot] += steps
    return Features(table, child.macs, child.parameters)


def _in_slots(plan: Plan, units: Iterable[Unit]) -> Iterable[tuple[int, Unit]]:
    """Yield each unit along the main chain with its slot: the base unit that it is or was inserted after."""
    slot, count = 0, len(plan.filters)
    for unit in units:
        if unit.id < count:
            slot = unit.id
        yield slot, unit


def _doublings(plan: Plan, slot: int, unit: Unit) -> int:
    return (unit.filters // plan.filters[slot]).bit_length() - 1


# -- many architectures at once --------------------------------------------------------------------


def resolutions(rows: Sequence[Features], plan: Plan) -> dict[str, np.ndarray]:
    """Return the rows at each resolution, as arrays [rows, columns].

    Counts are int16; the logarithms of `size` are float64.
    """
    slots = np.stack([row.slots for row in rows])
    levels = {
        "slot": slots,
        "block": np.add.reduceat(slots, plan.blocks, axis=2),
        "stage": np.add.reduceat(slots, plan.stages, axis=2),
        "total": slots.sum(axis=2, dtype=np.int16, keepdims=True),
    }
    flat = {level: table.reshape(len(rows), -1) for level, table in levels.items()}
    return flat | {"size": np.log2([[row.macs, row.parameters] for row in rows])}
