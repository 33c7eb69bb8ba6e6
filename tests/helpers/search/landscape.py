# SPDX-License-Identifier: Apache-2.0
"""An artificial error over architectures with interactions and noise, and a run of asynchronous workers that
search it.

The landscape reads the network itself (units, edges, shapes), not the search's features. Its scale is that of
random search: a population of architectures, drawn as random search draws them in runs of 100 evaluations,
has mean 0 and standard deviation 1. "The top 0.1 %" are the architectures better than 99.9 % of the
population.
"""

from __future__ import annotations

import dataclasses
import heapq
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Protocol

import numpy as np

from aiperf_mpi.network.architecture import POOL, Architecture, Base
from aiperf_mpi.network.morphism import random_chain
from aiperf_mpi.search.nas import Search, chain_length
from aiperf_mpi.streams import SEARCH, stream
from aiperf_mpi.trials import record as rec
from aiperf_mpi.trials.candidate import Candidate, candidate_key
from aiperf_mpi.trials.record import MAX_OWN_MORPHS
from aiperf_mpi.trials.view import ArchitectureCache, HistoryView
from tests.helpers.trials.twins import ArrayClaims, ArrayHistory

SMALL = Base(image_size=32, channels=1, classes=10, width=4)

#: Evaluations of one random run, in the population too.
RUN_LENGTH = 100

#: Error of a score s: CENTRE - REACH tanh(s / STRETCH), so that the best scores saturate like accuracies.
CENTRE, REACH, STRETCH = 0.5, 0.45, 12.0


def error_of(score: float) -> float:
    """Return the error, between 0.05 and 0.95, of a score in standard deviations of the population."""
    return CENTRE - REACH * math.tanh(score / STRETCH)


def noise_of(deviations: float, rng: np.random.Generator) -> float:
    """Draw the noise of one evaluation, as an error; `deviations` is in standard deviations of the
    population."""
    return REACH / STRETCH * deviations * float(rng.normal())


@lru_cache(maxsize=4)
def population(base: Base = SMALL, runs: int = 40, seed: int = 0) -> tuple[Architecture, ...]:
    """Return architectures as random search draws them: `runs` runs of 100 evaluations by 8 workers each."""
    rng, architectures = np.random.default_rng((seed, 7)), []
    for _ in range(runs):
        members = [Architecture(base)]
        while len(members) < RUN_LENGTH:
            # The last 8 are still running, so they have no children.
            parent = members[int(rng.integers(max(1, len(members) - 8)))]
            child, morphs = random_chain(parent, rng, chain_length(rng, MAX_OWN_MORPHS))
            if morphs:
                members.append(child)
        architectures += members[1:]
    return tuple(architectures)


class Surface(Protocol):
    """A landscape that `run_search` can search."""

    def score(self, architecture: Architecture) -> float:
        """Return the noise-free quality, in the population's standard deviations; more is better."""

    def measure(self, architecture: Architecture, rng: np.random.Generator) -> float:
        """Return the error of one noisy evaluation."""


# -- what the landscape reads of a network ---------------------------------------------------------


@dataclass(frozen=True)
class Profile:
    """Properties of a network by slot of the base network (a base unit and the units inserted after it).

    Attributes:
        depth: inserted units.
        width: doublings of the base unit.
        kernel: kernel growth of base unit and inserted units.
        skips: (slot of the source, slot of the target) of each skip.
        macs: logarithm (base 2) of the multiply-accumulates.
    """

    depth: np.ndarray
    width: np.ndarray
    kernel: np.ndarray
    skips: tuple[tuple[int, int], ...]
    macs: float

    @staticmethod
    def of(architecture: Architecture) -> Profile:
        """Return the profile of an architecture, in one walk along the main chain."""
        base = _base_units(architecture.base)
        depth, width, kernel = np.zeros(len(base)), np.zeros(len(base)), np.zeros(len(base))
        slot, place, skips, macs, size, channels = (
            0,
            {POOL: 0},
            [],
            0.0,
            float(architecture.base.image_size),
            1,
        )
        for unit in architecture.units:
            original = base.get(unit.id)
            size = math.ceil(size / unit.stride) / (2 if unit.id == 1 else 1)
            if original:
                slot = unit.id
                width[slot] = math.log2(unit.filters / original[0])
                kernel[slot] += (unit.kernel - original[1]) / 2
            else:
                depth[slot] += 1
                kernel[slot] += (unit.kernel - 3) / 2
            place[unit.id] = slot
            macs += unit.kernel**2 * channels * unit.filters * size * size
            channels = unit.filters
            own = original[2] if original else 0
            skips += [(place[edge.source], slot) for edge in unit.edges[own:]]
        return Profile(depth, width, kernel, tuple(skips), math.log2(macs))


