# SPDX-License-Identifier: Apache-2.0
"""Say what a run lacks to be an official one, as far as that is known before it."""

from __future__ import annotations

from aiperf_mpi.config import Config, classify
from aiperf_mpi.config.classes import OFFICIAL_RUNS
from aiperf_mpi.config.setting import FIXED
from aiperf_mpi.paper import OFFICIAL_SECONDS
from aiperf_mpi.planning.finding import Finding

SUBJECT = "official run"

#: Most settings that are named.
_MOST = 4


def judge(config: Config) -> tuple[Finding, ...]:
    """Return the class of the run, and what an official run would still need.

    A configuration that departs from a fixed rule is a trial on purpose, which is fine. One that departs from
    none, but lacks something else, is a warning.
    """
    cls, division, departures = classify(config)
    fixed = [departure.key for departure in departures if departure.rule.kind == FIXED]
    lacks = []
    if too_short := "run.time_limit" in fixed:
        fixed.remove("run.time_limit")
    if fixed:
        named = ", ".join(fixed[:_MOST])
        more = f" and {len(fixed) - _MOST} more" if len(fixed) > _MOST else ""
        lacks.append(f"the paper's values of {named}{more}")
    if too_short:
        lacks.append(f"--time-limit {OFFICIAL_SECONDS:g} at least")
    if not OFFICIAL_RUNS:
        lacks.append("a version of this program that accepts official runs")
    if not lacks:
        return (
            Finding("ok", SUBJECT, f"class {cls}, division {division}: nothing is missing before the run"),
        )
    text = f"this run is a trial, division {division}; an official run needs {'; '.join(lacks)}"
    if fixed or not OFFICIAL_RUNS:
        return (Finding("ok", SUBJECT, text),)
    return (Finding("warn", SUBJECT, text, "see docs/rules.md, or take the run for a trial"),)
