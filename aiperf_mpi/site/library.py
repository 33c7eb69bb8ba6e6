# SPDX-License-Identifier: Apache-2.0
"""Judge the MPI library of this Python and the launcher in the search path, without a launcher."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aiperf_mpi.planning.finding import Finding
from aiperf_mpi.site.child import not_known

SUBJECT = "MPI"

#: Seconds for `mpiexec --version`.
_VERSION_SECONDS = 5.0

#: Words in the version of a launcher -> the vendor as mpi4py names it.
_VENDORS = (
    ("Open MPI", ("Open MPI", "OpenRTE", "prte", "PRRTE")),
    ("Intel MPI", ("Intel(R) MPI",)),
    ("MVAPICH", ("MVAPICH",)),
    ("MPICH", ("HYDRA", "Hydra", "MPICH")),
)

_INSTALL = (
    "install one with pip install 'aiperf_mpi[mpich]', or on a cluster load its MPI's module and install "
    "mpi4py again"
)


def vendor_of(text: str) -> str:
    """Return the vendor of a launcher by the output of its `--version`, "" if it is not known."""
    return next((name for name, words in _VENDORS if any(word in text for word in words)), "")


def launcher_in_path() -> tuple[str, str]:
    """Return the mpiexec or mpirun in the search path and its vendor; "" for what is not known."""
    found = shutil.which("mpiexec") or shutil.which("mpirun")
    if found is None:
        return "", ""
    try:
        done = subprocess.run(
            [found, "--version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=_VERSION_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return found, ""
    return found, vendor_of((done.stdout + done.stderr).decode(errors="replace"))


def judge(told: Mapping[str, Any], command: str, path: tuple[str, str]) -> tuple[Finding, ...]:
    """Judge the library: `told` is the answer of a process that loaded it.

    `command` starts ranks with it, `path` is the launcher in the search path with its vendor.
    """
    if unknown := not_known(SUBJECT, told):
        return (unknown,)
    if error := told.get("error"):
        return (Finding("fail", SUBJECT, f"no MPI library: {' '.join(str(error).split())[:400]}", _INSTALL),)
    library = f"{told['vendor']} {told['version']}"
    launcher, vendor = path
    beside = Path(sys.executable).parent / "mpiexec"
    if not launcher and not beside.exists() and not shutil.which("srun"):
        text = f"{library}, but there is no mpiexec, mpirun or srun in PATH"
        return (Finding("fail", SUBJECT, text, f"add that of {library} to PATH"),)
    if vendor and vendor != told["vendor"]:
        text = f"the library is {library}, but {launcher} is that of {vendor}"
        if "libmpi" in (preloaded := os.environ.get("LD_PRELOAD", "")):
            why = f"LD_PRELOAD={preloaded} loads {library}, but {launcher} is that of {vendor}"
            return (Finding("fail", SUBJECT, why, "unset LD_PRELOAD"),)
        return (Finding("warn", SUBJECT, text, f"start the run by: {command}"),)
    return (Finding("ok", SUBJECT, f"{library}; start the run by: {command}"),)
