# SPDX-License-Identifier: Apache-2.0
"""From which trial of a replica on the surrogate and the optimiser of hyperparameters choose its candidates.

Both learn from ended trials. A candidate is chosen when one ends, and is trained after those that wait in the
queue and the one that is prepared ahead.
"""

from __future__ import annotations

from collections.abc import Iterator

from aiperf_mpi.config import Config
from aiperf_mpi.planning.estimate.machine import Machine, replicas
from aiperf_mpi.planning.estimate.number import Number
from aiperf_mpi.printable import counted
from aiperf_mpi.trials.budget import budget
from aiperf_mpi.trials.view import DESIGN, START

#: Methods of HPO that learn.
LEARNING = ("bayesian", "tpe")


def first_by_surrogate(config: Config, count: int) -> int | None:
    """Return the number of a replica's first trial that the surrogate chooses, None if it never does.

    Arguments:
        count: number of replicas, which share one history and keep the same pace.
    """
    if config.search.method != "bayesian":
        return None
    return -(-START // count) + 1 + _waiting(config)


def first_by_hpo(config: Config, count: int) -> int | None:
    """Return the number of a replica's first trial that the optimiser chooses; as `first_by_surrogate`.

    The optimiser needs an ended trial of the optimised rounds, and the whole design before it.
    """
    hpo = config.hpo
    if not hpo.enabled or hpo.method not in LEARNING:
        return None
    return max(hpo.from_round + 1 + _waiting(config), hpo.from_round - (-DESIGN // count))


def acting_numbers(
    config: Config, machine: Machine, epoch_seconds: float | None, training_part: tuple[float, float]
) -> Iterator[Number]:
    """Estimate from which trial and core time on both act; nothing if one of them never does.

    Arguments:
        epoch_seconds: seconds of an epoch with its validation, None if the rate of a device is not known.
        training_part: part of the core time in which a replica trains, at least and at most.
    """
    count = replicas(config, machine)
    surrogate, hpo = first_by_surrogate(config, count), first_by_hpo(config, count)
    if surrogate is None or hpo is None:
        return
    both = max(surrogate, hpo)
    yield Number(
        "search",
        "first trial of a replica that both choose",
        both,
        "trial",
        f"the surrogate from trial {surrogate} on, once {START} trials have ended; the optimiser of "
        f"hyperparameters from trial {hpo} on, after a design of {counted(DESIGN, 'trial')} from round "
        f"{config.hpo.from_round} on; {_waiting(config)} of each replica are chosen before they are trained",
    )
    if epoch_seconds is None:
        return
    limits = [budget(number, config.train) for number in range(1, both + 1)]
    least = sum(min(limit.epochs_max, limit.patience + 1) for limit in limits)
    most = sum(limit.epochs_max for limit in limits)
    low, high = training_part
    yield Number(
        "search",
        "core time in which both act",
        (least * epoch_seconds / high, most * epoch_seconds / low),
        "s",
        f"until trial {both} of a replica has ended, after {least} to {most} epochs; a shorter run says "
        "little of the search",
    )


def _waiting(config: Config) -> int:
    """Return how many candidates of a replica are chosen, but not yet trained, when a trial ends."""
    return config.search.queue_depth + (config.parallel.compile_ahead != "off")
