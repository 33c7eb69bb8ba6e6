# SPDX-License-Identifier: Apache-2.0
"""Do several things at once, each in a thread, and go on at a deadline without those that are not done.

A call of a dead file system or of a driver may never return, and no signal ends it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from aiperf_mpi.planning.finding import Finding
from aiperf_mpi.probe import Call, reason

#: A check: it returns what it has found.
Check = Callable[[], "tuple[Finding, ...]"]


def findings(checks: Mapping[str, Check], seconds: float) -> tuple[Finding, ...]:
    """Make all checks at once, and return what they have found, in their order.

    A check that raises, or that has no answer after `seconds`, is a failure of its subject (its name).
    """
    end = time.monotonic() + seconds
    calls = {subject: Call(f"doctor: {subject}", check) for subject, check in checks.items()}
    found: list[Finding] = []
    for subject, call in calls.items():
        if not call.answered(end - time.monotonic()):
            found.append(late(subject, seconds))
        elif isinstance(call.outcome[0], BaseException):
            found.append(unknown(subject, reason(call.outcome[0])))
        else:
            found += call.outcome[0]
    return tuple(found)


def late(subject: str, seconds: float) -> Finding:
    """Return the failure of a check that has no answer."""
    return Finding(
        "fail",
        subject,
        f"no answer within {seconds:g} s: a file system or a driver does not respond",
        "look at the mounts (cat /proc/mounts) and at the kernel's log (dmesg), or choose other folders",
    )


def unknown(subject: str, why: str) -> Finding:
    """Return the failure of a check that raised an error that it does not know."""
    return Finding(
        "fail",
        subject,
        f"the check itself failed: {why}",
        "mend what the error names; else report it with the line of --json",
    )
