# SPDX-License-Identifier: Apache-2.0
"""The machine that a person describes to `estimate`, and how a configuration divides it."""

from __future__ import annotations

from dataclasses import dataclass

from aiperf_mpi.config import Config, ConfigError
from aiperf_mpi.config.setting import shown
from aiperf_mpi.network.architecture import Architecture
from aiperf_mpi.opcount.analytical import operations
from aiperf_mpi.printable import counted

#: The lowest and highest rate of a device in op/s that is accepted: more is a million devices of 2026.
LEAST_OPS, MOST_OPS = 1.0, 1e21

#: The most nodes, and devices or ranks of a node, that are accepted; more is a typing error.
MOST_NODES, MOST_OF_A_NODE = 10_000_000, 100_000


#: The rate in bytes/s at which a node copies the data set unless a person says another one: 8 Gbit/s.
STAGING_RATE = 1e9

#: The lowest and highest such rate that is accepted.
LEAST_STAGING, MOST_STAGING = 1.0, 1e15


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine as a person describes it.

    `ops_per_device` is the rate (op/s) at which a device trains, counted by the paper's tables; None if it is
    not known. `staging_rate` is the rate (bytes/s) at which a node copies the data set. `device` is the name
    that the driver gives to a device, "" if it is not known.
    """

    nodes: int
    devices_per_node: int = 1
    ranks_per_node: int = 3
    ops_per_device: float | None = None
    staging_rate: float = STAGING_RATE
    device: str = ""


def check_machine(config: Config, machine: Machine) -> None:
    """Raise ConfigError if the description is impossible, or the configuration does not fit the machine."""
    for name, value, most in (
        ("--nodes", machine.nodes, MOST_NODES),
        ("--devices-per-node", machine.devices_per_node, MOST_OF_A_NODE),
        ("--ranks-per-node", machine.ranks_per_node, MOST_OF_A_NODE),
    ):
        if value < 1:
            raise ConfigError(f"{name} {shown(value)}: a machine has at least one")
        if value > most:
            raise ConfigError(f"{name} {shown(value)}: a machine has at most {most}")
    rate = machine.ops_per_device
    if rate is not None and not LEAST_OPS <= rate <= MOST_OPS:
        raise ConfigError(
            f"the rate of a device is {rate:g} op/s, but must be a positive number from {LEAST_OPS:g} up to "
            f"{MOST_OPS:g}"
        )
    if not LEAST_STAGING <= machine.staging_rate <= MOST_STAGING:
        raise ConfigError(
            f"--staging-rate {machine.staging_rate:g}: must be a positive number of bytes per second from "
            f"{LEAST_STAGING:g} up to {MOST_STAGING:g}"
        )
    trainers = config.parallel.trainers_per_node
    if machine.ranks_per_node < trainers:
        raise ConfigError(
            f"--ranks-per-node {machine.ranks_per_node}: less than parallel.trainers_per_node {trainers}"
        )
    if machine.devices_per_node % trainers:
        raise ConfigError(
            f"--devices-per-node {machine.devices_per_node}: does not divide among the "
            f"{counted(trainers, 'trainer')} of a node (parallel.trainers_per_node)"
        )
    if machine.nodes * trainers % config.parallel.trainers_per_replica:
        raise ConfigError(
            f"--nodes {machine.nodes}: its {counted(machine.nodes * trainers, 'trainer')} do not divide into "
            f"replicas of parallel.trainers_per_replica {config.parallel.trainers_per_replica}"
        )
    if steps(config, machine, config.train.batch_per_device) < 1:
        raise ConfigError(
            f"train.batch_per_device: {counted(config.train.batch_per_device, 'image')} on each "
            f"of {counted(devices_of_replica(config, machine), 'device')} are more than the "
            f"{counted(config.data.train_images, 'training image')}: an epoch would have no whole batch"
        )


def replicas(config: Config, machine: Machine) -> int:
    """Return the number of replicas; a replica has `parallel.trainers_per_replica` trainers."""
    return machine.nodes * config.parallel.trainers_per_node // config.parallel.trainers_per_replica


def devices_of_replica(config: Config, machine: Machine) -> int:
    """Return the number of devices that train one model together."""
    parallel = config.parallel
    return machine.devices_per_node // parallel.trainers_per_node * parallel.trainers_per_replica


def steps(config: Config, machine: Machine, batch: int) -> int:
    """Return the training steps of an epoch; only whole batches count."""
    return config.data.train_images // (batch * devices_of_replica(config, machine))


def read_machine(
    config: Config,
    nodes: int,
    devices_per_node: int,
    ranks_per_node: int,
    ops_per_device: float | None = None,
    images_per_second: float | None = None,
    staging_rate: float = STAGING_RATE,
    device: str = "",
) -> Machine:
    """Return the machine that a command line describes.

    `images_per_second` is the rate of a device in images of the initial network; it replaces
    `ops_per_device`.
    """
    if images_per_second is not None:
        ops_per_device = images_per_second * operations(Architecture(config.base))[0]
    return Machine(nodes, devices_per_node, ranks_per_node, ops_per_device, staging_rate, device)
