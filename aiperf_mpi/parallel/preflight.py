# SPDX-License-Identifier: Apache-2.0
"""Checks and preparations before the core time: devices, data, wall time, output folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from aiperf_mpi.config import Config, ConfigError
from aiperf_mpi.data.catalogue import check_dataset
from aiperf_mpi.parallel.launch import job, launcher
from aiperf_mpi.parallel.launch.binding import host_share, local_devices, role_environment
from aiperf_mpi.parallel.launch.collective import wait
from aiperf_mpi.parallel.launch.placement import TRAINER
from aiperf_mpi.parallel.launch.ranks import Ranks
from aiperf_mpi.planning.storage import default_output, prepare_output
from aiperf_mpi.planning.walltime import check_limit
from aiperf_mpi.search.tpe import missing


@dataclass(frozen=True)
class Facts:
    """A trainer's devices and images, which all trainers must have alike."""

    device: str = ""
    n_devices: int = 0
    dataset_sha256: str = ""
    train_images: int = 0
    val_images: int = 0


def check_all(config: Config, ranks: Ranks) -> Config:
    """Check everything that would end the run later: data, wall time, output folder. Collective.

    Return the configuration with the absolute path of the output folder, which rank 0 makes. Raises
    LaunchError on all ranks if a check fails on any of them.
    """
    problem, output, host = None, "", f"rank {ranks.rank} on {ranks.host}"
    try:
        if ranks.rank == 0:
            problem = check_limit(config.run.time_limit)
        elif ranks.role == TRAINER:
            check_dataset(config)
    except ConfigError as error:
        problem = f"{host}: {error}" if ranks.rank else str(error)
    if (
        problem is None
        and ranks.rank
        and config.hpo.enabled
        and config.hpo.method == "tpe"
        and (lacking := missing())
    ):
        problem = f"{host}: {lacking}"
    job.raise_alike(ranks.world, problem)

    # The folder comes last, so that a refused run leaves none.
    try:
        if ranks.rank == 0:
            output = str(prepare_output(config, ranks.n_replicas, config.run.output or default_output()))
    except ConfigError as error:
        problem = str(error)
    job.raise_alike(ranks.world, problem)
    output = ranks.world.bcast(output, root=0)
    unseen = (
        f"{host} does not see the output folder {output}: it must be on a file system that all nodes share"
    )
    job.raise_alike(ranks.world, None if os.path.isdir(output) else unseen)
    return replace(config, run=replace(config.run, output=output))


def bind_devices(config: Config, ranks: Ranks) -> tuple[str, ...]:
    """Give this rank's process the devices of its role, before anything imports JAX. Collective.

    Return the names of all accelerators that the node's trainers have now.
    """
    parallel = config.parallel
    every = ranks.world.allgather(local_devices())
    trainers = [p.rank for p in ranks.places if p.role == TRAINER and p.node == ranks.node_index]
    offers: Sequence[Sequence[str]] = tuple(every[rank] for rank in trainers)
    problem = None
    try:
        # CPUs emulate devices by node; real devices belong to the host, which may have several nodes.
        trainer, shared = max(ranks.node_rank, 0), offers
        if ranks.role == TRAINER and not parallel.host_devices:
            trainer, shared = host_share(ranks.places, ranks.rank, every)
        os.environ.update(
            role_environment(
                ranks.role, trainer, shared, parallel.host_devices, together=parallel.trainers_per_replica > 1
            )
        )
    except launcher.LaunchError as error:
        problem = f"rank {ranks.rank} on {ranks.host}: {error}"
    job.raise_alike(ranks.world, problem)
    if ranks.node is None:
        return ()
    bound = ranks.node.allgather(local_devices())[: ranks.node_trainers]
    return tuple(dict.fromkeys(name for names in bound for name in names))


def open_resources(config: Config, ranks: Ranks) -> tuple[Any, Facts]:
    """Return this trainer's devices and images (None on other ranks), and what all trainers have in common.
    Collective.

    Raises LaunchError on all ranks where a trainer has no data, or too few for a batch on all of its devices.
    Raises it also where a trainer has other devices or images than the first one.
    """
    resources, facts, problem = None, Facts(), None
    if ranks.role == TRAINER:
        from aiperf_mpi.parallel.replica.resources import gather_resources

        try:
            resources = gather_resources(config, ranks.replica, ranks.team)
            data = resources.dataset
            facts = Facts(
                resources.device,
                len(resources.devices),
                data.sha256,
                len(data.train_labels),
                len(data.val_labels),
            )
        except ConfigError as error:
            problem = f"rank {ranks.rank} on {ranks.host}: {error}"

    # Ranks without data wait here for those that load it, without taking a core from them.
    wait(ranks.world.Ibarrier())
    job.raise_alike(ranks.world, problem)
    root = next(place.rank for place in ranks.places if place.role == TRAINER)
    common = ranks.world.bcast(facts, root=root)
    if ranks.role == TRAINER and facts != common:
        problem = (
            f"rank {ranks.rank} on {ranks.host} has {facts}, but rank {root} has {common}: all replicas "
            "need the same devices and the same images"
        )
    job.raise_alike(ranks.world, problem)
    return resources, common
