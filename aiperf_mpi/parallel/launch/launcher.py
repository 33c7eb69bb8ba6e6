# SPDX-License-Identifier: Apache-2.0
"""Detect the launcher, compare its number of ranks with MPI's, and name the right command if they differ.

Nothing here needs a running MPI. A launcher of another MPI than Python's starts N processes, and in each of
them MPI sees a single rank; the environment holds the number that the launcher started.
"""

from __future__ import annotations

import os
import shlex
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from aiperf_mpi.ending import Refusal
from aiperf_mpi.launchers import LAUNCHERS, PMIX_RANK, local_size
from aiperf_mpi.planning.shared_memory import mounting
from aiperf_mpi.printable import counted

#: Most characters of a command that a message shows whole.
_MOST_COMMAND = 600


#: Bytes of shared memory that MPICH writes in its initialisation, for each rank of a host and once (measured:
#: 2 ranks fail in 2 MiB and start in 3, 4 ranks fail in 4 MiB and start in 6).
ROOM_BYTES = 2**20


class LaunchError(Refusal, RuntimeError):
    """The job cannot run as it was launched. Raised alike on all ranks; the message names the remedy."""


@dataclass(frozen=True, slots=True)
class Launcher:
    """The launcher, size and rank in the environment before MPI starts; None where it names none."""

    name: str
    size: int | None = None
    rank: int | None = None

    @property
    def speaks(self) -> bool:
        """Whether this process prints the messages of a job in which MPI does not connect the ranks."""
        return not self.rank


def detect(environ: Mapping[str, str] = os.environ) -> Launcher:
    """Return the launcher of this process by its environment; `Launcher("none")` if it shows none."""
    for name, size, rank in LAUNCHERS:
        if environ.get(size, "").isdigit():
            place = environ.get(rank, "")
            # srun sets PMI_SIZE too; name the command that the user typed.
            shown = (
                "srun" if name.startswith("mpiexec") and "PMI_FD" in environ and _by_srun(environ) else name
            )
            return Launcher(shown, int(environ[size]), int(place) if place.isdigit() else None)
    if environ.get(PMIX_RANK, "").isdigit():
        return Launcher("a PMIx launcher", None, int(environ[PMIX_RANK]))
    return Launcher("none")


def _by_srun(environ: Mapping[str, str]) -> bool:
    return "SLURM_STEP_NUM_TASKS" in environ and not _by_hydra(environ)


def _by_hydra(environ: Mapping[str, str]) -> bool:
    """Return whether MPICH's mpiexec started this process; by srun it has Slurm's variables too."""
    return any(name in environ for name in ("HYDI_CONTROL_FD", "PMI_HOSTNAME", "MPI_LOCALRANKID"))


def check_library(launcher: Launcher, library: str, environ: Mapping[str, str] = os.environ) -> None:
    """Raise LaunchError where `library` is known to fail in its initialisation under this launcher.

    `library` is mpi4py's vendor name. Other mismatches show after the initialisation, in the size (see
    `check_size`).
    """
    # MPICH built with PMIx does run under Open MPI's launcher; its users set MPICH's own variable.
    foreign = (
        library == "MPICH" and "OMPI_COMM_WORLD_SIZE" in environ and "MPIR_CVAR_PMI_VERSION" not in environ
    )
    foreign |= library == "Open MPI" and _by_hydra(environ) and "OMPI_COMM_WORLD_SIZE" not in environ
    if foreign:
        raise LaunchError(_wrong_launcher(launcher, library, environ))
    if library == "MPICH" and "MPIR_CVAR_NOLOCAL" not in environ:
        check_room(local_size(environ))


