# SPDX-License-Identifier: Apache-2.0
"""The check that every candidate must pass before it is trained."""

from __future__ import annotations

from collections.abc import Callable

from aiperf_mpi.parallel.shared.context import Context
from aiperf_mpi.trials.candidate import Candidate

#: Returns the problem of a candidate, "" if it has none; runs in the maker's thread.
Check = Callable[[Candidate], str]


def checks_of(context: Context) -> Check:
    """Return the check of candidates: it builds the network and counts the operations of its step, without
    computing anything.

    The check returns a difference or an error as text, "" if there is none: one odd candidate does not end a
    run, but many in a row drain it. It does not call MPI, so it may run in a thread.
    """
    from aiperf_mpi.crosscheck.check import check_operations
    from aiperf_mpi.training.model.resnet import check_shapes
    from aiperf_mpi.training.settings import settings_of

    config, devices = context.config, context.n_devices

    def check(candidate: Candidate) -> str:
        settings = settings_of(config, candidate.batch_per_device)
        try:
            check_shapes(candidate.architecture)
        except Exception as error:
            return f"its Flax network differs from its layers: {type(error).__name__}: {error}"
        try:
            return check_operations(candidate, settings, devices)
        except Exception as error:
            return f"its step cannot be counted: {type(error).__name__}: {error}"

    return check
