# SPDX-License-Identifier: Apache-2.0
"""Say what a run lacks to be an official one, as far as its settings tell before it."""

from __future__ import annotations

from aiperf_mpi.config import Config, classify
from aiperf_mpi.config.classes import fixed_departures
from aiperf_mpi.paper import OFFICIAL_SECONDS
from aiperf_mpi.planning.finding import Finding

SUBJECT = "official run"

#: Most settings that are named.
_MOST = 4


def judge(config: Config) -> tuple[Finding, ...]:
    """Return the class of the run by its settings, and what an official run would still need of them.

    A configuration that departs from a fixed rule is a trial on purpose, which is fine, unless it says that
    it is official: a run would refuse it.
    """
    division = classify(config)[1]
    fixed = [departure.key for departure in fixed_departures(config)]
    lacks = []
    if too_short := "run.time_limit" in fixed:
        fixed.remove("run.time_limit")
    if fixed:
        named = ", ".join(fixed[:_MOST])
        more = f" and {len(fixed) - _MOST} more" if len(fixed) > _MOST else ""
        lacks.append(f"the paper's values of {named}{more}")
    if too_short:
        lacks.append(f"--time-limit {OFFICIAL_SECONDS:g} at least")
    if not lacks:
        text = (
            f"division {division}: no setting is in the way; the run itself looks at data, devices, program"
        )
        return (Finding("ok", SUBJECT, text),)
    text = f"this run is a trial, division {division}; an official run needs {'; '.join(lacks)}"
    if config.run.official:
        return (Finding("fail", SUBJECT, text, "mend them, or leave run.official out"),)
    return (Finding("ok", SUBJECT, text),)
