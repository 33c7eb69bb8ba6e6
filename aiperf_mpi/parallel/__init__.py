# SPDX-License-Identifier: Apache-2.0
"""Everything that uses MPI. `launch.job` starts MPI; no import does."""

import warnings
from contextlib import suppress

# Every module of this package runs this before it imports MPI, so that none of them can start MPI: the writer
# process is forked before. Only a rank's main thread calls MPI, which keeps the full rate of one-sided
# operations.
# `launch.mpi` tells that mpi4py is missing; `doctor` without a launcher needs none.
with suppress(ModuleNotFoundError):
    import mpi4py

    mpi4py.rc(initialize=False, finalize=True, thread_level="funneled")

# `launcher.check_library` names a launcher of another MPI once, in place of a warning of every rank.
warnings.filterwarnings("ignore", message="suspicious MPI execution environment")
