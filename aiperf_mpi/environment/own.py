# SPDX-License-Identifier: Apache-2.0
"""The variables of this program, and those that set a number of threads: misspelt names, senseless values."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping

from aiperf_mpi.planning.finding import Finding

#: The variables of this program that a run, its job scripts and its set-up read.
KNOWN = (
    "AIPERF_MPI_ARGUMENTS",
    "AIPERF_MPI_CACHE",
    "AIPERF_MPI_DATA_SECONDS",
    "AIPERF_MPI_ENVIRONMENT",
    "AIPERF_MPI_INIT_SECONDS",
    "AIPERF_MPI_JOB_END",
    "AIPERF_MPI_PRESET",
    "AIPERF_MPI_PYTHON",
)

_PREFIX = "AIPERF_MPI_"

#: Variables of libraries with a number of threads; a list of numbers counts as one.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def judge(environ: Mapping[str, str] = os.environ) -> tuple[Finding, ...]:
    """Return a warning for each variable that has no effect, or another than its name says."""
    found = []
    for name in sorted(environ):
        if name.startswith(_PREFIX) and name not in KNOWN:
            ends = [known.removeprefix(_PREFIX) for known in KNOWN]
            guess = difflib.get_close_matches(name.removeprefix(_PREFIX), ends, n=1)
            remedy = (
                f"did you mean {_PREFIX}{guess[0]}?" if guess else f"unset it; known are {', '.join(KNOWN)}"
            )
            text = f"{name}: this program has no such variable, so it has no effect"
            found.append(Finding("warn", "variables", text, remedy))
    for name in _THREADS:
        if name in environ and not re.fullmatch(r"\s*[1-9]\d{0,8}(\s*,\s*[1-9]\d{0,8})*\s*", environ[name]):
            text = f"{name}={environ[name][:80]} is not a number of threads"
            found.append(Finding("warn", "variables", text, f"correct {name}, or unset it"))
    return tuple(found)
