# SPDX-License-Identifier: Apache-2.0
"""The checks of a result. Importing the package registers all of them; CHECKS has them by identifier."""

from aiperf_mpi.results.judge.checks import (
    credit,
    data,
    identity,
    official,
    peak,
    permitted,
    plan,
    ranks,
    registry,
    segments,
    timing,
    usage,
)
from aiperf_mpi.results.judge.checks.registry import FATAL, OFFICIAL, Check, Outcome, Rule

CHECKS: tuple[Check, ...] = tuple(sorted(registry.CHECKS, key=lambda check: check.id))

__all__ = [
    "CHECKS",
    "FATAL",
    "OFFICIAL",
    "Check",
    "Outcome",
    "Rule",
    "credit",
    "data",
    "identity",
    "official",
    "peak",
    "permitted",
    "plan",
    "ranks",
    "segments",
    "timing",
    "usage",
]
