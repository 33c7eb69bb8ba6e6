# SPDX-License-Identifier: Apache-2.0
"""Errors that end the run, apart from those that fail a trial alone."""

from __future__ import annotations

from mpi4py import MPI

from aiperf_mpi.parallel.shared.messages import MessageError
from aiperf_mpi.training.lockstep import Stranded
from aiperf_mpi.trials.record import RecordError


class GenerationError(RuntimeError):
    """Candidates cannot be made on this rank, or something else that goes on beside its trials cannot."""


#: Errors that are the run's and not a trial's: they end the job.
RUN_ERRORS = (MPI.Exception, MessageError, RecordError, GenerationError, Stranded)
