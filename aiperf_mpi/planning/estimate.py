# SPDX-License-Identifier: Apache-2.0
"""What a run will take on a described machine: memory, time, operations, score, node-hours, storage.

Everything follows from the configuration and from one number that a person measured or expects, the rate of a
device. Each number comes with the assumption that it stands on. Neither JAX nor MPI is imported.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from textwrap import wrap
from typing import Any

from aiperf_mpi.config import Config, ConfigError
from aiperf_mpi.config.datasets import DATASETS
from aiperf_mpi.network.architecture import Architecture
from aiperf_mpi.opcount.analytical import operations
from aiperf_mpi.planning.storage import storage
from aiperf_mpi.planning.walltime import DEFAULT_RESERVE
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

#: Part of the core time in which a replica trains, at least and at most: compilation that training does not
#: hide, and the first search, take the rest.
TRAINING_PART = (0.8, 1.0)

#: Seconds from the job's start to core start: imports from a shared file system, MPI, data, the first look at
#: devices.
START_SECONDS = 300.0

#: Bytes of a parameter on a device: itself, its momentum and its gradient in float32.
BYTES_PER_PARAMETER = 12

#: Bytes of an activation by precision.
ACTIVATION_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

#: Operations per second beyond which a device is a slip of the pen: a million of today's.
MOST_OPS = 1e21


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine as a person describes it; `ops_per_device` is the rate (op/s) at which a device trains,
    counted by the paper's tables, None if nobody knows it."""

    nodes: int
    devices_per_node: int = 1
    ranks_per_node: int = 3
    ops_per_device: float | None = None


@dataclass(frozen=True, slots=True)
class Number:
    """One estimated number: a single value or a range, its unit, and what it rests on."""

    group: str
    name: str
    value: int | float | tuple[float, float]
    unit: str
    assumption: str


def estimate(config: Config, machine: Machine) -> list[Number]:
    """All numbers, in groups: operations, time, score, memory, storage. Raises ConfigError for what cannot
    run."""
    check(config, machine)
    rate = machine.ops_per_device
    return [
        *_operations(config, machine),
        *(() if rate is None else _time(config, machine, rate)),
        *_node_hours(config, machine),
        *(() if rate is None else _score(config, machine, rate)),
        *_memory(config, machine),
        *_storage(config, machine),
    ]


def check(config: Config, machine: Machine) -> None:
    """Raises ConfigError where the description is none, or the configuration does not fit the machine."""
    for name, value in (
        ("--nodes", machine.nodes),
        ("--devices-per-node", machine.devices_per_node),
        ("--ranks-per-node", machine.ranks_per_node),
    ):
        if value < 1:
            raise ConfigError(f"{name} {value}: a machine has at least one")
    rate = machine.ops_per_device
    if rate is not None and not 0 < rate <= MOST_OPS:
        raise ConfigError(
            f"the rate of a device is {rate} op/s, but must be a positive number up to {MOST_OPS:g}"
        )
    trainers = config.parallel.trainers_per_node
    if machine.ranks_per_node < trainers:
        raise ConfigError(
            f"--ranks-per-node {machine.ranks_per_node}: less than parallel.trainers_per_node {trainers}"
        )
    if machine.devices_per_node % trainers:
        raise ConfigError(
            f"--devices-per-node {machine.devices_per_node}: does not divide among the {trainers} trainers "
            f"of a node "
            "(parallel.trainers_per_node)"
        )
    if machine.nodes * trainers % config.parallel.trainers_per_replica:
        raise ConfigError(
            f"--nodes {machine.nodes}: its {machine.nodes * trainers} trainers do not divide into replicas "
            f"of "
            f"parallel.trainers_per_replica {config.parallel.trainers_per_replica}"
        )
    if steps(config, machine, config.train.batch_per_device) < 1:
        raise ConfigError(
            f"train.batch_per_device: {config.train.batch_per_device} images on each of "
            f"{devices_of_replica(config, machine)} devices are more than the {config.data.train_images} "
            f"training "
            "images: an epoch would have no whole batch"
        )


def replicas(config: Config, machine: Machine) -> int:
    """Replicas of the machine: one for each trainer, or for as many as train together."""
    return machine.nodes * config.parallel.trainers_per_node // config.parallel.trainers_per_replica


