# SPDX-License-Identifier: Apache-2.0
"""Describe the hardware, software, source and environment of a run.

`inventory` describes rank 0's host and the program; it starts a process (git), so rank 0 takes it before
MPI's initialisation. `describe_node` describes a node's host. A missing value is replaced by the
reason: no function here raises for what the system does or leaves out. Nothing here imports JAX or MPI.
"""

from __future__ import annotations

import os
import platform
import re
import socket
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from aiperf_mpi import __version__
from aiperf_mpi.machine.accelerators import ACCELERATOR_SECONDS, Accelerators
from aiperf_mpi.machine.filesystems import file_systems
from aiperf_mpi.machine.interconnect import interfaces, rdma_devices
from aiperf_mpi.machine.rapl import Zone
from aiperf_mpi.machine.source import source
from aiperf_mpi.probe import NotKnown, probe

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

_SYSTEM = Path("/sys/devices/system")

_NOT_SHOWN = "not shown by the kernel"

#: Features of processors in /proc/cpuinfo, and the bits of their vectors.
_VECTORS = {"avx512f": 512, "avx2": 256, "avx": 256, "sse2": 128, "asimd": 128}


def inventory(environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Describe rank 0's host and the program as one dictionary that JSON can hold."""
    return {
        "hostname": probe("the host's name", socket.gethostname),
        "platform": probe("the platform", platform.platform),
        "kernel": probe("the kernel", platform.release),
        "python": platform.python_version(),
        "executable": sys.executable or "not known: Python does not tell its own path",
        "cpu": cpu(),
        "memory_bytes": probe("the memory", _memory_bytes),
        "packages": packages(),
        "source": source(),
        "environment": environment(environ),
    }


def cpu() -> dict[str, Any]:
    """Describe the processor: model, architecture, sockets, cores, threads, NUMA nodes, vectors and clock.

    `usable` is the number of threads that this process may use.
    """
    governor = _SYSTEM / "cpu/cpu0/cpufreq/scaling_governor"
    return {
        "model": probe("the processor's model", _model),
        "architecture": probe("the architecture", platform.machine),
        "sockets": probe("the sockets", _sockets),
        "cores": probe("the cores", psutil.cpu_count, False) or _NOT_SHOWN,
        "threads": probe("the threads", psutil.cpu_count) or _NOT_SHOWN,
        "usable": probe("the usable threads", _usable) or _NOT_SHOWN,
        "numa_nodes": probe("the NUMA nodes", _numa_nodes) or _NOT_SHOWN,
        "governor": probe("the governor", _read, governor),
        "max_mhz": probe("the clock", _mhz),
        "vector_bits": probe("the width of vectors", vector_bits) or _NOT_SHOWN,
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
    why_no_devices = accelerators.why
    found = probe("the accelerators", accelerators.describe, seconds=ACCELERATOR_SECONDS)
    if isinstance(found, NotKnown):
        why_no_devices, listed = str(found), []
    else:
        listed = found
    devices = [{key: value for key, value in one.items() if key != "uuid"} for one in listed]
    systems = file_systems(places)
    for system in systems.values():
        if isinstance(system, dict):
            system.pop("free_bytes")
    return {
        "kernel": probe("the kernel", platform.release),
        "cpu": {key: value for key, value in cpu().items() if key != "usable"},
        # In GiB, because equal nodes differ by some MiB.
        "memory_gib": probe("the memory", lambda: round(_memory_bytes() / 2**30)),
        "accelerators": devices or why_no_devices,
        "network": probe("the network interfaces", interfaces),
        "rdma": probe("the RDMA devices", rdma_devices),
        "file_systems": systems,
        "power": power_sources(devices, why_no_devices, zones, why_no_zones),
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


def _model() -> str:
    """Return the processor's model as the kernel names it."""
    info, names = Path("/proc/cpuinfo"), list[str]()
    if info.is_file():
        names = re.findall(
            r"^(?:model name|cpu|Processor)\s*:\s*(.+)$", info.read_text(errors="replace"), re.MULTILINE
        )
    return names[0].strip() if names else platform.processor() or _NOT_SHOWN


def vector_bits(root: Path = Path("/")) -> int:
    """Return the bits of the widest vectors that the processor announces below `root`; 0 for none."""
    info = (root / "proc/cpuinfo").read_text(errors="replace")
    announced = re.search(r"^(?:flags|Features)\s*:(.*)$", info, re.MULTILINE)
    features = set(announced[1].split()) if announced else set[str]()
    if "sve" in features:
        return 8 * int((root / "proc/sys/abi/sve_default_vector_length").read_text())
    return max((bits for feature, bits in _VECTORS.items() if feature in features), default=0)


def _usable() -> int | None:
    """Count the threads that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else psutil.cpu_count()


def _memory_bytes() -> int:
    """Return the memory of the host in bytes."""
    return int(psutil.virtual_memory().total)


def _sockets() -> int | str:
    """Count the processor packages of the host."""
    packages = {_read(path) for path in _SYSTEM.glob("cpu/cpu[0-9]*/topology/physical_package_id")}
    return len(packages) or _NOT_SHOWN


def _numa_nodes() -> int:
    """Count the NUMA nodes of the host."""
    return len(list(_SYSTEM.glob("node/node[0-9]*")))


def _mhz() -> float | str:
    """Return the highest clock of the processor in MHz, or the reason if it is not known.

    Without a range, as in virtual machines, it is the present clock to 10 MHz: it does not change there, and
    equal nodes remain equal.
    """
    known = psutil.cpu_freq()
    clock = (known.max or round(known.current, -1)) if known is not None else 0.0
    return clock or "not reported by the kernel"


def _read(path: Path) -> str:
    """Read a file of the kernel, or return the reason if it cannot be read."""
    try:
        return path.read_text(errors="replace").strip() or "not reported: the file is empty"
    except OSError as error:
        return f"not reported: {path}: {error.strerror}"


def packages() -> dict[str, str]:
    """Return the versions of the PACKAGES that are installed, without importing any."""
    versions = {"aiperf_mpi": __version__}
    for name in PACKAGES:
        version = probe(f"the version of {name}", _version, name)
        # An extra that this environment does not have is left out.
        if version is not None:
            versions.setdefault(name, version)
    return versions


def _version(name: str) -> str | None:
    """Return the version of an installed distribution, or None if it is not installed."""
    try:
        return str(metadata.version(name))
    except metadata.PackageNotFoundError:
        return None


def environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variables that launchers, MPI, JAX and thread libraries read, without possible secrets."""
    return {
        name: value
        for name, value in sorted(environ.items())
        if _RELEVANT.search(name) and not _SECRET.search(name)
    }
