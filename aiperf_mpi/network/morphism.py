# SPDX-License-Identifier: Apache-2.0
"""Which morphs an architecture can take, and random ones among them (sections 4.1 of the paper, the authors'
code).

Eligible are, as in the authors' code: `deeper` behind every ReLU of the main chain, `wider` for every
convolution of the main chain but the last, `skip` from the ReLU of every unit but the first to the batch norm
of every later one. The paper's kernel morph, which their code lacks, grows a convolution of the main chain to
the next of 3, 5, 7.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aiperf_mpi.network.architecture import DEFAULT_KERNEL, OPS, Architecture, Morph, Unit

#: Sizes that a kernel morph grows a convolution to (section 4.2 of the paper searches the same).
KERNEL_SIZES = (3, 5, 7)

#: Random picks for one morph before giving up (authors' code: 2 * N_NEIGHBOURS).
ATTEMPTS = 16


@dataclass(frozen=True)
class Limits:
    """How far an architecture may grow.

    Arguments:
        units: most units, one ReLU each (authors' code: MAX_LAYERS, the places for `deeper`).
        parameters: most trainable parameters (authors' code: MAX_MODEL_SIZE).
    """

    units: int = 300
    parameters: int = 1 << 30

    def allow(self, architecture: Architecture) -> bool:
        """Whether the architecture is within them."""
        return architecture.unit_count <= self.units and architecture.parameters <= self.parameters


PAPER_LIMITS = Limits()


def next_kernel(kernel: int) -> int | None:
    """The size that a kernel morph grows a convolution of size `kernel` to; None if it is the largest."""
    return next((size for size in KERNEL_SIZES if size > kernel), None)


def eligible_morphs(architecture: Architecture, ops: Sequence[str] = OPS) -> tuple[Morph, ...]:
    """Every morph that the architecture can take, limits apart: by operation, then along the main chain."""
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
    """Whether the output of `source` is already added to `target`; the authors refuse such a double as
    illegal."""
    return any(edge.source == source.id for edge in target.edges)


def random_morph(
    architecture: Architecture,
    rng: np.random.Generator,
    ops: Sequence[str] = OPS,
    limits: Limits = PAPER_LIMITS,
) -> Morph | None:
    """An operation uniformly among `ops`, then uniformly one of its eligible morphs that stays within the
    limits.

    Returns None if 16 picks found none.
    """
    found = _random_child(architecture, rng, ops, limits)
    return None if found is None else found[0]


def random_chain(
    architecture: Architecture,
    rng: np.random.Generator,
    length: int,
    ops: Sequence[str] = OPS,
    limits: Limits = PAPER_LIMITS,
) -> tuple[Architecture, tuple[Morph, ...]]:
    """A descendant and the at most `length` random morphs that lead to it; fewer where the limits leave
    none."""
    child, chain = architecture, []
    for _ in range(length):
        found = _random_child(child, rng, ops, limits)
        if found is None:
            break
        chain.append(found[0])
        child = found[1]
    return child, tuple(chain)


def _random_child(
    architecture: Architecture, rng: np.random.Generator, ops: Sequence[str], limits: Limits
) -> tuple[Morph, Architecture] | None:
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
    # Two different places drawn uniformly and put in order are a pair drawn uniformly; a double is drawn
    # again.
    if len(units) < 3:
        return None
    first, second = int(rng.integers(1, len(units))), int(rng.integers(1, len(units) - 1))
    second += second >= first
    source, target = units[min(first, second)], units[max(first, second)]
    return None if _joined(source, target) else Morph("skip", source.id, target.id)


def _random_kernel(units: Sequence[Unit], rng: np.random.Generator) -> Morph | None:
    growing = _eligible_kernel(units)
    return growing[int(rng.integers(len(growing)))] if growing else None


_RANDOM = {"deeper": _random_deeper, "wider": _random_wider, "skip": _random_skip, "kernel": _random_kernel}