def devices_of_replica(config: Config, machine: Machine) -> int:
    """Devices that train one model together."""
    parallel = config.parallel
    return machine.devices_per_node // parallel.trainers_per_node * parallel.trainers_per_replica


def steps(config: Config, machine: Machine, batch: int) -> int:
    """Training steps of an epoch: whole batches alone."""
    return config.data.train_images // (batch * devices_of_replica(config, machine))


def read_machine(
    config: Config,
    nodes: int,
    devices_per_node: int,
    ranks_per_node: int,
    ops_per_device: float | None = None,
    images_per_second: float | None = None,
) -> Machine:
    """The machine that a command line describes; `images_per_second` are those that a device trains of the
    initial network, another way to say its rate."""
    if images_per_second is not None:
        ops_per_device = images_per_second * operations(Architecture(config.base))[0]
    return Machine(nodes, devices_per_node, ranks_per_node, ops_per_device)


# -- operations and time ---------------------------------------------------------------------------


def epoch_operations(config: Config, machine: Machine) -> int:
    """Operations of one epoch of the initial network and its validation."""
    train, val = operations(Architecture(config.base))
    batch = config.train.batch_per_device
    images = steps(config, machine, batch) * batch * devices_of_replica(config, machine)
    return train * images + val * config.data.val_images


def trials(config: Config, epoch_seconds: float, seconds: float, earliest: bool) -> int:
    """Whole trials of a replica in `seconds`: rounds 1, 2, ... with all their epochs, or as few as patience
    allows."""
    done, left, round_number = 0, seconds, 1
    while True:
        limits = budget(round_number, config.train)
        epochs = min(limits.epochs_max, limits.patience + 1) if earliest else limits.epochs_max
        following = budget(round_number + 1, config.train)
        if round_number >= len(config.train.round_epochs) and following == limits:
            # From here on all rounds are alike.
            return done + int(left / (epochs * epoch_seconds))
        if left < epochs * epoch_seconds:
            return done
        done, left, round_number = done + 1, left - epochs * epoch_seconds, round_number + 1


