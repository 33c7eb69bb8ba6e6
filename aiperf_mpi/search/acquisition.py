# SPDX-License-Identifier: Apache-2.0
"""Where to look next: simulated annealing over chains of morphs for the best upper confidence bound.

Chains begin at finished trials and grow morph by morph (section 4.1 of the paper; Jin et al., 2019, algorithm
1); each step grows a few of the chains found so far, the better the more likely, and asks the surrogate about
all new ones in one batch. The bound is of the accuracy, so the lower one of the error: gain = -(expected
error) + kappa uncertainty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aiperf_mpi.network.architecture import Architecture, Morph
from aiperf_mpi.network.morphism import Limits, random_chain
from aiperf_mpi.search.features import Features, child_features
from aiperf_mpi.search.surrogate import Process

#: The exploration weight kappa: at least this, and what is drawn from an exponential distribution of this
#: mean. With less than the least, annealing ends beside the best known trial, where the expectation is
#: highest and nothing new.
LEAST_EXPLORATION, EXPLORATION = 0.5, 1.5

#: The annealing: steps, chains grown in a step, morphs tried on each; temperature in standard deviations of
#: the errors, and what is left of it after each step.
STEPS, GROWN, MORPHS = 12, 4, 8
TEMPERATURE, COOLING = 1.0, 0.6

#: Where it starts: finished trials of the least expected error, and random ones.
BEST_ROOTS, RANDOM_ROOTS = 8, 2

#: Digits to which gains are compared: the last bits of a sum depend on how many rows a product of matrices
#: has, and must not decide between two equal children.
DIGITS = 9


@dataclass(frozen=True, slots=True, eq=False)
class Chain:
    """A finished trial and the morphs that were put on it, with the features of the result."""

    parent_id: int
    morphs: tuple[Morph, ...]
    architecture: Architecture
    features: Features


@dataclass(frozen=True)
class Moves:
    """What may be put on a chain: operations in use, morphs at most, and how far an architecture may grow."""

    ops: tuple[str, ...]
    max_morphs: int
    limits: Limits


def exploration(rng: np.random.Generator) -> float:
    """An exploration weight for one proposal: how many deviations the accuracy's bound lies above its
    expectation."""
    return LEAST_EXPLORATION + float(rng.exponential(EXPLORATION))


def roots_among(
    process: Process, finished: Sequence[Chain], eligible: np.ndarray, rng: np.random.Generator
) -> list[Chain]:
    """The finished trials that annealing starts from: the best by expected error, and random ones of the
    others.

    Arguments:
        finished: what the process has observed, in the same order.
        eligible: places in `finished` of those that may be parents, ascending (int64).
    """
    expected = process.expected()[eligible] / process.units.scale
    order = eligible[np.argsort(np.round(expected, DIGITS), kind="stable")]
    best, others = order[:BEST_ROOTS], order[BEST_ROOTS:]
    drawn = rng.permutation(others)[:RANDOM_ROOTS]
    return [finished[int(i)] for i in (*best, *drawn)]


def anneal(
    process: Process, roots: Sequence[Chain], moves: Moves, kappa: float, rng: np.random.Generator
) -> list[Chain]:
    """Children of the roots, all that were looked at, by falling gain; empty if there is no root that takes a
    morph.

    Arguments:
        process: the surrogate, pending trials imagined.
        kappa: exploration weight.
    """
    if not roots:
        return []
    pool = list(roots)
    gains = _gains(process, pool, kappa)
    children: list[Chain] = []
    temperature = TEMPERATURE
    for _ in range(STEPS):
        # Chains are drawn by their Boltzmann weight, those that are full not at all.
        weights = np.exp((gains - gains.max()) / temperature)
        weights *= [len(chain.morphs) < moves.max_morphs for chain in pool]
        weights = np.where(weights > 1e-12, weights, 0.0)
        open_chains = int(np.count_nonzero(weights))
        if not open_chains:
            break
        drawn = rng.choice(len(pool), min(GROWN, open_chains), replace=False, p=weights / weights.sum())
        grown = [child for i in drawn for child in _grow(pool[int(i)], moves, rng)]
        if grown:
            pool += grown
            gains = np.concatenate([gains, _gains(process, grown, kappa)])
            children += grown
        temperature *= COOLING
    order = np.argsort(-gains[len(roots) :], kind="stable")
    return [children[int(i)] for i in order]


def _grow(chain: Chain, moves: Moves, rng: np.random.Generator) -> list[Chain]:
    grown = []
    for _ in range(MORPHS):
        child, morphs = random_chain(chain.architecture, rng, 1, moves.ops, moves.limits)
        if morphs:
            row = child_features(chain.features, chain.architecture, morphs[0], child)
            grown.append(Chain(chain.parent_id, chain.morphs + morphs, child, row))
    return grown


def _gains(process: Process, chains: Sequence[Chain], kappa: float) -> np.ndarray:
    """Upper confidence bound of the accuracy, in standard deviations of the errors, float64 [chains]."""
    mean, deviation = process.predict([chain.features for chain in chains])
    return np.round((kappa * deviation - mean) / process.units.scale, DIGITS)
