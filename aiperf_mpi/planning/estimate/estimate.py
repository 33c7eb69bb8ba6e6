# SPDX-License-Identifier: Apache-2.0
"""Estimate what a run needs on a described machine: memory, time, operations, score, node-hours, storage.

Everything follows from the configuration and from one number that a person measured or expects: the rate of a
device. Each number comes with its assumption. Neither JAX nor MPI is imported.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from aiperf_mpi.config import Config
from aiperf_mpi.config.datasets import DATASETS
from aiperf_mpi.config.sections import MOST_WORKERS
from aiperf_mpi.config.setting import shown
from aiperf_mpi.network.architecture import Architecture
from aiperf_mpi.opcount.analytical import operations
from aiperf_mpi.planning.estimate.acting import acting_numbers
from aiperf_mpi.planning.estimate.feed import feed_numbers
from aiperf_mpi.planning.estimate.gate import gate_numbers
from aiperf_mpi.planning.estimate.machine import Machine, check_machine, devices_of_replica, replicas, steps
from aiperf_mpi.planning.estimate.number import Number
from aiperf_mpi.planning.memory import BYTES_PER_PARAMETER, activation_bytes
from aiperf_mpi.planning.precision import precisions
from aiperf_mpi.planning.storage import state_bytes, state_files, storage
from aiperf_mpi.planning.walltime import DEFAULT_RESERVE
from aiperf_mpi.printable import counted
from aiperf_mpi.trials.budget import budget
from aiperf_mpi.trials.footprint import (
    CLAIMS_PER_RECORD,
    RECORDS_PER_CANDIDATE,
    REPLACING_PART,
    claims_bytes,
    history_bytes,
    mirror_bytes,
    queue_bytes,
    replacements,
)

#: Part of the core time in which a replica trains, at least and at most. The first search, and compilation
#: that does not overlap with training, take the rest.
TRAINING_PART = (0.8, 1.0)

#: Seconds from the job's start to core start: imports from a shared file system, MPI, data, opening the
#: devices.
START_SECONDS = 300.0


def estimate(config: Config, machine: Machine) -> list[Number]:
    """Return all numbers, in groups: operations, time, gate, search, score, cores, data, memory, storage.

    Raises ConfigError if the configuration cannot run on the machine, or a packed data set cannot be read.
    """
    check_machine(config, machine)
    rate = machine.ops_per_device
    return [
        *_operations(config, machine),
        *(() if rate is None else _time(config, machine, rate)),
        *_node_hours(config, machine),
        *gate_numbers(config, machine, epoch_seconds(config, machine), START_SECONDS, TRAINING_PART[0]),
        *acting_numbers(config, machine, epoch_seconds(config, machine), TRAINING_PART),
        *(() if rate is None else _score(config, machine, rate)),
        _cores(config, machine),
        *feed_numbers(config, machine),
        *_memory(config, machine),
        *_storage(config, machine),
    ]


# -- operations and time ---------------------------------------------------------------------------


def epoch_operations(config: Config, machine: Machine) -> int:
    """Return the operations of one epoch of the initial network, with its validation."""
    train, val = operations(Architecture(config.base))
    batch = config.train.batch_per_device
    images = steps(config, machine, batch) * batch * devices_of_replica(config, machine)
    return train * images + val * config.data.val_images


def epoch_seconds(config: Config, machine: Machine) -> float | None:
    """Return the seconds of an epoch with its validation, or None if the rate of a device is not known."""
    if (rate := machine.ops_per_device) is None:
        return None
    return epoch_operations(config, machine) / (rate * devices_of_replica(config, machine))


def trials(config: Config, epoch_time: float, seconds: float, earliest: bool) -> int:
    """Return the number of whole trials of a replica in `seconds`, one for each round from 1.

    A trial has all epochs of its round, or, if `earliest`, as few as its patience allows.
    """
    done, left, round_number = 0, seconds, 1
    while True:
        limits = budget(round_number, config.train)
        epochs = min(limits.epochs_max, limits.patience + 1) if earliest else limits.epochs_max
        following = budget(round_number + 1, config.train)
        if round_number >= len(config.train.round_epochs) and following == limits:
            # All later rounds are the same.
            return done + int(left / (epochs * epoch_time))
        if left < epochs * epoch_time:
            return done
        done, left, round_number = done + 1, left - epochs * epoch_time, round_number + 1


def records(config: Config, replicas: int, trials: int) -> tuple[int, int]:
    """Return the most history records and replaced candidates, once each replica has begun `trials` trials.

    A replaced candidate takes as many records as a trained one. Rejected candidates are not counted: a
    rejection means that counts differ, which is a fault.
    """
    search, room = config.search, config.parallel.history_capacity
    depth = search.queue_depth
    replaced = (
        0
        if search.method == "random"
        else replicas * replacements(trials, replicas, depth, search.stale_after)
    )
    replaced = min(replaced, int(REPLACING_PART * room / RECORDS_PER_CANDIDATE) + replicas)
    needed = RECORDS_PER_CANDIDATE * (replicas * (trials + depth) + replaced)
    return needed + (replicas * trials if config.model.inherits else 0), replaced


def _operations(config: Config, machine: Machine) -> Iterator[Number]:
    """Estimate the operations of an image and of an epoch."""
    train, val = operations(Architecture(config.base))
    batch = config.train.batch_per_device
    used = steps(config, machine, batch) * batch * devices_of_replica(config, machine)
    tables = "the initial network by the paper's Tables 1 and 2"
    yield Number("operations", "training an image", train, "op", tables)
    yield Number("operations", "validating an image", val, "op", tables)
    yield Number(
        "operations",
        "an epoch",
        epoch_operations(config, machine),
        "op",
        f"{used} images in whole batches of {batch} on each device, and {config.data.val_images} validated",
    )


def _time(config: Config, machine: Machine, rate: float) -> Iterator[Number]:
    """Estimate epochs, trials and history records for devices that train at `rate` op/s."""
    seconds = epoch_operations(config, machine) / (rate * devices_of_replica(config, machine))
    limit, (low, high) = config.run.time_limit, TRAINING_PART
    same = (
        f"{rate:.4g} op/s on each device in training and validation; children cost what the initial "
        f"network costs"
    )
    yield Number("time", "an epoch", seconds, "s", same)
    yield Number(
        "time",
        "epochs of a replica",
        (low * limit / seconds, high * limit / seconds),
        "epochs",
        f"a replica trains in {low:.0%} to {high:.0%} of {limit:g} s",
    )
    each = trials(config, seconds, low * limit, False), trials(config, seconds, high * limit, True)
    yield Number(
        "time",
        "trials of a replica",
        each,
        "trials",
        "from all epochs of every round to each trial stopped as soon as its patience allows; whole trials "
        "only",
    )
    needed, replaced = records(config, replicas(config, machine), each[1] + 1)
    room = config.parallel.history_capacity
    fits = (
        "fits" if needed <= room else "TOO MANY: the run would drain early; raise parallel.history_capacity"
    )
    kept = "; one more for each trial whose weights are removed" if config.model.inherits else ""
    yield Number(
        "time",
        "records of the history",
        needed,
        "records",
        f"{RECORDS_PER_CANDIDATE} for each of the most trials, for what is trained or waits at the end, and "
        f"for up to {replaced} candidates that grow stale while they wait; none is rejected{kept}; of "
        f"parallel.history_capacity {room}: {fits}",
    )


def _score(config: Config, machine: Machine, rate: float) -> Iterator[Number]:
    """Estimate the score for devices that train at `rate` op/s."""
    low, high = (part * rate * machine.nodes * machine.devices_per_node for part in TRAINING_PART)
    error = config.result.max_error
    yield Number(
        "score",
        "rate of the machine",
        (low, high),
        "op/s",
        f"{counted(machine.nodes * machine.devices_per_node, 'device')}: training takes "
        f"{TRAINING_PART[0]:.0%} to {TRAINING_PART[1]:.0%} of the core time",
    )
    if DATASETS[config.data.name].made:
        return  # the error of made-up pictures regulates no rate
    yield Number(
        "score",
        f"regulated at an error of {error:g}",
        (-math.log(error) * low, -math.log(error) * high) if 0 < error < 1 else (0.0, 0.0),
        "op/s",
        "-ln(error) x rate, at the largest error of an official result",
    )


def _node_hours(config: Config, machine: Machine) -> Iterator[Number]:
    """Estimate the wall time of the job, and its node-hours."""
    wall = START_SECONDS + config.run.time_limit + DEFAULT_RESERVE
    yield Number(
        "time",
        "wall time to ask for",
        wall,
        "s",
        f"{START_SECONDS:g} s until core start, {config.run.time_limit:g} s, and {DEFAULT_RESERVE:g} s to "
        f"validate the best network again and write",
    )
    yield Number(
        "time",
        "node-hours",
        machine.nodes * wall / 3600,
        "h",
        "rank 0 shares the first node with its trainer",
    )


def _cores(config: Config, machine: Machine) -> Number:
    """Count the threads of a node that compute at the same time."""
    trainers, workers = config.parallel.trainers_per_node, config.data.workers
    generators = machine.ranks_per_node - trainers
    threads = counted(workers, "thread") if workers else f"1 thread or more, at most {MOST_WORKERS},"
    return Number(
        "cores",
        "cores of a node",
        trainers * (1 + max(1, workers)) + generators,
        "cores",
        f"for each of {counted(trainers, 'trainer')} the step and {threads} that prepare images "
        f"(data.workers), and one for each of {counted(generators, 'generator')}; with fewer it runs, slower",
    )


# -- memory and storage ----------------------------------------------------------------------------


def _memory(config: Config, machine: Machine) -> Iterator[Number]:
    """Estimate the memory of windows, images and devices."""
    yield from _window_memory(config, machine)
    if DATASETS[config.data.name].in_memory:
        yield _image_memory(config)
    yield from _device_memory(config, machine)


def _window_memory(config: Config, machine: Machine) -> Iterator[Number]:
    """Estimate the shared memory of the windows: history, claims, mirror and queues."""
    capacity, depth = config.parallel.history_capacity, config.search.queue_depth
    trainers = config.parallel.trainers_per_node
    windows = "shared memory (/dev/shm) of the host"
    yield Number(
        "memory",
        "history window",
        history_bytes(capacity),
        "byte",
        f"{capacity} records of 296 bytes with summary and state, once, on rank 0's host: {windows}",
    )
    yield Number(
        "memory",
        "claims table",
        claims_bytes(CLAIMS_PER_RECORD * capacity),
        "byte",
        f"{CLAIMS_PER_RECORD} places of 16 bytes for each record, once, on rank 0's host: {windows}",
    )
    node = mirror_bytes(capacity) + trainers * queue_bytes(depth, machine.ranks_per_node)
    yield Number(
        "memory",
        "mirror and queues of a node",
        node,
        "byte",
        f"summaries of {capacity} records, and {counted(depth, 'candidate')} for each of "
        f"{counted(trainers, 'trainer')}: {windows}",
    )


def _image_memory(config: Config) -> Number:
    """Estimate the host memory of a data set that each trainer holds in memory."""
    trainers, images = config.parallel.trainers_per_node, config.data.train_images + config.data.val_images
    size = images * config.data.image_size**2 * config.data.channels
    return Number(
        "memory",
        "images of a node",
        trainers * size,
        "byte",
        f"{counted(images, 'image')} of 1 byte a value, in each of {counted(trainers, 'trainer')}",
    )


def _device_memory(config: Config, machine: Machine) -> Iterator[Number]:
    """Estimate the least memory of a device: weights, and what the backward pass keeps."""
    kinds = precisions(config, machine.device)
    parameters = Architecture(config.base).parameters
    batches = [config.train.batch_per_device, *(config.hpo.batches if config.hpo.enabled else ())]
    need = [
        parameters * BYTES_PER_PARAMETER + batch * activation_bytes(config, precision)
        for batch, precision in ((batches[0], kinds[0]), (max(batches), kinds[-1]))
    ]
    yield Number(
        "memory",
        "a device",
        (float(need[0]), float(need[1])),
        "byte",
        f"at least, without work space: {parameters} parameters with momentum and gradient, and what the "
        f"backward pass keeps of {counted(batches[0], 'image')} in {kinds[0]} ({max(batches)}, the largest "
        f"batch that may be chosen, in {kinds[-1]}); {_why(config, machine)}a step that does not fit runs in "
        "parts",
    )
    largest = config.search.max_parameters * BYTES_PER_PARAMETER
    yield Number(
        "memory",
        "weights of the largest network on a device",
        largest,
        "byte",
        f"search.max_parameters {config.search.max_parameters}, with momentum and gradient",
    )


def _why(config: Config, machine: Machine) -> str:
    """Return why there are two precisions, as the beginning of a sentence; "" if there is one."""
    if len(precisions(config, machine.device)) == 1:
        return ""
    unknown = f"which is not known of --device {shown(machine.device)}" if machine.device else "see --device"
    return f"train.precision = auto depends on the device, {unknown}; "


def _storage(config: Config, machine: Machine) -> Iterator[Number]:
    """Bound the bytes that the run writes into its output folder."""
    parts = storage(config, replicas(config, machine))
    bound = "an upper bound, for the output folder"
    yield Number(
        "storage",
        "checkpoints",
        parts.checkpoints,
        "byte",
        f"{bound}: each of {counted(replicas(config, machine), 'replica')} keeps result.keep_checkpoints and "
        f"one in replacement",
    )
    yield from _states(config, machine, parts.states, bound)
    yield Number(
        "storage",
        "rows in journal and results",
        parts.rows,
        "byte",
        f"{bound}: as many rows as the time limit and the history allow",
    )
    yield Number(
        "storage",
        "samples in journal and results",
        parts.samples,
        "byte",
        f"{bound}: one row for a node every {config.monitor.seconds:g} s, or less often on large machines",
    )
    yield Number("storage", "in all", parts.total, "byte", f"{bound}; a run that finds less free is refused")


def _states(config: Config, machine: Machine, most: int, bound: str) -> Iterator[Number]:
    """Estimate the states of trials that train: their bytes in all, and those that are written a second."""
    count, seconds = replicas(config, machine), config.result.checkpoint_seconds
    if not state_files(config):
        return
    yield Number(
        "storage",
        "states of trials that train",
        most,
        "byte",
        f"{bound}: each of {counted(count, 'replica')} keeps two, and has one in replacement",
    )
    initial = state_bytes(Architecture(config.base).parameters)
    largest = most // (count * state_files(config))
    yield Number(
        "storage",
        "states written a second",
        (count * initial / seconds, count * largest / seconds),
        "byte/s",
        f"from the initial network to the largest, at most one of each replica in "
        f"result.checkpoint_seconds {seconds:g} s",
    )