def records(config: Config, replicas: int, trials: int) -> tuple[int, int]:
    """Records of the history, at most, once each replica has begun `trials` trials; and how many candidates
    of the machine have been replaced by then, each of which takes as many records as one that is trained.

    Rejected candidates are not among them: a candidate is rejected where its counts differ, which is a fault.
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
    kept = "; one more for each whose weights are kept no longer" if config.model.inherits else ""
    yield Number(
        "time",
        "records of the history",
        needed,
        "records",
        f"{RECORDS_PER_CANDIDATE} for each of the most trials, for what is trained or waits at the end, and "
        f"for up to "
        f"{replaced} candidates that grow stale while they wait; none is rejected{kept}; of "
        f"parallel.history_capacity "
        f"{room}: {fits}",
    )


def _score(config: Config, machine: Machine, rate: float) -> Iterator[Number]:
    low, high = (part * rate * machine.nodes * machine.devices_per_node for part in TRAINING_PART)
    error = config.result.max_error
    yield Number(
        "score",
        "rate of the machine",
        (low, high),
        "op/s",
        f"all {machine.nodes * machine.devices_per_node} devices train in {TRAINING_PART[0]:.0%} to "
        f"{TRAINING_PART[1]:.0%} of the core time",
    )
    yield Number(
        "score",
        f"regulated at an error of {error:g}",
        (-math.log(error) * low, -math.log(error) * high) if 0 < error < 1 else (0.0, 0.0),
        "op/s",
        "-ln(error) x rate, at the largest error of an official result",
    )


def _node_hours(config: Config, machine: Machine) -> Iterator[Number]:
    wall = START_SECONDS + config.run.time_limit + DEFAULT_RESERVE
    yield Number(
        "time",
        "wall time to ask for",
        wall,
        "s",
        f"{START_SECONDS:g} s until core start, {config.run.time_limit:g} s, and {DEFAULT_RESERVE:g} s to "
        f"validate the "
        "best network again and write",
    )
    yield Number(
        "time",
        "node-hours",
        machine.nodes * wall / 3600,
        "h",
        "rank 0 shares the first node with its trainer",
    )


# -- memory and storage ----------------------------------------------------------------------------


def activation_bytes(config: Config) -> int:
    """Bytes that a training step keeps of one image for its backward pass: the input and the outputs of
    convolutions, ReLUs and poolings, in the precision of the activations (batch norms keep nothing else of an
    image)."""
    kinds = ("conv", "relu", "max_pool", "global_pool")
    kept = sum(
        math.prod(layer.out_shape) for layer in Architecture(config.base).layers() if layer.kind in kinds
    )
    image = config.data.image_size**2 * config.data.channels
    return (kept + image) * ACTIVATION_BYTES[config.train.precision]


def _memory(config: Config, machine: Machine) -> Iterator[Number]:
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
        f"summaries of {capacity} records, and {depth} candidates for each of {trainers} trainers: {windows}",
    )

    # The data that a host keeps, and what a device needs at least.
    if DATASETS[config.data.name].in_memory:
        images = config.data.train_images + config.data.val_images
        size = images * config.data.image_size**2 * config.data.channels
        yield Number(
            "memory",
            "images of a node",
            trainers * size,
            "byte",
            f"{images} images of 1 byte a value, in each of {trainers} trainers",
        )
    parameters = Architecture(config.base).parameters
    batches = [config.train.batch_per_device, *(config.hpo.batches if config.hpo.enabled else ())]
    need = [
        parameters * BYTES_PER_PARAMETER + batch * activation_bytes(config)
        for batch in (batches[0], max(batches))
    ]
    yield Number(
        "memory",
        "a device",
        (float(need[0]), float(need[1])),
        "byte",
        f"at least, without work space: {parameters} parameters with momentum and gradient, and what the "
        f"backward pass "
        f"keeps of {batches[0]} images ({max(batches)}, the largest batch that may be chosen); a step that "
        f"does not "
        "fit runs in parts",
    )
    largest = config.search.max_parameters * BYTES_PER_PARAMETER
    yield Number(
        "memory",
        "weights of the largest network on a device",
        largest,
        "byte",
        f"search.max_parameters {config.search.max_parameters}, with momentum and gradient",
    )


def _storage(config: Config, machine: Machine) -> Iterator[Number]:
    parts = storage(config, replicas(config, machine))
    bound = "an upper bound, for the output folder"
    yield Number(
        "storage",
        "checkpoints",
        parts.checkpoints,
        "byte",
        f"{bound}: each of {replicas(config, machine)} replicas keeps result.keep_checkpoints and one in "
        f"replacement",
    )
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


# -- in words --------------------------------------------------------------------------------------

#: Decimal prefixes by the power of ten, and binary ones by the power of 1024.
_DECIMAL, _BINARY = ("", "k", "M", "G", "T", "P", "E", "Z"), ("byte", "KiB", "MiB", "GiB", "TiB", "PiB")


def to_object(config: Config, machine: Machine, numbers: Sequence[Number]) -> dict[str, Any]:
    """The estimate as a JSON object: the machine, and every number with its unit and its assumption; whole
    numbers are exact."""
    return {
        "preset": config.run.preset,
        "machine": asdict(machine),
        "numbers": [asdict(number) for number in numbers],
    }


def to_text(machine: Machine, numbers: Sequence[Number], width: int) -> str:
    """The estimate as text of `width` columns: a line for each number, and below it what it rests on."""
    lines: list[str] = []
    for group, own in groupby(numbers, key=lambda number: number.group):
        lines += ["", group.capitalize()] if lines else [group.capitalize()]
        for number in own:
            lines.append(f"  {number.name:<44} {_shown(number)}")
            lines += wrap(number.assumption, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
    if machine.ops_per_device is None:
        lines += ["", "Time and score need the rate of a device: --ops-per-device or --images-per-second."]
    return "\n".join(lines)


def _shown(number: Number) -> str:
    if isinstance(number.value, tuple):
        low, high = (_scaled(value, number.unit) for value in number.value)
        return low if low == high else f"{low} to {high}"
    return _scaled(number.value, number.unit)


def _scaled(value: float, unit: str) -> str:
    """A number with a prefix to its unit where the unit takes one."""
    if unit == "byte":
        power = min(int(math.log(value, 1024)), len(_BINARY) - 1) if value >= 1 else 0
        return f"{value / 1024**power:.4g} {_BINARY[power]}"
    if unit not in ("op", "op/s"):
        return f"{value:,} {unit}" if isinstance(value, int) else f"{value:,.1f} {unit}"
    power = min(int(math.log10(value) // 3), len(_DECIMAL) - 1) if value >= 1 else 0
    return f"{value / 1000**power:.6g} {_DECIMAL[power]}{unit}"