@lru_cache(maxsize=4)
def _base_units(base: Base) -> dict[int, tuple[int, int, int]]:
    return {unit.id: (unit.filters, unit.kernel, len(unit.edges)) for unit in Architecture(base).units}


@lru_cache(maxsize=200_000)
def profile(architecture: Architecture) -> Profile:
    """Return the profile of an architecture, cached: all landscapes share one population."""
    return Profile.of(architecture)


@dataclass(frozen=True)
class Standardised(ABC):
    """A surface with scores of mean 0 and standard deviation 1 over random search's population.

    Arguments:
        seed: of the coefficients.
        noise: standard deviation of one evaluation, in standard deviations of the population.
        base: base network.
        runs: random runs of 100 evaluations that define its scale; more make its quantiles sharper.
    """

    seed: int = 0
    noise: float = 0.3
    base: Base = SMALL
    runs: int = 40

    @abstractmethod
    def score(self, architecture: Architecture) -> float:
        """See Surface."""

    def measure(self, architecture: Architecture, rng: np.random.Generator) -> float:
        """See Surface."""
        return error_of(self.score(architecture)) + noise_of(self.noise, rng)

    @cached_property
    def scores(self) -> np.ndarray:
        """Scores of the population, ascending."""
        return np.sort([self.score(architecture) for architecture in population(self.base, self.runs)])


# -- the first landscape ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Landscape(Standardised):
    """Five parts with random coefficients, each standardised over the population:

    - capacity: best at some number of operations between 1 and 8 times the initial one's (share of variance
      0.20);
    - stages: depth, width, kernel and skips of each stage have random optima, any two of these 16 numbers
      interact (0.35);
    - places: each unit's own effect of going deeper, wider or larger, smooth along the chain with a rough
      part (0.20);
    - pairs: 40 interactions between two places (0.15);
    - skips: by stage of source and target and by length (0.10).
    """

    def score(self, architecture: Architecture) -> float:
        """See Surface."""
        parts = self._parts(profile(architecture))
        centre, scale, total = self._scale
        return float(((parts - centre) / scale) @ _SHARES) / total

    @cached_property
    def _scale(self) -> tuple[np.ndarray, np.ndarray, float]:
        parts = np.array(
            [self._parts(profile(architecture)) for architecture in population(self.base, self.runs)]
        )
        centre, scale = parts.mean(axis=0), parts.std(axis=0)
        return centre, scale, float((((parts - centre) / scale) @ _SHARES).std())

    @cached_property
    def _coefficients(self) -> dict[str, np.ndarray]:
        rng, slots = np.random.default_rng((self.seed, 11)), 1 + 3 * sum(self.base.blocks)
        along = np.exp(-0.5 * (np.subtract.outer(np.arange(slots), np.arange(slots)) / 3.0) ** 2)
        mix = rng.normal(0.0, 1.0, (16, 16))
        pairs = np.concatenate([rng.integers(0, 3, (40, 2)), rng.integers(0, slots, (40, 2))], axis=1)
        smooth = rng.normal(size=(3, slots)) @ (along / np.linalg.norm(along, axis=0))
        return {
            "capacity": rng.uniform(0.0, 3.0, 1),
            "wanted": rng.uniform(0.0, 4.0, 16) * np.repeat([1.0, 0.5, 0.5, 0.5], 4),
            "bend": rng.uniform(0.5, 1.5, 16),
            "mix": mix + mix.T,
            "places": smooth + rng.normal(0.0, 0.5, (3, slots)),
            "pairs": pairs,
            "pair_weights": rng.normal(size=40),
            "skips": rng.normal(size=(5, 5)),
            "length": rng.normal(size=1),
        }

    def _parts(self, of: Profile) -> np.ndarray:
        c, stages = self._coefficients, _stage_of(self.base)
        capacity = -((of.macs - profile(Architecture(self.base)).macs - c["capacity"][0]) ** 2)

        # Per stage (the stem counts as part of the first): inserted units, mean doublings, kernel growth,
        # skips that end there.
        of_stage = np.maximum(stages - 1, 0)
        count = np.bincount(of_stage)
        ends = np.bincount([of_stage[target] for _, target in of.skips], minlength=len(count))
        table = np.array(
            [
                np.bincount(of_stage, of.depth),
                4.0 * np.bincount(of_stage, of.width) / count,
                np.bincount(of_stage, of.kernel),
                ends,
            ]
        )
        gap = np.tanh((np.resize(table.ravel(), 16) - c["wanted"]) / 3.0)
        bowls = -(c["bend"] * gap**2).sum() + 0.15 * gap @ c["mix"] @ gap

        local = np.tanh(np.array([of.depth, of.width, of.kernel]))
        op1, op2, slot1, slot2 = c["pairs"].T
        pairs = (c["pair_weights"] * local[op1, slot1] * local[op2, slot2]).sum()
        skips = sum(
            c["skips"][stages[a], stages[b]] + c["length"][0] * math.log2(1 + b - a) / 3 for a, b in of.skips
        )
        return np.array([capacity, bowls, (c["places"] * local).sum(), pairs, 3.0 * math.tanh(skips / 3.0)])


