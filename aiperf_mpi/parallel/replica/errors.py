# SPDX-License-Identifier: Apache-2.0
"""Errors that end the run; all others fail one trial."""

from __future__ import annotations

from aiperf_mpi.parallel.launch.mpi import MPI
from aiperf_mpi.parallel.shared.messages import MessageError
from aiperf_mpi.training.lockstep import Stranded
from aiperf_mpi.trials.record import RecordError


class GenerationError(RuntimeError):
    """Work between a trainer's steps failed, such as to make candidates."""


#: Errors that end the job, as they are the run's and not a trial's.
RUN_ERRORS = (MPI.Exception, MessageError, RecordError, GenerationError, Stranded)
