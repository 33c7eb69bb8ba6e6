# SPDX-License-Identifier: Apache-2.0
"""Everything that speaks MPI. MPI starts when `comm.initialise` says so, never at an import."""

import warnings

import mpi4py

# Every module of this package passes here before it imports MPI, so that none of them can start it: the
# writer process is forked before. Only a rank's main thread calls MPI, which leaves one-sided operations
# their full rate.
mpi4py.rc(initialize=False, finalize=True, thread_level="funneled")

# A launcher of another MPI is named once, by `launch.check_library`, and not by a warning of every rank.
warnings.filterwarnings("ignore", message="suspicious MPI execution environment")
