# SPDX-License-Identifier: Apache-2.0
"""The resources of a replica, from start to end of a run: its devices and its data."""

from __future__ import annotations

import os
from dataclasses import dataclass

import jax

from aiperf_mpi.config import Config, ConfigError
from aiperf_mpi.data.catalogue import open_dataset
from aiperf_mpi.data.dataset import Dataset
from aiperf_mpi.data.loader import Reader
from aiperf_mpi.environment.jax_variables import told_by_variable
from aiperf_mpi.parallel.launch.binding import local_devices
from aiperf_mpi.parallel.launch.mpi import MPI
from aiperf_mpi.parallel.replica.cache import Cache, open_cache
from aiperf_mpi.parallel.replica.cluster import join
from aiperf_mpi.printable import counted
from aiperf_mpi.training.steps.memory import memory_limit


@dataclass(frozen=True)
class Resources:
    """The resources that a replica trains with.

    Attributes:
        devices: of the replica, including those of its other processes.
        memory: bytes that a step may use on each device; None: unknown.
        dataset: training and validation images.
        reader: threads that read the images of all trials.
        cache: of compiled programs.
    """

    devices: tuple[jax.Device, ...]
    memory: int | None
    dataset: Dataset
    reader: Reader
    cache: Cache

    @property
    def mine(self) -> slice:
        """The range of `devices` that are this process's."""
        places = [i for i, device in enumerate(self.devices) if device.process_index == jax.process_index()]
        return slice(places[0], places[-1] + 1)

    @property
    def device(self) -> str:
        """Number and kind of this process's devices, for the result."""
        own = self.devices[self.mine]
        return f"{len(own)} x {own[0].device_kind}"

    @property
    def described(self) -> tuple[tuple[str, str], ...]:
        """Platform and compute capability of each of `devices`, as JAX tells them ("": none)."""
        return tuple(
            (device.platform, str(getattr(device, "compute_capability", ""))) for device in self.devices
        )


def gather_resources(config: Config, replica: int, team: MPI.Intracomm | None = None) -> Resources:
    """Find the devices and open the data of a trainer of this replica, before the core time starts.
    Collective over `team`, the replica's trainers if there are several.

    Raises ConfigError for missing data, and for accelerators that JAX does not see. Raises it also where an
    epoch would have no whole batch over all devices, as every trial would then fail.
    """
    if team is not None:
        join(team, config.parallel.address)
    with told_by_variable():
        every = jax.devices()
    devices = tuple(sorted(every, key=lambda device: (device.process_index, device.id)))
    memory = memory_limit(devices, config.parallel.memory_limit)
    if team is not None:
        # All processes of a replica compile the same steps, so they need the same limit.
        memory = min((limit for limit in team.allgather(memory) if limit is not None), default=None)
    dataset = open_dataset(config)
    accelerators = local_devices()
    by_choice = config.parallel.host_devices or os.environ.get("JAX_PLATFORMS")
    if accelerators and not by_choice and all(device.platform == "cpu" for device in devices):
        raise ConfigError(
            f"this host has {counted(len(accelerators), 'accelerator')}, but this JAX sees only CPUs: "
            "install the extra cuda12, cuda13 or rocm of this package, or set JAX_PLATFORMS=cpu to train on "
            "the CPU"
        )
    batches = {"train.batch_per_device": config.train.batch_per_device}
    if config.hpo.enabled:
        batches["hpo.batches"] = max(config.hpo.batches)
    for key, batch in batches.items():
        images, least = len(dataset.train.labels), batch * len(devices)
        if images < least:
            raise ConfigError(
                f"{key}: {counted(batch, 'image')} on each of {counted(len(devices), 'device')} make batches "
                f"of {least}, more than the {counted(images, 'training image')}: an epoch would have no "
                "whole batch"
            )
    # A CPU device keeps using the host's memory of a batch.
    reuse = all(device.platform != "cpu" for device in devices)
    reader = Reader(config.data.threads(len(os.sched_getaffinity(0))), reuse)
    return Resources(devices, memory, dataset, reader, open_cache(config.parallel.cache, replica))
