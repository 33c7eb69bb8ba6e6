# SPDX-License-Identifier: Apache-2.0
"""What a replica trains with, from start to end of a run: its devices and its data."""

from __future__ import annotations

import os
from dataclasses import dataclass

import jax

from aiperf_mpi.config import Config, ConfigError
from aiperf_mpi.data.catalogue import open_dataset
from aiperf_mpi.data.dataset import Dataset
from aiperf_mpi.parallel.binding import local_devices


@dataclass(frozen=True)
class Workshop:
    """What a replica trains with, from start to end: its devices and its data."""

    devices: tuple[jax.Device, ...]
    dataset: Dataset

    @property
    def device(self) -> str:
        """What the devices are, for the result."""
        return f"{len(self.devices)} x {self.devices[0].device_kind}"


def prepare(config: Config) -> Workshop:
    """The devices and the data of this trainer, before the core time starts.

    Raises ConfigError for missing data, and where an epoch would have no whole batch over all devices: every trial
    would fail, a night long.
    """
    devices, dataset = tuple(jax.local_devices()), open_dataset(config)
    accelerators = local_devices()
    by_choice = config.parallel.host_devices or os.environ.get("JAX_PLATFORMS")
    if accelerators and not by_choice and all(device.platform == "cpu" for device in devices):
        raise ConfigError(
            f"this host has {len(accelerators)} accelerators, but this JAX sees CPUs alone: install the extra cuda12, "
            "cuda13 or rocm of this package, or set JAX_PLATFORMS=cpu to train on the CPU"
        )
    batches = {"train.batch_per_device": config.train.batch_per_device}
    if config.hpo.enabled:
        batches["hpo.batches"] = max(config.hpo.batches)
    for key, batch in batches.items():
        images, least = len(dataset.train_labels), batch * len(devices)
        if images < least:
            raise ConfigError(
                f"{key}: {batch} images on each of {len(devices)} devices make batches of {least}, more than the "
                f"{images} training images: an epoch would have no whole batch"
            )
    return Workshop(devices, dataset)
