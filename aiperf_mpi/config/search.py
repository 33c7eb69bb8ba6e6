# SPDX-License-Identifier: Apache-2.0
"""The settings of the search: network morphism, and optimisation of hyperparameters."""

from __future__ import annotations

from dataclasses import dataclass

from aiperf_mpi.config.setting import DEFAULT, FIXED, SECTION_4_5, TABLE_4, setting
from aiperf_mpi.network.architecture import MAX_KERNEL, OPS
from aiperf_mpi.paper import BATCHES, FROM_ROUND, KERNELS


@dataclass(frozen=True, slots=True)
class Search:
    """Network morphism: choice of parents and morphs, and limits of a network."""

    method: str = setting(
        "bayesian",
        "method that chooses parents and morphs",
        choices=("bayesian", "evolution", "random"),
        rule=FIXED,
        source="section 4.1, NAS method",
    )
    morphs: tuple[str, ...] = setting(
        OPS, "morph operations that may be used", choices=OPS, rule=FIXED, source=f"{TABLE_4}, NAS method"
    )
    max_morphs: int = setting(
        8, "largest number of morphs in one proposal", low=1, high=8, rule=DEFAULT, source="authors' code"
    )
    max_units: int = setting(
        300, "largest number of units of a network", low=1, high=4096, rule=DEFAULT, source="authors' code"
    )
    max_parameters: int = setting(
        2**30,
        "largest number of parameters of a network",
        low=1,
        high=2**40,
        rule=DEFAULT,
        source="authors' code",
    )
    population: int = setting(100, "number of latest results from which evolution samples", low=1, high=10**6)
    sample_size: int = setting(25, "results in a tournament of evolution", low=1, high=10**6)
    queue_depth: int = setting(2, "candidates that wait in the queue of each replica", low=1, high=64)
    #: A ratio, because the surrogate changes with the share of new results. It also keeps replacements from
    #: filling the history on the largest machine: a slot is refilled at most log(trials) times.
    stale_after: float = setting(
        1.5,
        "replace a waiting candidate once finished trials exceed this many times those it was made from",
        low=1,
        high=1e9,
    )


@dataclass(frozen=True, slots=True)
class Hpo:
    """Hyperparameter optimisation: its method, its values and its first round."""

    enabled: bool = setting(
        True, "optimise kernel and batch size", rule=FIXED, source=f"{TABLE_4}, HPO method"
    )
    method: str = setting(
        "bayesian",
        "method that chooses them; tpe needs the extra of that name",
        choices=("bayesian", "tpe", "grid", "random"),
        rule=FIXED,
        source=f"{TABLE_4}, HPO method",
        others=("tpe",),
    )
    from_round: int = setting(
        FROM_ROUND,
        "first round with optimised hyperparameters",
        low=1,
        high=10**6,
        rule=FIXED,
        source=SECTION_4_5,
    )
    kernels: tuple[int, ...] = setting(
        KERNELS,
        "kernel sizes for inserted convolutions",
        low=1,
        high=MAX_KERNEL,
        rule=FIXED,
        source=f"{SECTION_4_5}, search space",
    )
    batches: tuple[int, ...] = setting(
        BATCHES,
        "batch sizes per device that may be chosen",
        low=1,
        high=2**20,
        rule=FIXED,
        source=f"{SECTION_4_5}, search space",
    )
