# SPDX-License-Identifier: Apache-2.0
"""What a run ran on, written down by the program: hardware, software, source, and the environment that matters.

It starts a process (git), so rank 0 takes it before MPI is initialised. Nothing here imports JAX or MPI.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from aiperf_mpi import __version__

#: Distributions whose versions say how fast and how right a run can be.
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
    "scikit-learn",
    "scikit-optimize",
    "jax-cuda12-plugin",
    "jax-cuda13-plugin",
    "jax-rocm7-plugin",
)

#: Environment variables that launchers, MPI, JAX and thread libraries listen to.
_RELEVANT = re.compile(
    r"^(AIPERF_MPI|SLURM|SRUN|PBS|PMI|PMIX|PALS|OMPI|PRTE|MPICH|MPIR|MV2|HYDRA|I_MPI|UCX|FI|NCCL|RCCL|JAX|XLA|CUDA|"
    r"NVIDIA|ROCR|HIP|HSA|GPU|OMP|KMP|GOMP|MKL|OPENBLAS|BLIS|NUMEXPR|MALLOC|HDF5)_|^(LD_PRELOAD|LD_LIBRARY_PATH)$"
)

#: Variables that may hold something that nobody else should read.
_SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|JWT|COOKIE|PRIVATE|(^|_)KEY(_|$)", re.IGNORECASE)

_GIT_SECONDS = 10


def inventory(environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Everything below as one dictionary that JSON can hold."""
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
    """The processor: model, architecture, cores and threads of the host, and those this process may use."""
    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = re.findall(r"^(?:model name|cpu|Processor)\s*:\s*(.+)$", info.read_text(errors="replace"), re.MULTILINE)
        model = names[0].strip() if names else model
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else psutil.cpu_count()
    return {
        "model": model,
        "architecture": platform.machine(),
        "cores": psutil.cpu_count(logical=False),
        "threads": psutil.cpu_count(),
        "usable": usable,
    }


def packages() -> dict[str, str]:
    """Versions of those PACKAGES that are installed, without importing any."""
    versions = {"aiperf_mpi": __version__}
    for name in PACKAGES:
        try:
            versions.setdefault(name, metadata.version(name))
        except metadata.PackageNotFoundError:
            continue  # an extra that this environment does not have
    return versions


def source(folder: Path | None = None) -> dict[str, Any]:
    """Commit and state of the source that runs: `commit` is empty where it is no git checkout, or git is missing.

    `dirty` is true where tracked files differ from the commit, and None where that is not known.
    """
    folder = folder or Path(__file__).resolve().parent.parent
    commit, status = _git(folder, "rev-parse", "HEAD"), None

    # A package installed below somebody else's checkout is not that checkout's source.
    if commit and _git(folder, "ls-files", "--error-unmatch", ".") is not None:
        status = _git(folder, "status", "--porcelain", "--untracked-files=no")
    if commit is None or status is None:
        return {"commit": "", "dirty": None}
    return {"commit": commit, "dirty": bool(status)}


def environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables that launchers, MPI, JAX and thread libraries listen to, less any that may be a secret."""
    return {
        name: value for name, value in sorted(environ.items()) if _RELEVANT.search(name) and not _SECRET.search(name)
    }


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints for `folder`, or None where it fails or is missing."""
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
