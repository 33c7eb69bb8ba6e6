# SPDX-License-Identifier: Apache-2.0
"""Environment variables of launchers: how a process learns its rank, and what no child may inherit."""

from __future__ import annotations

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

#: Variables of the rank: a launcher sets one of them in each rank that it starts.
RANK_VARIABLES = (*(rank for _, _, rank in LAUNCHERS), PMIX_RANK)

#: Beginnings of the variables that make a process a rank of a job. A process that is not a rank, such as the
#: writer, starts without them.
LAUNCHER_PREFIXES = (
    "PMI_",
    "PMIX_",
    "PMI2_",
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

#: Seconds for which the silent ranks of a refused job wait before they exit. The launcher kills the other
#: ranks after the first exit, and one of them still prints the message.
SILENT_SECONDS = 2.0
