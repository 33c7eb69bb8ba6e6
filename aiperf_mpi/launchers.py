# SPDX-License-Identifier: Apache-2.0
"""Environment variables of launchers: how a process learns its rank, and what no child may inherit."""

from __future__ import annotations

import os
import re
import select
import time
from collections.abc import Mapping
from contextlib import suppress

#: (name, variable of the size, variable of the rank), innermost launcher first: what mpiexec starts inside an
#: allocation inherits the batch system's variables, so these come last.
LAUNCHERS = (
    ("Open MPI's mpirun", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("MVAPICH's mpirun", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"),
    ("mpiexec (PMI)", "PMI_SIZE", "PMI_RANK"),
    ("PALS (mpiexec)", "PALS_SIZE", "PALS_RANKID"),
    ("srun", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
)

#: The rank that any PMIx launcher sets; it sets no size.
PMIX_RANK = "PMIX_RANK"

#: The numbers of ranks on the hosts of a step of Slurm, as `srun` sets it. SLURM_NTASKS_PER_NODE is there by
#: an option of the job alone, and may be that of another step.
STEP_TASKS = "SLURM_STEP_TASKS_PER_NODE"

#: Variables with the rank of a process among those of its host, and with their number.
LOCAL = (
    ("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"),
    ("MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ("PALS_LOCAL_RANKID", "PALS_LOCAL_SIZE"),
    ("SLURM_LOCALID", STEP_TASKS),
    ("SLURM_LOCALID", "SLURM_NTASKS_PER_NODE"),
)

#: Variables of the rank: a launcher sets one of them in each rank that it starts.
RANK_VARIABLES = (*(rank for _, _, rank in LAUNCHERS), PMIX_RANK)

#: Beginnings of the variables that make a process a rank of a job. A process that is not a rank, such as the
#: writer, starts without them.
LAUNCHER_PREFIXES = (
    "PMI_",
    "PMIX_",
    "PMI2_",
    "MV2_",
    "MVP_",
    "MPIRUN_",
    "MPISPAWN_",
    "JSM_",
    "OMPI_",
    "OPAL_",
    "PRTE_",
    "MPI_",
    "MPIR_",
    "HYDRA_",
    "HYDI_",
    "SLURM_",
    "PALS_",
    "FLUX_",
    "PBS_",
)

#: Seconds that a launcher has to end a process that asked for the end of its job.
_ABORT_SECONDS = 3.0


def rank_of(environ: Mapping[str, str] = os.environ) -> int | None:
    """Return the rank that the launcher gave to this process; None where its variables give none."""
    for name in RANK_VARIABLES:
        if environ.get(name, "").isdigit():
            return int(environ[name])
    return None


def local_rank(environ: Mapping[str, str] = os.environ) -> int | None:
    """Return the rank of this process among those of its host; None where no variable tells it."""
    return next((int(environ[rank]) for rank, _ in LOCAL if environ.get(rank, "").isdigit()), None)


def local_size(environ: Mapping[str, str] = os.environ) -> int:
    """Return the number of ranks that a launcher started on this host; 1 where no variable tells it."""
    sizes = (_size_by(size, environ) for _, size in LOCAL)
    return next((size for size in sizes if size), 1)


def _size_by(name: str, environ: Mapping[str, str]) -> int:
    """Return the number of ranks of this host by a variable; 0 where it tells none.

    SLURM_STEP_TASKS_PER_NODE lists the numbers of all hosts, such as `2(x3),1`.
    """
    text, numbers = environ.get(name, ""), list[int]()
    if text.isdigit() or name != STEP_TASKS:
        return int(text) if text.isdigit() else 0
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d{1,6})\))?", part)
        if match is None:
            return 0
        numbers += [int(match[1])] * int(match[2] or 1)
    node = environ.get("SLURM_NODEID", "")
    return numbers[int(node)] if node.isdigit() and int(node) < len(numbers) else max(numbers)


def starts_several(environ: Mapping[str, str] = os.environ) -> bool:
    """Return whether a launcher started several processes, of which this is one, as far as it says so."""
    sizes = (environ[size] for _, size, _ in LAUNCHERS if environ.get(size, "").isdigit())
    size = next(sizes, "")
    return int(size) != 1 if size else environ.get(PMIX_RANK, "").isdigit()


def abort_by_launcher(code: int, connected: bool = False, environ: Mapping[str, str] = os.environ) -> None:
    """Ask the launcher to end all ranks with `code`, where MPI cannot: before its initialisation.

    MPICH's launcher, and srun --mpi=pmi2, take it as a line of PMI-1; srun wants the first line of the
    protocol before it, which MPI has sent where this process is `connected`. Other launchers are asked by no
    message: Open MPI's ends the job when a rank leaves with another code than 0.
    """
    if environ.get("PMI_FD", "").isdigit():
        with suppress(OSError):
            socket = int(environ["PMI_FD"])
            if not connected:
                os.write(socket, b"cmd=init pmi_version=1 pmi_subversion=1\n")
                if select.select([socket], [], [], _ABORT_SECONDS)[0]:
                    os.read(socket, 1000)
            os.write(socket, b"cmd=abort exitcode=%d\n" % code)
            # The launcher ends this process as well; it must not leave before its message is read.
            time.sleep(_ABORT_SECONDS)
