# SPDX-License-Identifier: Apache-2.0
"""Describe the hardware, software, source and environment of a run.

`inventory` describes rank 0's host and the program; it starts a process (git), so rank 0 takes it before
MPI's initialisation. `describe_node` describes a node's host. A missing value is replaced by the
reason. Nothing here imports JAX or MPI.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from aiperf_mpi import __version__
from aiperf_mpi.machine.accelerators import Accelerators
from aiperf_mpi.machine.filesystems import file_systems
from aiperf_mpi.machine.interconnect import interfaces, rdma_devices
from aiperf_mpi.machine.rapl import Zone

#: Distributions whose versions affect the speed or the correctness of a run.
PACKAGES = (
    "aiperf_mpi",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "numpy",
    "scipy",
    "h5py",
    "mpi4py",
    "mpich",
    "openmpi",
    "psutil",
    "nvidia-ml-py",
    "scikit-learn",
    "scikit-optimize",
    "jax-cuda12-plugin",
    "jax-cuda13-plugin",
    "jax-rocm7-plugin",
)

#: Environment variables that launchers, MPI, JAX and thread libraries read.
_RELEVANT = re.compile(
    r"^(AIPERF_MPI|SLURM|SRUN|PBS|PMI|PMIX|PALS|OMPI|PRTE|MPICH|MPIR|MV2|HYDRA|I_MPI|UCX|FI|NCCL|RCCL|JAX|XLA|CUDA|"
    r"NVIDIA|ROCR|HIP|HSA|GPU|OMP|KMP|GOMP|MKL|OPENBLAS|BLIS|NUMEXPR|MALLOC|HDF5)_|^(LD_PRELOAD|LD_LIBRARY_PATH)$"
)

#: Variables that may contain a secret.
_SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|JWT|COOKIE|PRIVATE|(^|_)KEY(_|$)", re.IGNORECASE)

_GIT_SECONDS = 10

_SYSTEM = Path("/sys/devices/system")


def inventory(environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Describe rank 0's host and the program as one dictionary that JSON can hold."""
    return {
        "hostname": socket.gethostname(),
        "platform": platform.platform(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "executable": sys.executable,
        "cpu": cpu(),
        "memory_bytes": psutil.virtual_memory().total,
        "packages": packages(),
        "source": source(),
        "environment": environment(environ),
    }


def cpu() -> dict[str, Any]:
    """Describe the processor: model, architecture, sockets, cores, threads, NUMA nodes and clock.

    `usable` is the number of threads that this process may use.
    """
    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = re.findall(
            r"^(?:model name|cpu|Processor)\s*:\s*(.+)$", info.read_text(errors="replace"), re.MULTILINE
        )
        model = names[0].strip() if names else model
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else psutil.cpu_count()
    return {
        "model": model,
        "architecture": platform.machine(),
        "sockets": _sockets(),
        "cores": psutil.cpu_count(logical=False),
        "threads": psutil.cpu_count(),
        "usable": usable,
        "numa_nodes": len(list(_SYSTEM.glob("node/node[0-9]*"))) or "not shown by the kernel",
        "governor": _read(_SYSTEM / "cpu/cpu0/cpufreq/scaling_governor"),
        "max_mhz": _mhz(),
    }


def describe_node(
    places: Mapping[str, str], accelerators: Accelerators, zones: Sequence[Zone], why_no_zones: str
) -> dict[str, Any]:
    """Describe a node without its names, so that equal nodes have equal descriptions and are stored once.

    Arguments:
        places: paths whose file systems are described, by name.
        accelerators: the node's accelerators; their UUIDs are left out, as /ranks has them.
        zones, why_no_zones: energy counters of the processors, or the reason if there are none.
    """
    devices = [{key: value for key, value in one.items() if key != "uuid"} for one in accelerators.describe()]
    systems = file_systems(places)
    for system in systems.values():
        if isinstance(system, dict):
            system.pop("free_bytes")
    return {
        "kernel": platform.release(),
        "cpu": {key: value for key, value in cpu().items() if key != "usable"},
        # In GiB, because equal nodes differ by some MiB.
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "accelerators": devices or accelerators.why,
        "network": interfaces(),
        "rdma": rdma_devices(),
        "file_systems": systems,
        "power": power_sources(devices, accelerators.why, zones, why_no_zones),
    }


def power_sources(
    devices: Sequence[Mapping[str, Any]], why_no_devices: str, zones: Sequence[Zone], why_no_zones: str
) -> str:
    """Return a text that names the sources of a node's power readings, or the reason if there is none."""
    sources = []
    if devices:
        counters = all(device["energy_counter"] is True for device in devices)
        sources.append(
            f"{'energy counters' if counters else 'power readings'} of {len(devices)} accelerators"
        )
    if zones:
        sources.append(f"RAPL of {', '.join(zone.name for zone in zones)}")
    return " and ".join(sources) or "; ".join(filter(None, (why_no_devices, why_no_zones)))


def _sockets() -> int | str:
    """Count the processor packages of the host."""
    packages = {_read(path) for path in _SYSTEM.glob("cpu/cpu[0-9]*/topology/physical_package_id")}
    return len(packages) or "not shown by the kernel"


def _mhz() -> float | str:
    """Return the highest clock of the processor in MHz, or the reason if it is not known."""
    known = psutil.cpu_freq()
    return known.max if known is not None and known.max else "not reported by the kernel"


def _read(path: Path) -> str:
    """Read a file of the kernel, or return the reason if it cannot be read."""
    try:
        return path.read_text().strip()
    except OSError as error:
        return f"not reported: {path}: {error.strerror}"


def packages() -> dict[str, str]:
    """Return the versions of the PACKAGES that are installed, without importing any."""
    versions = {"aiperf_mpi": __version__}
    for name in PACKAGES:
        try:
            versions.setdefault(name, metadata.version(name))
        except metadata.PackageNotFoundError:
            continue  # an extra that this environment does not have
    return versions


def source(folder: Path | None = None) -> dict[str, Any]:
    """Return commit and state of the source that runs.

    `commit` is empty if the source is not a git checkout, or git is missing. `dirty` is true if tracked files
    differ from the commit, and None if that is not known.
    """
    folder = folder or Path(__file__).resolve().parent.parent
    commit, status = _git(folder, "rev-parse", "HEAD"), None

    # A package installed inside another project's checkout is not part of its source.
    if commit and _git(folder, "ls-files", "--error-unmatch", ".") is not None:
        status = _git(folder, "status", "--porcelain", "--untracked-files=no")
    if commit is None or status is None:
        return {"commit": "", "dirty": None}
    return {"commit": commit, "dirty": bool(status)}


def environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variables that launchers, MPI, JAX and thread libraries read, without possible secrets."""
    return {
        name: value
        for name, value in sorted(environ.items())
        if _RELEVANT.search(name) and not _SECRET.search(name)
    }


def _git(folder: Path, *arguments: str) -> str | None:
    """Return the output of git for `folder`, or None if git fails or is missing."""
    if shutil.which("git") is None:
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=_GIT_SECONDS,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except subprocess.TimeoutExpired:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
