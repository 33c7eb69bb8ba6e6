# SPDX-License-Identifier: Apache-2.0
"""Maximise the acquisition function: simulated annealing over chains of morphs.

A chain starts at a finished trial and grows morph by morph (section 4.1 of the paper; Jin et al., 2019,
algorithm 1). Each step grows a few of the chains so far, drawn by their Boltzmann weight, and the surrogate
predicts all new chains in one batch. The acquisition function is the upper confidence bound of the accuracy,
which is the negative lower bound of the error: gain = -(posterior mean of the error) + kappa (posterior
standard deviation).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aiperf_mpi.network.architecture import Architecture, Morph
from aiperf_mpi.network.morphism import Limits, random_chain
from aiperf_mpi.search.features import Features, child_features
from aiperf_mpi.search.surrogate import Process

#: The exploration weight kappa: LEAST_EXPLORATION plus a draw from an exponential distribution of mean
#: EXPLORATION. With a smaller minimum, annealing ends next to the best known trial, where the expected
#: accuracy is highest and nothing new is learnt.
LEAST_EXPLORATION, EXPLORATION = 0.5, 1.5

#: The annealing: steps, chains grown in a step, morphs tried on each; temperature in standard deviations of
#: the errors, and the factor that multiplies it after each step.
STEPS, GROWN, MORPHS = 12, 4, 8
TEMPERATURE, COOLING = 1.0, 0.6

#: Starting points (roots): finished trials of the least expected error, and random ones.
BEST_ROOTS, RANDOM_ROOTS = 8, 2

#: Decimal digits to which gains are rounded before they are compared. The last bits of a matrix product
#: depend on the number of rows, and must not decide between two equal children.
DIGITS = 9


@dataclass(frozen=True, slots=True, eq=False)
class Chain:
    """A finished trial and the morphs applied to it, with the resulting architecture and its features."""

    parent_id: int
    morphs: tuple[Morph, ...]
    architecture: Architecture
    features: Features


@dataclass(frozen=True)
class Moves:
    """How a chain may grow: operations in use, maximum number of morphs, limits of an architecture."""

    ops: tuple[str, ...]
    max_morphs: int
    limits: Limits


def exploration(rng: np.random.Generator) -> float:
    """Draw the exploration weight of one proposal.

    It is the number of standard deviations between the accuracy's bound and its expectation.
    """
    return LEAST_EXPLORATION + float(rng.exponential(EXPLORATION))


def roots_among(
    process: Process, finished: Sequence[Chain], eligible: np.ndarray, rng: np.random.Generator
) -> list[Chain]:
    """Choose the finished trials that annealing starts from: the best expected ones, and random others.

    Arguments:
        finished: the trials that the process has observed, in the same order.
        eligible: indices in `finished` of the trials that may be parents, ascending (int64).
    """
    expected = process.expected()[eligible] / process.units.scale
    order = eligible[np.argsort(np.round(expected, DIGITS), kind="stable")]
    best, others = order[:BEST_ROOTS], order[BEST_ROOTS:]
    drawn = rng.permutation(others)[:RANDOM_ROOTS]
    return [finished[int(i)] for i in (*best, *drawn)]


def anneal(
    process: Process, roots: Sequence[Chain], moves: Moves, kappa: float, rng: np.random.Generator
) -> list[Chain]:
    """Return all descendants of the roots that annealing evaluated, in order of decreasing gain.

    The list is empty if no root can take a morph.

    Arguments:
        process: the surrogate, with pending trials added at their predictions.
        roots: the chains that annealing starts from, see `roots_among`.
        moves: how a chain may grow; one with `max_morphs` morphs does not grow.
        kappa: exploration weight.
        rng: draws the chains to grow and their morphs.
    """
    if not roots:
        return []
    pool = list(roots)
    gains = _gains(process, pool, kappa)
    children: list[Chain] = []
    temperature = TEMPERATURE
    for _ in range(STEPS):
        # Weight each chain by its gain (Boltzmann), full chains by 0.
        weights = np.exp((gains - gains.max()) / temperature)
        weights *= [len(chain.morphs) < moves.max_morphs for chain in pool]
        weights = np.where(weights > 1e-12, weights, 0.0)
        open_chains = int(np.count_nonzero(weights))
        if not open_chains:
            break

        # Grow a few chains and predict their children.
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
    """Return the accuracy's upper confidence bound in standard deviations of the errors, float64 [chains]."""
    mean, deviation = process.predict([chain.features for chain in chains])
    return np.round((kappa * deviation - mean) / process.units.scale, DIGITS)
