# SPDX-License-Identifier: Apache-2.0
"""Judge what the ranks of a job may use of their hosts: cores and memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from aiperf_mpi.config import Config
from aiperf_mpi.planning import cores, memory
from aiperf_mpi.planning.finding import Finding
from aiperf_mpi.planning.rank_resources import RankResources


def judge(
    everyone: Sequence[RankResources], config: Config, option: cores.Remedy, windows: Mapping[str, int]
) -> tuple[Finding, ...]:
    """Return the findings on cores and memory.

    Arguments:
        everyone: what each rank may use.
        option: the launcher's option by which each rank gets a number of cores.
        windows: bytes of the windows on each host.
    """
    ranks = sorted(everyone, key=lambda one: one.rank)
    return (*memory.judge(ranks, config, windows), *cores.judge(ranks, config, option))
