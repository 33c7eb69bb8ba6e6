# SPDX-License-Identifier: Apache-2.0
"""Counted operations by class: the kind of layer, and the part of the step that executes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from aiperf_mpi.opcount.analytical import FORWARD, KINDS, MATRIX_KINDS, MATRIX_ROLES

#: Parts of a step in addition to analytical.MATRIX_ROLES: everything after the loss, for kinds whose
#: gradients are not distinguished, and everything that belongs to no pass.
BACKWARD, STEP = "backward", "step"

#: Kinds in addition to those of layers: the optimiser, the collectives, the random crops of training images,
#: made-up images, and the rest (normalisation of images, metrics, biases). Only the first is credited.
UPDATE, ALL_REDUCE, AUGMENTATION, MADE_IMAGES, OTHER = (
    "update",
    "all_reduce",
    "augmentation",
    "made_images",
    "other",
)

#: A class of operations: the kind, and the part of the step.
Class = tuple[str, str]


@dataclass(frozen=True)
class Tally:
    """Weighted operations (exact integers) by class; ``+`` adds tallies, ``*`` repeats one.

    ``tally[kind, role]`` is 0 for a class without operations.
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
        """Number of all operations."""
        return sum(self.classes.values())

    def matrix(self) -> dict[Class, int]:
        """Return the operations of convolutions and dense layers by (kind, role), zeros included."""
        return {(kind, role): self[kind, role] for kind in MATRIX_KINDS for role in MATRIX_ROLES}

    def passes(self, kind: str) -> tuple[int, int]:
        """Return the operations of a kind: (forward, all others)."""
        forward = self[kind, FORWARD]
        return forward, sum(count for (k, _), count in self.classes.items() if k == kind) - forward

    def kinds(self) -> dict[str, tuple[int, int]]:
        """Return (forward, backward) of every kind of layer, also (0, 0), in the order of Table 3."""
        return {kind: self.passes(kind) for kind in KINDS}
