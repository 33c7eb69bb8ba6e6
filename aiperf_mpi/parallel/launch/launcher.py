# SPDX-License-Identifier: Apache-2.0
"""Under which launcher we run, what it promised, and what to type instead when it cannot be kept.

Nothing here needs a running MPI. A launcher of another MPI than Python's starts N processes of which every
one believes that it is alone; the environment says how many there should have been.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from aiperf_mpi.launchers import LAUNCHERS, PMIX_RANK

#: The command that every message ends with.
COMMAND = "python -m aiperf_mpi"


class LaunchError(RuntimeError):
    """The job cannot run as it was launched. Raised alike on all ranks; the message says what to type."""


@dataclass(frozen=True, slots=True)
class Launcher:
    """What the environment says before MPI starts; `size` and `rank` are None where it says nothing."""

    name: str
    size: int | None = None
    rank: int | None = None

    @property
    def speaks(self) -> bool:
        """Whether this process is the one that prints when every process believes that it is alone."""
        return not self.rank


def detect(environ: Mapping[str, str] = os.environ) -> Launcher:
    """The launcher of this process by its environment; `Launcher("none")` where there is no sign of one."""
    for name, size, rank in LAUNCHERS:
        if environ.get(size, "").isdigit():
            place = environ.get(rank, "")
            # srun sets PMI_SIZE too: name it as the one that was typed.
            shown = (
                "srun" if name.startswith("mpiexec") and "PMI_FD" in environ and _by_srun(environ) else name
            )
            return Launcher(shown, int(environ[size]), int(place) if place.isdigit() else None)
    if environ.get(PMIX_RANK, "").isdigit():
        return Launcher("a PMIx launcher", None, int(environ[PMIX_RANK]))
    return Launcher("none")


def _by_srun(environ: Mapping[str, str]) -> bool:
    return "SLURM_STEP_NUM_TASKS" in environ and "HYDI_CONTROL_FD" not in environ


def check_library(launcher: Launcher, library: str, environ: Mapping[str, str] = os.environ) -> None:
    """Raises LaunchError where `library` (mpi4py's vendor name) is known to end or to print errors in its
    initialisation under this launcher; other mismatches show afterwards, in the size (`check_size`)."""
    # MPICH built with PMIx does run under Open MPI's launcher: who has that one says so in MPICH's own
    # variable.
    foreign = (
        library == "MPICH" and "OMPI_COMM_WORLD_SIZE" in environ and "MPIR_CVAR_PMI_VERSION" not in environ
    )
    foreign |= (
        library == "Open MPI" and "HYDI_CONTROL_FD" in environ and "OMPI_COMM_WORLD_SIZE" not in environ
    )
    if foreign:
        raise LaunchError(_wrong_launcher(launcher, library))


def check_size(launcher: Launcher, library: str, world_size: int) -> None:
    """Raises LaunchError where COMM_WORLD has another size than the launcher started, or just one rank."""
    promised = launcher.size
    if promised is not None and promised != world_size:
        if world_size == 1:
            raise LaunchError(_wrong_launcher(launcher, library))
        raise LaunchError(
            f"{launcher.name} says that it started {promised} ranks, but MPI (the library is {library}) sees "
            f"{world_size}. Start all ranks by one command: {how_to_launch(library)}"
        )
    if world_size < 2:
        raise LaunchError(
            "there is 1 rank, but a run needs at least 2: one keeps the history and the time, the others "
            "train. "
            f"Type: {how_to_launch(library)}"
        )


def _wrong_launcher(launcher: Launcher, library: str) -> str:
    count = "1 rank" if launcher.size == 1 else f"{launcher.size} ranks"
    return (
        f"{launcher.name} started {count}, but to MPI each of them is alone: the launcher and Python's MPI "
        f"library "
        f"({library}) do not belong together. Type: {how_to_launch(library, launcher)}"
    )


def how_to_launch(
    library: str, launcher: Launcher | None = None, environ: Mapping[str, str] = os.environ
) -> str:
    """The command line that fits this Python's MPI library, with the launcher that lies beside it if one
    does."""
    size = launcher.size if launcher is not None and launcher.size and launcher.size > 1 else "N"
    if "SLURM_JOB_ID" in environ and library == "MPICH" and (launcher is None or launcher.name != "srun"):
        return f"srun --mpi=pmi2 -n {size} {COMMAND}"
    beside = Path(sys.executable).parent / "mpiexec"
    if beside.exists():
        return f"{beside} -n {size} {COMMAND}"
    return f"mpirun -n {size} {COMMAND}, with the mpirun of {library}"
