# SPDX-License-Identifier: Apache-2.0
"""The environment of a role before JAX is imported: which devices this process may see.

JAX reads `JAX_PLATFORMS` at import. A process that has initialised an accelerator keeps a share of its
memory, so the coordinator and the generators never see one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from aiperf_mpi.environment.devices import CUDA, HIP, ROCR, visible_devices
from aiperf_mpi.parallel.launch.launcher import LaunchError
from aiperf_mpi.parallel.launch.placement import TRAINER, Place

_HOST_DEVICES = "--xla_force_host_platform_device_count"

#: Whether the processes of a cluster divide the tuning of a program among them (XLA's GPU compiler).
_SHARDED_TUNING = "--xla_gpu_shard_autotuning"


def local_devices(environ: Mapping[str, str] = os.environ, root: Path = Path("/")) -> tuple[str, ...]:
    """Return the names of this host's accelerators that this process may use, as its variable names them."""
    return visible_devices(environ, root)


def host_share(
    places: Sequence[Place], rank: int, offers: Sequence[Sequence[str]]
) -> tuple[int, tuple[Sequence[str], ...]]:
    """Return the index of a trainer among those of its host, and the devices that each of them was offered.

    Nodes that --ranks-per-node cuts from one host share its devices. `offers` are the `local_devices` of all
    ranks.
    """
    host = places[rank].host
    trainers = [place.rank for place in places if place.host == host and place.role == TRAINER]
    return trainers.index(rank), tuple(offers[trainer] for trainer in trainers)


def role_environment(
    role: str,
    trainer: int = 0,
    offers: Sequence[Sequence[str]] = ((),),
    host_devices: int = 0,
    environ: Mapping[str, str] = os.environ,
    *,
    together: bool = False,
) -> dict[str, str]:
    """Return the variables to set before JAX is imported.

    Arguments:
        role: "coordinator", "trainer" or "generator".
        trainer: index of this trainer among those of its host; with `host_devices`, of its node.
        offers: `local_devices` of each of these trainers, in their order.
        host_devices: devices of the node that the CPU emulates (for tests); 0 leaves them to JAX.
        environ: the present variables; their XLA flags are kept.
        together: whether the replica has several trainers.

    Raises LaunchError where the devices cannot be divided among the trainers.
    """
    if role != TRAINER:
        return {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "", "ROCR_VISIBLE_DEVICES": ""}
    trainers = len(offers)
    if host_devices:
        share = _share(trainer, trainers, [str(i) for i in range(host_devices)])
        flags = [flag for flag in environ.get("XLA_FLAGS", "").split() if not flag.startswith(_HOST_DEVICES)]
        return {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join([*flags, f"{_HOST_DEVICES}={len(share)}"])}

    mine = list(offers[trainer])
    flags_of_tuning = _tuned_apart(environ) if together and mine else {}

    # Nothing to divide: the launcher gave each trainer its own devices, or the host has one trainer.
    if trainers == 1 or not mine or len({tuple(offer) for offer in offers}) == trainers:
        return flags_of_tuning
    if len(mine) == 1 and _bound_by_slurm(environ):
        return flags_of_tuning
    nvidia = Path("/dev/nvidiactl").exists()
    order = (CUDA,) if nvidia else (ROCR, HIP, CUDA)
    variable = next((name for name in order if name in environ), order[0])
    share = _share(trainer, trainers, mine)
    values = {variable: ",".join(share)}
    if variable == ROCR and (HIP in environ or CUDA in environ):
        # HIP counts from what ROCr leaves, and reads CUDA's variable where its own is not set.
        values[HIP] = ",".join(str(place) for place in range(len(share)))
    return {**flags_of_tuning, **values}


def _tuned_apart(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the XLA flag by which each process tunes its programs alone.

    By default the processes divide the tuning and exchange its results while they compile. A process that has
    the program in its cache would not take part, and the others would wait for it.
    """
    flags = environ.get("XLA_FLAGS", "").split()
    if any(flag.startswith(_SHARDED_TUNING) for flag in flags):
        return {}
    return {"XLA_FLAGS": " ".join([*flags, f"{_SHARDED_TUNING}=false"])}


def _bound_by_slurm(environ: Mapping[str, str]) -> bool:
    """Return whether Slurm gives each task its own device, under the same number 0, by a control group."""
    return "SLURM_GPUS_PER_TASK" in environ or "SLURM_TRES_PER_TASK" in environ


def _share(trainer: int, trainers: int, devices: Sequence[str]) -> Sequence[str]:
    if not devices or len(devices) % trainers:
        raise LaunchError(
            f"{len(devices)} devices ({','.join(devices[:16])}) do not divide among the {trainers} trainers "
            "of a node or, with --ranks-per-node, of a host: set parallel.trainers_per_node to a number that "
            "divides them, or start fewer nodes on a host"
        )
    each = len(devices) // trainers
    return devices[trainer * each : (trainer + 1) * each]
