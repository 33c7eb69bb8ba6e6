# SPDX-License-Identifier: Apache-2.0
"""Judge whether the memory that a job's ranks share can hold what they need, before they take it.

A rank that exceeds the limit of a control group is killed without a word. Refused is only what cannot fit:
the images, the smallest network, the windows, and the libraries.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from aiperf_mpi.config import Config
from aiperf_mpi.config.datasets import DATASETS, LABEL_BYTES
from aiperf_mpi.machine.limits import Level, levels
from aiperf_mpi.network.architecture import Architecture
from aiperf_mpi.planning.finding import Finding
from aiperf_mpi.planning.precision import precisions
from aiperf_mpi.planning.rank_resources import RankResources, place

SUBJECT = "memory"

#: Bytes that JAX takes in a process once it is imported: at least (measured 165 MB), and as a rule.
_LIBRARIES, _LIBRARIES_AS_A_RULE = 100e6, 500e6

#: Address space (ulimit -v) in bytes below which JAX does not start (measured: 1.34 GB fails, 1.43 GB works),
#: and below which threads or a compilation may fail later.
_ADDRESSES, _ADDRESSES_AS_A_RULE = 1.25e9, 4e9

#: Address space in bytes that tracing a training step takes, and for each core, whose threads have stacks and
#: heaps (measured with two cores: 1.54 GB aborts, 1.59 GB works).
_TRACING, _TRACING_PER_CORE = 1.6e9, 40e6

#: Part of what is free that a run may need before a warning.
_TIGHT = 0.8

#: Bytes of a parameter on a device: its value, momentum and gradient in float32.
BYTES_PER_PARAMETER = 12

#: Bytes of an activation by precision.
ACTIVATION_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class Need:
    """What a rank needs, such as bytes in addition to what it has: at least, and as a rule."""

    least: float = 0.0
    as_a_rule: float = 0.0


def need_of(config: Config, rank: RankResources) -> Need:
    """Return what a rank will take from the memory of its host. The coordinator takes next to nothing."""
    if rank.role == "generator":
        return Need(_LIBRARIES, _LIBRARIES_AS_A_RULE)
    if rank.role != "trainer":
        return Need()
    images = image_bytes(config)
    network = Architecture(config.base).parameters * BYTES_PER_PARAMETER if rank.on_cpu else 0
    kept = activation_bytes(config, precisions(config, "cpu")[0]) if rank.on_cpu else 0
    batch = config.train.batch_per_device * kept
    return Need(images + network + _LIBRARIES, images + network + batch + _LIBRARIES_AS_A_RULE)


def image_bytes(config: Config) -> int:
    """Return the bytes that each trainer holds in memory for its images; 0 for a set that is read as needed.

    Of images that a step makes they are the labels.
    """
    data, limits = config.data, DATASETS[config.data.name]
    if limits.made:
        return (data.train_images + data.val_images) * LABEL_BYTES
    if not limits.in_memory:
        return 0
    return (data.train_images + data.val_images) * data.image_size**2 * data.channels


def activation_bytes(config: Config, precision: str) -> int:
    """Return the bytes that a training step keeps of one image for its backward pass.

    These are the input and the outputs of convolutions, ReLUs and poolings, in the `precision` of the
    activations; batch norms keep nothing else of an image.
    """
    kinds = ("conv", "relu", "max_pool", "global_pool")
    kept = sum(
        math.prod(layer.out_shape) for layer in Architecture(config.base).layers() if layer.kind in kinds
    )
    image = config.data.image_size**2 * config.data.channels
    return (kept + image) * ACTIVATION_BYTES[precision]


def judge(
    everyone: Sequence[RankResources], config: Config, windows: Mapping[str, int]
) -> tuple[Finding, ...]:
    """Return a failure for each limit that cannot hold what its ranks need, a warning for each tight one.

    `everyone` are all ranks, `windows` the bytes of the windows on each host.
    """
    found = [_judge_limit(level, ranks, config, windows) for level, ranks in limits(everyone)]
    found = [one for one in found if one is not None and one.level != "ok"]
    return tuple(dict.fromkeys(found)) or (_fine(everyone),)  # type: ignore[arg-type]


def limits(
    everyone: Iterable[RankResources], kind: str = "memory"
) -> list[tuple[Level, list[RankResources]]]:
    """Return each limit with its ranks: those of a host, or the one whose own limit it is.

    `kind` is the attribute of RankResources that has the limits.
    """
    found: dict[tuple[str, str, int], tuple[Level, list[RankResources]]] = {}
    for one in everyone:
        for level in getattr(one, kind):
            key = one.host, level.name, -1 if level.shared else one.rank
            known, ranks = found.get(key, (level, []))
            ranks.append(one)
            found[key] = (level if level.free < known.free else known, ranks)
    return list(found.values())


def _judge_limit(
    level: Level, ranks: Sequence[RankResources], config: Config, windows: Mapping[str, int]
) -> Finding | None:
    """Judge one limit; None where it is wide enough."""
    if level.name == "ulimit -v":
        return _judge_addresses(level, ranks[0], config)
    needs = [need_of(config, one) for one in ranks]
    shared = windows.get(ranks[0].host, 0) if level.shared else 0
    least, as_a_rule = (
        shared + sum(getattr(need, kind) for need in needs) for kind in ("least", "as_a_rule")
    )
    where = place([one.rank for one in ranks], [one.host for one in ranks])
    trainers = sum(one.role == "trainer" for one in ranks)
    left = f"{level.name} leaves {_size(level.free)} of {_size(level.limit)}"
    parts = f"{_size(trainers * image_bytes(config))} of them images, {_size(shared)} windows"
    if least > level.free:
        return Finding(
            "fail",
            SUBJECT,
            f"{where}: at least {_size(least)} are needed ({parts}), but {left}",
            _remedy(level),
        )
    if as_a_rule > _TIGHT * level.free:
        text = f"{where}: about {_size(as_a_rule)} are needed ({parts}), and {left}"
        return Finding("warn", SUBJECT, text, _remedy(level))
    return None


def _judge_addresses(level: Level, one: RankResources, config: Config) -> Finding | None:
    """Judge the limit on the address space, which counts what is reserved too."""
    if one.role not in ("trainer", "generator"):
        return None
    need, where = need_of(config, one), place([one.rank], [one.host])
    text = f"{where}: ulimit -v is {_size(level.limit)}, but JAX alone reserves {_size(_ADDRESSES)} at least"
    if level.limit < _ADDRESSES + need.least - _LIBRARIES:
        return Finding("fail", SUBJECT, text, "ulimit -v unlimited, before the launcher and on each host")
    if level.limit < _ADDRESSES_AS_A_RULE + need.as_a_rule - _LIBRARIES_AS_A_RULE or not one.on_cpu:
        text = f"{where}: ulimit -v is {_size(level.limit)}, but JAX reserves more than it uses"
        return Finding("warn", SUBJECT, text, "ulimit -v unlimited, before the launcher and on each host")
    return None


def too_small_to_trace(instead: str, found: Iterable[Level] | None = None) -> str:
    """Return why this process cannot trace a training step within its address space, or "".

    JAX would abort in the middle of it. `instead` is what else the user may do; `found` are the limits
    of this process, read now if not given.
    """
    need = _TRACING + _TRACING_PER_CORE * len(os.sched_getaffinity(0))
    for level in levels() if found is None else found:
        if level.name == "ulimit -v" and level.limit < need:
            return (
                f"ulimit -v is {_size(level.limit)}, but JAX reserves {_size(need)} to trace a step of "
                f"training; set ulimit -v unlimited, or {instead}"
            )
    return ""


def _remedy(level: Level) -> str:
    """Return what gives more memory at this level, or needs less."""
    less = "start fewer ranks on a host, or lower train.batch_per_device or data.train_images"
    if not level.shared:
        return f"{level.name} unlimited, before the launcher and on each host"
    if "cgroup" in level.name:
        more = "ask the batch system or the container for more (Slurm --mem=0, PBS mem=, docker --memory)"
        return f"{more}, {less}"
    return less


def _fine(everyone: Sequence[RankResources]) -> Finding:
    least = min((level.free for one in everyone for level in one.memory), default=0)
    if not any(one.memory for one in everyone):
        text = "the memory of this host is not known, as /proc/meminfo cannot be read: it is not compared"
        return Finding(
            "warn", SUBJECT, text, "mount /proc (mount -t proc proc /proc), or start a container with it"
        )
    return Finding("ok", SUBJECT, f"{_size(least)} or more are free for the ranks of a host")


def _size(number: float) -> str:
    """Format bytes."""
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.0f} MiB"