_SHARES = np.sqrt([0.20, 0.35, 0.20, 0.15, 0.10])


@lru_cache(maxsize=4)
def _stage_of(base: Base) -> np.ndarray:
    """Return the stage of each slot, 0 for the stem."""
    return np.repeat(np.arange(len(base.blocks) + 1), [1, *(3 * blocks for blocks in base.blocks)])


# -- a simulated run -------------------------------------------------------------------------------


@dataclass
class Outcome:
    """Evaluations of a simulated run in the order in which they ended: true scores and trial ids."""

    scores: list[float] = field(default_factory=list)
    trials: list[int] = field(default_factory=list)
    log: ArrayHistory | None = None

    def first_above(self, threshold: float) -> int:
        """Return the number of evaluations until one scored above `threshold`, counted from 1.

        Return one more than the number of evaluations if none did.
        """
        return next((i for i, score in enumerate(self.scores, 1) if score > threshold), len(self.scores) + 1)


def run_search(
    search: Search,
    landscape: Surface,
    seed: int,
    evaluations: int = RUN_LENGTH,
    workers: int = 8,
    base: Base = SMALL,
    watch: Callable[[int, HistoryView], None] | None = None,
) -> Outcome:
    """Simulate `workers` asynchronous workers, each with its own generator, on one history and one table of
    claims.

    `watch(evaluations, view)` is called after each evaluation, before its worker gets the next candidate.
    """
    initial = Architecture(base)
    log, claims, cache = (
        ArrayHistory(4 * evaluations + 4 * workers),
        ArrayClaims(8 * evaluations),
        ArchitectureCache(),
    )
    clock, noise = np.random.default_rng((seed, 1)), np.random.default_rng((seed, 2))
    outcome = Outcome(log=log)
    running: list[tuple[float, int, Candidate]] = []

    def start(worker: int, now: float) -> None:
        log.refresh()
        view = HistoryView.of(log, initial, cache)
        if watch:
            watch(len(outcome.scores), view)
        rng = stream(SEARCH, seed, worker, 0, view.length)
        if view.length:
            while True:
                proposal = search.propose(view, rng)
                parent, own, architecture = proposal.parent_id, proposal.morphs, proposal.architecture
                if claims.claim(candidate_key(architecture.hash, 32)):
                    break
        else:
            parent, own, architecture = -1, (), initial
            claims.claim(candidate_key(architecture.hash, 32))
        candidate = Candidate.new(
            architecture,
            own,
            parent_id=parent,
            replica=worker,
            generator=0,
            round=1,
            batch_per_device=32,
            devices=1,
            seed=seed,
        )
        candidate = dataclasses.replace(candidate, trial_id=log.append(candidate.to_record(now)))
        heapq.heappush(running, (now + float(clock.uniform(1.0, 2.0)), worker, candidate))

    for worker in range(workers):
        start(worker, 0.0)
    while len(outcome.scores) < evaluations:
        now, worker, candidate = heapq.heappop(running)
        error = landscape.measure(candidate.architecture, noise)
        log.append(candidate.outcome(rec.DONE, now, epochs=1, best_error=error))
        outcome.scores.append(landscape.score(candidate.architecture))
        outcome.trials.append(candidate.trial_id)
        start(worker, now)
    return outcome