def check_room(ranks: int, folder: str = "/dev/shm") -> None:
    """Raise LaunchError where MPICH's own shared memory for `ranks` ranks of this host does not fit.

    Its initialisation would end a rank by SIGBUS, wait for ever, or abort. What other ranks of this
    job have taken already counts as free: files of this user that are not older than
    the process that started this rank.
    """
    if ranks > 1 and not os.path.isdir(folder):
        raise LaunchError(
            f"host {socket.gethostname()}: there is no {folder}, in which MPICH keeps the shared memory of "
            f"{ranks} ranks; mount it: {mounting(folder)}"
        )
    try:
        stat, begun = os.statvfs(folder), _begun(os.getppid())
        with os.scandir(folder) as entries:
            files = [entry.stat() for entry in entries if entry.name.startswith("mpich")]
    except OSError:
        return
    if ranks > 1 and stat.f_flag & os.ST_RDONLY:
        raise LaunchError(
            f"host {socket.gethostname()}: {folder} is mounted read-only, but MPICH keeps the shared memory "
            f"of {ranks} ranks there; mount it for writing (mount -o remount,rw {folder})"
        )
    own = sum(one.st_blocks * 512 for one in files if one.st_uid == os.geteuid() and one.st_mtime >= begun)
    free, need = stat.f_bavail * stat.f_frsize + own, (ranks + 1) * ROOM_BYTES
    if free < need:
        mib = -(-need // 2**20)
        raise LaunchError(
            f"host {socket.gethostname()}: {folder} has {free / 2**20:.0f} MiB free, but MPICH takes {mib} "
            f"MiB for {counted(ranks, 'rank')} before the run takes its own; enlarge it (mount -o "
            f"remount,size={64 + mib}m {folder}; in a container: docker run --shm-size={64 + mib}m)"
        )


def _begun(pid: int) -> float:
    """Return when a process began, in seconds since 1970; infinity where the system does not tell it."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return float("inf")
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")


def check_size(launcher: Launcher, library: str, world_size: int) -> None:
    """Raise LaunchError where the size of COMM_WORLD is not what the launcher started, or is 1."""
    promised = launcher.size
    if promised is not None and promised != world_size:
        if world_size == 1:
            raise LaunchError(_wrong_launcher(launcher, library))
        raise LaunchError(
            f"{launcher.name} started {promised} ranks, but MPI (the library is {library}) sees "
            f"{world_size}. Start all ranks by one command: {how_to_launch(library)}"
        )
    if world_size < 2:
        raise LaunchError(
            "there is 1 rank, but a run needs at least 2: one keeps the history and the time, the others "
            f"train. Type: {how_to_launch(library)}"
        )


def _wrong_launcher(launcher: Launcher, library: str, environ: Mapping[str, str] = os.environ) -> str:
    count = counted(launcher.size, "rank") if launcher.size is not None else "ranks"
    return (
        f"{launcher.name} started {count}, but to MPI each of them is alone: the launcher and Python's MPI "
        f"library ({library}) do not belong together. {_other_causes(launcher, environ)}Type: "
        f"{how_to_launch(library, launcher)}"
    )


def _other_causes(launcher: Launcher, environ: Mapping[str, str]) -> str:
    """Return what else makes them differ: a preloaded library, or variables that another job has left."""
    preloaded = environ.get("LD_PRELOAD", "")
    if "libmpi" in preloaded:
        return f"LD_PRELOAD={preloaded} loads an MPI library: unset it. "
    names = next(([size, rank] for name, size, rank in LAUNCHERS if name == launcher.name), [])
    if left := [name for name in (*names, PMIX_RANK) if name in environ]:
        unset = f"unset {' '.join(left)}"
        return f"If {launcher.name} did not start this process, another job has left variables: {unset}. "
    return ""


def command(words: Sequence[str] | None = None) -> str:
    """Return the command of the run as a shell reads it: this Python, and the options of this process.

    `words` are the arguments of the program. Of `doctor` the options of the run remain.
    """
    words = list(sys.argv[1:] if words is None else words)
    if words[:1] == ["doctor"]:
        words = [word for word in words[1:] if word != "--json"]
    text = shlex.join([sys.executable, "-m", "aiperf_mpi", *words])
    if len(text) <= _MOST_COMMAND:
        return text
    return f"{shlex.join([sys.executable, '-m', 'aiperf_mpi'])} ... (with the same options)"


def how_to_launch(
    library: str, launcher: Launcher | None = None, environ: Mapping[str, str] = os.environ
) -> str:
    """Return a command line for this Python's MPI library, with the launcher next to Python if there is
    one."""
    size = launcher.size if launcher is not None and launcher.size and launcher.size > 1 else "N"
    if "SLURM_JOB_ID" in environ and library == "MPICH" and (launcher is None or launcher.name != "srun"):
        return f"srun --mpi=pmi2 -n {size} {command()}"
    own = Path(sys.executable).parent / "mpiexec"
    if own.exists():
        return f"{own} -n {size} {command()}"
    return f"mpirun -n {size} {command()}, with the mpirun of {library}"


def more_cores(
    launcher: Launcher, library: str, environ: Mapping[str, str] = os.environ
) -> Callable[[int], str]:
    """Return a function that names this launcher's option by which each rank gets a number of cores."""
    in_slurm = "SLURM_JOB_ID" in environ
    shell = "start it from a shell that may use all cores (taskset -cp $$ shows them)"
    by_name = {
        "srun": "srun --cpus-per-task={0} (Slurm 22.05 to 23.02 do not take it from the job), or "
        "--cpu-bind=none",
        "Open MPI's mpirun": "mpirun --bind-to none, or --map-by slot:PE={0}",
        "MVAPICH's mpirun": "export MV2_ENABLE_AFFINITY=0",
        "PALS (mpiexec)": "mpiexec --cpu-bind none, or --depth={0} --cpu-bind depth",
        "mpiexec (PMI)": "export I_MPI_PIN=0" if library == "Intel MPI" else "mpiexec -bind-to none",
    }
    option = by_name.get(launcher.name, "let the launcher bind no rank to cores")
    if in_slurm and launcher.name != "srun":
        # These launchers start a process on each host by srun, which binds it, and what it starts.
        return lambda cores: f"export SLURM_CPU_BIND=none before the launcher, and {option.format(cores)}"
    if launcher.name == "srun":
        return lambda cores: option.format(cores)
    return lambda cores: f"{option.format(cores)}, and {shell}"
