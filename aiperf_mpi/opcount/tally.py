# SPDX-License-Identifier: Apache-2.0
"""Counted operations by class: what kind of layer they belong to, and in which part of a step they are
executed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from aiperf_mpi.opcount.analytical import FORWARD, KINDS, MATRIX_KINDS, MATRIX_ROLES

#: Parts of a step beside those of analytical.MATRIX_ROLES, for kinds whose gradients are not told apart: all
#: that follows the loss, and what belongs to no pass.
BACKWARD, STEP = "backward", "step"

#: Kinds beside those of layers: the optimiser, the collectives, and the rest (normalising images, metrics,
#: biases).
UPDATE, ALL_REDUCE, OTHER = "update", "all_reduce", "other"

#: A class of operations: the kind, and the part of the step.
Class = tuple[str, str]


@dataclass(frozen=True)
class Tally:
    """Weighted operations (exact integers) by class; tallies add up with ``+``, and repeat with ``*``.

    A class that is not there counts 0: read it with ``tally[kind, role]``.
    """

    classes: Mapping[Class, int] = field(default_factory=dict)

    def __getitem__(self, key: Class) -> int:
        return self.classes.get(key, 0)

    def __iter__(self) -> Iterator[Class]:
        return iter(self.classes)

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            {key: self[key] + other[key] for key in (*self, *(key for key in other if key not in self))}
        )

    def __mul__(self, times: int) -> Tally:
        return Tally({key: count * times for key, count in self.classes.items()})

    @property
    def total(self) -> int:
        """All operations."""
        return sum(self.classes.values())

    def matrix(self) -> dict[Class, int]:
        """The classes of convolutions and dense layers, also those that count 0."""
        return {(kind, role): self[kind, role] for kind in MATRIX_KINDS for role in MATRIX_ROLES}

    def passes(self, kind: str) -> tuple[int, int]:
        """Operations of a kind (forward, all the rest)."""
        forward = self[kind, FORWARD]
        return forward, sum(count for (k, _), count in self.classes.items() if k == kind) - forward

    def kinds(self) -> dict[str, tuple[int, int]]:
        """(forward, backward) of every kind of layer, in the order of the paper's Table 3, also where it is
        0."""
        return {kind: self.passes(kind) for kind in KINDS}
