# SPDX-License-Identifier: Apache-2.0
"""Collective operations that test and sleep until the last rank has come.

A blocking call would take a core from the rank that all the others wait for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from aiperf_mpi.parallel.launch.mpi import MPI
from aiperf_mpi.parallel.launch.start import LOOK_SECONDS, wait

__all__ = ["LOOK_SECONDS", "StartedAgreement", "agree", "start_agreement", "wait"]

_TYPES = {"int64": MPI.INT64_T, "float64": MPI.DOUBLE, "uint8": MPI.UINT8_T}


@dataclass(frozen=True)
class StartedAgreement:
    """A reduction that may not be complete yet. Keep it until then: mpi4py keeps neither of the arrays.

    Attributes:
        request: completes it.
        values: of this rank, which MPI may read until then.
        agreed: the result after it.
    """

    request: MPI.Request
    values: np.ndarray
    agreed: np.ndarray


def start_agreement(comm: MPI.Intracomm, values: np.ndarray, op: MPI.Op = MPI.MAX) -> StartedAgreement:
    """Start to reduce `values` of all ranks of `comm`, element by element. Collective.

    `values` is int64, float64 or uint8 and of the same shape on all ranks.
    """
    agreed, kind = np.empty_like(values), _TYPES[values.dtype.name]
    request = comm.Iallreduce([values, values.size, kind], [agreed, values.size, kind], op)
    return StartedAgreement(request, values, agreed)


def agree(
    comm: MPI.Intracomm, values: np.ndarray, op: MPI.Op = MPI.MAX, wait: Callable[[MPI.Request], None] = wait
) -> np.ndarray:
    """Return `values` of all ranks of `comm`, reduced element by element: by default the highest. Collective.

    `values` are as for `start_agreement`; `wait` waits for the request.
    """
    started = start_agreement(comm, values, op)
    wait(started.request)
    return started.agreed
