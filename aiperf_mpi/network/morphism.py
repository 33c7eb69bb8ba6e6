# SPDX-License-Identifier: Apache-2.0
"""List the morphs that an architecture can take, and draw random ones (section 4.1 of the paper).

The eligible morphs are those of the authors' code. `deeper` is possible after every ReLU of the main chain,
`wider` for every convolution of the main chain except the last. `skip` is possible from the ReLU of every
unit except the first to the batch norm of every later unit. The paper also has a `kernel` morph, which the
authors' code lacks: it grows a convolution of the main chain to the next of the sizes 3, 5, 7.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aiperf_mpi.network.architecture import DEFAULT_KERNEL, OPS, Architecture, Morph, Unit

#: Sizes to which a kernel morph grows a convolution (section 4.2 of the paper searches the same sizes).
KERNEL_SIZES = (3, 5, 7)

#: Number of random draws for one morph before giving up (authors' code: 2 * N_NEIGHBOURS).
ATTEMPTS = 16


@dataclass(frozen=True)
class Limits:
    """Upper limits of an architecture's size.

    Arguments:
        units: largest number of units, which have one ReLU each (authors' code: MAX_LAYERS, the number of
            places for `deeper`).
        parameters: largest number of trainable parameters (authors' code: MAX_MODEL_SIZE).
    """

    units: int = 300
    parameters: int = 1 << 30

    def allow(self, architecture: Architecture) -> bool:
        """Return whether the architecture is within the limits."""
        return architecture.unit_count <= self.units and architecture.parameters <= self.parameters


PAPER_LIMITS = Limits()


def next_kernel(kernel: int) -> int | None:
    """Return the size to which a kernel morph grows a convolution of size `kernel`; None for the largest."""
    return next((size for size in KERNEL_SIZES if size > kernel), None)


def eligible_morphs(architecture: Architecture, ops: Sequence[str] = OPS) -> tuple[Morph, ...]:
    """Return all morphs that the architecture can take, regardless of limits.

    They are ordered by operation, then along the main chain.
    """
    units = architecture.units
    return tuple(morph for op in ops for morph in _ELIGIBLE[op](units))


def _eligible_deeper(units: Sequence[Unit]) -> list[Morph]:
    return [Morph("deeper", unit.id, 0, DEFAULT_KERNEL) for unit in units]


def _eligible_wider(units: Sequence[Unit]) -> list[Morph]:
    return [Morph("wider", unit.id) for unit in units[:-1]]


def _eligible_skip(units: Sequence[Unit]) -> list[Morph]:
    return [
        Morph("skip", source.id, target.id)
        for start, source in enumerate(units)
        if start >= 1
        for target in units[start + 1 :]
        if not _joined(source, target)
    ]


def _eligible_kernel(units: Sequence[Unit]) -> list[Morph]:
    sizes = ((unit, next_kernel(unit.kernel)) for unit in units)
    return [Morph("kernel", unit.id, 0, size) for unit, size in sizes if size is not None]


_ELIGIBLE = {
    "deeper": _eligible_deeper,
    "wider": _eligible_wider,
    "skip": _eligible_skip,
    "kernel": _eligible_kernel,
}


def _joined(source: Unit, target: Unit) -> bool:
    """Return whether the output of `source` is already added to `target`.

    The authors' code rejects a second such skip as illegal.
    """
    return any(edge.source == source.id for edge in target.edges)


def random_chain(
    architecture: Architecture,
    rng: np.random.Generator,
    length: int,
    ops: Sequence[str] = OPS,
    limits: Limits = PAPER_LIMITS,
) -> tuple[Architecture, tuple[Morph, ...]]:
    """Apply up to `length` random morphs, and return the descendant and the morphs.

    Each morph is drawn by operation, uniformly among `ops`, then uniformly among the eligible morphs of that
    operation. The chain ends early if ATTEMPTS draws give no morph within the limits.
    """
    child, chain = architecture, []
    for _ in range(length):
        step = _random_child(child, rng, ops, limits)
        if step is None:
            break
        morph, child = step
        chain.append(morph)
    return child, tuple(chain)


def _random_child(
    architecture: Architecture, rng: np.random.Generator, ops: Sequence[str], limits: Limits
) -> tuple[Morph, Architecture] | None:
    """Draw a morph within the limits; return it and the child, or None after ATTEMPTS draws without one."""
    units = architecture.units
    for _ in range(ATTEMPTS):
        morph = _RANDOM[ops[int(rng.integers(len(ops)))]](units, rng)
        if morph is not None:
            child = architecture.apply(morph)
            if limits.allow(child):
                return morph, child
    return None


def _random_deeper(units: Sequence[Unit], rng: np.random.Generator) -> Morph:
    return Morph("deeper", units[int(rng.integers(len(units)))].id, 0, DEFAULT_KERNEL)


def _random_wider(units: Sequence[Unit], rng: np.random.Generator) -> Morph | None:
    return Morph("wider", units[int(rng.integers(len(units) - 1))].id) if len(units) > 1 else None


def _random_skip(units: Sequence[Unit], rng: np.random.Generator) -> Morph | None:
    # Draw two different positions uniformly and sort them: every pair is equally likely. If a skip joins the
    # pair already, the caller draws again.
    if len(units) < 3:
        return None
    first, second = int(rng.integers(1, len(units))), int(rng.integers(1, len(units) - 1))
    second += second >= first
    source, target = units[min(first, second)], units[max(first, second)]
    return None if _joined(source, target) else Morph("skip", source.id, target.id)


def _random_kernel(units: Sequence[Unit], rng: np.random.Generator) -> Morph | None:
    # Draw the unit first: a list of all eligible morphs costs ten times as much as the draw.
    growing = [unit for unit in units if unit.kernel < KERNEL_SIZES[-1]]
    if not growing:
        return None
    unit = growing[int(rng.integers(len(growing)))]
    return Morph("kernel", unit.id, 0, min(size for size in KERNEL_SIZES if size > unit.kernel))


_RANDOM = {"deeper": _random_deeper, "wider": _random_wider, "skip": _random_skip, "kernel": _random_kernel}
