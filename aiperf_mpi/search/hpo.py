# SPDX-License-Identifier: Apache-2.0
"""Hyperparameter optimisation: the batch size per device and the kernel size of the convolutions that a candidate's
own `deeper` morphs add, from the fourth round of a replica (sections 4.2 and 4.5 of the paper).

The kernel is part of the network, of its hash and of its operation count. Where no own `deeper` takes one (there is
none, or a kernel morph grows it), that dimension falls away and the candidate keeps the default.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from aiperf_mpi.search.architecture import DEFAULT_KERNEL, Architecture
from aiperf_mpi.search.history import HistoryView
from aiperf_mpi.search.morphism import PAPER_LIMITS, Limits
from aiperf_mpi.search.nas import Proposal
from aiperf_mpi.search.record import PROPOSED

#: The published sets: kernels of the paper's section 4.2; batches around Table 4's 448, multiples of 64.
KERNELS = (3, 5, 7)
BATCHES = (256, 320, 384, 448, 512)

#: First round in which hyperparameters are optimised (section 4.5 of the paper: the fourth).
FROM_ROUND = 4


@dataclass(frozen=True)
class Choice:
    """Hyperparameters of a candidate: a cell of the published sets."""

    kernel_size: int
    batch_per_device: int


class Hpo(Protocol):
    """How hyperparameters are chosen."""

    def suggest(self, view: HistoryView, proposal: Proposal, rng: np.random.Generator) -> Choice:
        """A cell to train `proposal` with; `rng` is the stream `streams.stream(HPO, ...)` of this history length."""


@dataclass(frozen=True)
class RandomHpo:
    """A uniformly drawn cell.

    Arguments:
        kernels: kernel sizes to choose from.
        batches: batch sizes per device to choose from.
    """

    kernels: tuple[int, ...] = KERNELS
    batches: tuple[int, ...] = BATCHES

    def suggest(self, view: HistoryView, proposal: Proposal, rng: np.random.Generator) -> Choice:
        """See Hpo."""
        return Choice(int(self.kernels[rng.integers(len(self.kernels))]),
                      int(self.batches[rng.integers(len(self.batches))]))


@dataclass(frozen=True)
class GridHpo:
    """The cell that was proposed least often from the first optimised round on; a random one of equals.

    Arguments:
        kernels: kernel sizes to choose from.
        batches: batch sizes per device to choose from.
        from_round: first round whose proposals count.
    """

    kernels: tuple[int, ...] = KERNELS
    batches: tuple[int, ...] = BATCHES
    from_round: int = FROM_ROUND

    def suggest(self, view: HistoryView, proposal: Proposal, rng: np.random.Generator) -> Choice:
        """See Hpo."""
        rows = view.summaries[(view.summaries["kind"] == PROPOSED) & (view.summaries["round"] >= self.from_round)]
        tried = np.array([[np.count_nonzero((rows["kernel_size"] == kernel) & (rows["batch_per_device"] == batch))
                           for batch in self.batches] for kernel in self.kernels])
        cells = np.argwhere(tried == tried.min())
        kernel, batch = cells[rng.integers(len(cells))]
        return Choice(int(self.kernels[kernel]), int(self.batches[batch]))


#: The optimisers by name; each takes kernels, batches and the first round.
OPTIMISERS: dict[str, Callable[[tuple[int, ...], tuple[int, ...], int], Hpo]] = {
    "random": lambda kernels, batches, from_round: RandomHpo(kernels, batches),
    "grid": lambda kernels, batches, from_round: GridHpo(kernels, batches, from_round),
}


def make_hpo(method: str, *, kernels: Sequence[int] = KERNELS, batches: Sequence[int] = BATCHES,
             from_round: int = FROM_ROUND) -> Hpo:
    """The optimiser named `method`; raises ValueError for another name or an empty set."""
    if method not in OPTIMISERS:
        raise ValueError(f"hpo.method: {method!r} is none of {', '.join(OPTIMISERS)}")
    if not kernels or not batches:
        raise ValueError("hpo: the sets of kernels and batches must not be empty")
    return OPTIMISERS[method](tuple(kernels), tuple(batches), from_round)


def tune(proposal: Proposal, choice: Choice, limits: Limits = PAPER_LIMITS) -> tuple[Architecture, int]:
    """The proposal's network with the chosen kernel, and the kernel that it really has.

    The default kernel stays where no own `deeper` takes another one, or where the chosen one would break the limits.
    """
    own = len(proposal.morphs)
    if not proposal.architecture.own_kernel_morphs(own):
        return proposal.architecture, DEFAULT_KERNEL
    tuned = proposal.architecture.with_own_kernel(own, choice.kernel_size)
    return (tuned, choice.kernel_size) if limits.allow(tuned) else (proposal.architecture, DEFAULT_KERNEL)
