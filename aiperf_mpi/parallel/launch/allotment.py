# SPDX-License-Identifier: Apache-2.0
"""What the ranks of this job may use of their hosts: gathered on rank 0, judged, told once."""

from __future__ import annotations

import os
from collections import Counter

from aiperf_mpi.config import Config
from aiperf_mpi.ending import write_error
from aiperf_mpi.exits import EXIT_USAGE
from aiperf_mpi.parallel.launch.binding import local_devices
from aiperf_mpi.parallel.launch.launcher import detect, more_cores
from aiperf_mpi.parallel.launch.mpi import MPI
from aiperf_mpi.parallel.launch.placement import TRAINER, Place
from aiperf_mpi.parallel.launch.ranks import Ranks
from aiperf_mpi.parallel.launch.start import INIT_SECONDS, INIT_VARIABLE, Outcome, exchange, seconds_of
from aiperf_mpi.planning.finding import Finding, first_failure, warnings
from aiperf_mpi.planning.rank_resources import RankResources, from_dict, own_resources
from aiperf_mpi.planning.resources import judge
from aiperf_mpi.planning.shared_memory import coordinator_bytes, node_bytes
from aiperf_mpi.probe import NotKnown, probe


def judge_resources(config: Config, ranks: Ranks) -> list[dict[str, str]]:
    """Compare what all ranks may use with what they need: refuse, or log the warnings. Collective.

    Return on rank 0 the warnings, for the result; [] on other ranks. Raises AgreedError with the first
    failure.
    """
    found = find_resources(config, ranks)
    failure = first_failure(found)
    outcome = Outcome(EXIT_USAGE, failure) if failure else Outcome()
    exchange("cores and memory", outcome, seconds_of(INIT_VARIABLE, INIT_SECONDS), named=False)
    told = warnings(found)
    for one in told:
        write_error(f"aiperf_mpi: warning: {one.subject}: {one}\n")
    return [{**one.to_dict(), "ranks": "all"} for one in told]


def find_resources(config: Config, ranks: Ranks) -> tuple[Finding, ...]:
    """Return on rank 0 the findings on cores and memory of all ranks; () on other ranks. Collective."""
    on_cpu = bool(
        config.parallel.host_devices or os.environ.get("JAX_PLATFORMS") == "cpu" or not local_devices()
    )
    mine = probe("cores and memory", own_resources, ranks.rank, ranks.host, ranks.role, on_cpu)
    if isinstance(mine, NotKnown):
        mine = RankResources(ranks.rank, ranks.host, ranks.role)
    seconds = seconds_of(INIT_VARIABLE, INIT_SECONDS)
    _, told = exchange("what each rank may use", Outcome(value=mine.to_dict()), seconds)
    if ranks.rank:
        return ()
    everyone = [from_dict(one) for one in told.values()]
    option = more_cores(detect(), MPI.get_vendor()[0])
    return judge(everyone, config, option, windows(config, ranks.places))


def windows(config: Config, places: tuple[Place, ...]) -> dict[str, int]:
    """Return the bytes of the windows on each host."""
    need, users = {places[0].host: coordinator_bytes(config)}, Counter(place.queue_group for place in places)
    for place in places:
        if place.role == TRAINER and place.node_rank == 0:
            bytes_here = node_bytes(config, len(place.queue_group_replicas), users[place.queue_group])
            need[place.host] = need.get(place.host, 0) + bytes_here
    return need
