# SPDX-License-Identifier: Apache-2.0
"""When a run on ImageNet has the error of 30 % that an official result needs, from public learning curves.

No run of this recipe is published epoch by epoch, so the range comes from runs of other schedules, and is
wide (docs/training.md, "The time to the 30 % gate"). Two things decide when ResNet-50 passes 70 % top-1:

- Noise. A high learning rate keeps the error up; it falls when the rate does. Rates are given for 256 images:
  a batch of B images with the rate lr has the rate 256 lr / B.
- Learning. The rate, summed over epochs, must have been enough. This recipe does not raise the rate with the
  number of devices, so a replica of many devices learns little in an epoch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from aiperf_mpi.config import Config
from aiperf_mpi.network.architecture import Base
from aiperf_mpi.planning.estimate.machine import Machine, devices_of_replica
from aiperf_mpi.planning.estimate.number import Number
from aiperf_mpi.planning.walltime import DEFAULT_RESERVE
from aiperf_mpi.printable import counted
from aiperf_mpi.trials.budget import budget, learning_rate

#: The error for which the sources below were read.
GATE = 0.3

#: Images for which rates are given.
IMAGES = 256

#: The rate at which a run is at 70 % at the earliest: that of ResNet-50 v1 (label smoothing, batch 1024, lr
#: 0.4, cosine over 120 epochs, 5 of them warm-up) in its 90th epoch: 0.4 (1 + cos(84 pi / 115)) / 2 x 256 /
#: 1024 (GluonCV, dmlc/web-data, gluoncv/logs/classification/imagenet/resnet50_v1.log).
EARLY_RATE = 0.0169

#: The part of the initial rate at which every run is at 70 %. At a tenth of it two runs of steps (30, 60 and
#: 90 epochs) stay at 65 to 70 % for 30 epochs, and pass 71 % at a hundredth (GluonCV's first log of
#: resnet50_v1; tornadomeet/ResNet, log/resnet-50.log); others are there at a sixth.
LATE_PART = 0.05

#: Learning (rate x epochs) and top-1 of Goyal et al. 2017, Table 2a, batch 8192: lr 0.1 and 0.1 sqrt(32).
#: Their 90 epochs with steps at 30, 60 and 80 are 33.21 epochs of the initial rate.
LITTLE, ENOUGH = 33.21 * 0.1 * IMAGES / 8192, 33.21 * 0.1 * math.sqrt(32) * IMAGES / 8192
LITTLE_TOP1, ENOUGH_TOP1 = 0.5833, 0.7378

#: The same for the gate, between the two in its logarithm.
NEEDED = LITTLE * (ENOUGH / LITTLE) ** ((1 - GATE - LITTLE_TOP1) / (ENOUGH_TOP1 - LITTLE_TOP1))


def applies(config: Config) -> bool:
    """Return whether the sources say something of this run: ResNet-50, ImageNet, and the gate of 30 %."""
    return config.data.name == "imagenet" and config.base == Base() and config.result.max_error == GATE


def rate(config: Config, devices: int, epoch: int) -> float:
    """Return the learning rate of an epoch, counted from 0, for 256 images, with replicas of `devices`."""
    batch = config.train.batch_per_device * devices
    return learning_rate(config.train.lr, epoch, config.train.epochs) * IMAGES / batch


def learning(config: Config, devices: int, epochs: int) -> float:
    """Return the sum of the rates for 256 images over the first epochs."""
    return math.fsum(rate(config, devices, epoch) for epoch in range(epochs))


def epochs_to_gate(config: Config, devices: int) -> tuple[int, int | None] | None:
    """Return the epochs after which a trial is at the gate, at the earliest and at the latest.

    The latest is None where the learning of the schedule may not suffice; the whole is None where it is less
    than what was needed elsewhere.
    """
    total = config.train.epochs
    late_rate = LATE_PART * rate(config, devices, 0)
    early = _first(config, devices, EARLY_RATE, NEEDED)
    late = _first(config, devices, late_rate, ENOUGH)
    return None if early > total else (early, late if late <= total else None)


def _first(config: Config, devices: int, most_rate: float, least_learning: float) -> int:
    """Return the epochs after which rate and learning fit, or one more than the schedule has."""
    learnt = 0.0
    for epoch in range(config.train.epochs):
        now = rate(config, devices, epoch)
        learnt += now
        if now <= most_rate * (1 + 1e-9) and learnt >= least_learning:
            return epoch + 1
    return config.train.epochs + 1


def surest_devices(config: Config) -> int:
    """Return the most devices of a replica whose learning is enough, but at least 1."""
    return max(1, int(learning(config, 1, config.train.epochs) / ENOUGH))


def epochs_of_rounds(config: Config, epochs: int) -> int | None:
    """Return the epochs of a replica until a trial has trained `epochs` of them; None if no round has so
    many.

    The trials of the rounds before it train all of their epochs.
    """
    before = 0
    for number in range(1, len(config.train.round_epochs) + 1):
        most = budget(number, config.train).epochs_max
        if epochs <= most:
            return before + epochs
        before += most
    return None


def gate_numbers(
    config: Config, machine: Machine, epoch_seconds: float | None, start_seconds: float, least_part: float
) -> Iterator[Number]:
    """Estimate epochs, core time and node-hours until the gate; nothing where the sources do not apply.

    Arguments:
        epoch_seconds: seconds of an epoch, with its validation; None if the rate of a device is not known.
        start_seconds: seconds from the job's start to core start.
        least_part: part of the core time in which a replica trains, at least.
    """
    if not applies(config):
        return
    devices, surest = devices_of_replica(config, machine), surest_devices(config)
    found = epochs_to_gate(config, devices)
    yield _learning_number(config, devices, found)
    if found is not None:
        yield from _epochs_numbers(config, found)
    if epoch_seconds is None:
        return
    if found is not None and (seconds := _core_seconds(config, found, epoch_seconds, least_part)):
        yield from _time_numbers(config, machine, seconds, found[1] is not None, start_seconds)
    if surest < devices and (found := epochs_to_gate(config, surest)):
        longer = epoch_seconds * devices / surest
        if seconds := _core_seconds(config, found, longer, least_part):
            yield Number(
                "gate",
                f"core time with replicas of {counted(surest, 'device')}",
                seconds,
                "s",
                f"the largest replica whose learning is enough; an epoch then takes {longer:.4g} s, and the "
                f"machine has {devices // surest} times as many replicas",
            )


def _core_seconds(
    config: Config, found: tuple[int, int | None], epoch_seconds: float, least_part: float
) -> tuple[float, float] | None:
    """Return the core time to the gate, at the earliest and latest; None if all rounds are too short."""
    first, last = (epochs_of_rounds(config, epochs or config.train.epochs) for epochs in found)
    if first is None or last is None:
        return None
    return first * epoch_seconds, last * epoch_seconds / least_part


def _learning_number(config: Config, devices: int, found: tuple[int, int | None] | None) -> Number:
    """Say whether the schedule learns enough with replicas of so many devices."""
    if found is None:
        verdict = (
            "TOO LITTLE by these, so that the error may stay above 30 % and an official run be INVALID; use "
            "replicas of fewer devices (parallel.trainers_per_node), or a higher train.lr (division open)"
        )
    elif found[1] is None:
        verdict = "NOT SURE; replicas of fewer devices, or a higher train.lr (division open), are safer"
    else:
        verdict = "enough"
    return Number(
        "gate",
        "learning of the whole schedule",
        learning(config, devices, config.train.epochs),
        "rate x epochs",
        f"the learning rate for {IMAGES} images, summed over {config.train.epochs} epochs, with steps of "
        f"{config.train.batch_per_device * devices} images in a replica; {LITTLE:.2g} gave 58 % top-1 and "
        f"{ENOUGH:.2g} gave 74 % (Goyal et al. 2017, Table 2a), so 70 % needs about {NEEDED:.2g}: {verdict}",
    )


def _epochs_numbers(config: Config, found: tuple[int, int | None]) -> Iterator[Number]:
    """Count the epochs of a trial and of a replica until the gate."""
    early, late = found[0], found[1] or config.train.epochs
    yield Number(
        "gate",
        "epochs of a trial to an error of 30 %",
        (early, late),
        "epochs",
        "from public curves of ResNet-50 under other schedules: as soon as the rate is as low as where the "
        "first of them passed 70 %, or only where all had. Those runs have weight decay and a warm-up, and "
        "crop at random scales, so 10 epochs more or less are possible (docs/training.md)",
    )
    first, last = epochs_of_rounds(config, early), epochs_of_rounds(config, late)
    if first is not None and last is not None:
        rounds = ", ".join(map(str, config.train.round_epochs))
        yield Number(
            "gate",
            "epochs of a replica to an error of 30 %",
            (first, last),
            "epochs",
            f"rounds of {rounds} epochs, one after the other; a trial that patience stops too early makes it "
            f"one round later",
        )


def _time_numbers(
    config: Config, machine: Machine, seconds: tuple[float, float], sure: bool, start_seconds: float
) -> Iterator[Number]:
    """Compare the core time to the gate with the time limit, and count node-hours."""
    limit, (early, late) = config.run.time_limit, seconds
    if limit < early:
        verdict = "TOO SHORT: no trial gets there"
    elif limit < late:
        verdict = "it MAY BE TOO SHORT"
    else:
        verdict = "enough" if sure else "enough, if the learning is"
    yield Number(
        "gate",
        "core time to an error of 30 %",
        seconds,
        "s",
        f"run.time_limit is {limit:g} s: {verdict}. More nodes do not shorten it, as each replica trains "
        f"networks of its own; more devices in a replica do",
    )
    walls = [machine.nodes * (start_seconds + core + DEFAULT_RESERVE) / 3600 for core in seconds]
    yield Number(
        "gate",
        "node-hours to an error of 30 %",
        (walls[0], walls[1]),
        "h",
        f"{counted(machine.nodes, 'node')} for this core time, with start and end",
    )
