# SPDX-License-Identifier: Apache-2.0
"""Do several things at once, each in a thread, and go on at a deadline without those that are not done.

A call of a dead file system or of a driver may never return, and no signal ends it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from aiperf_mpi.planning.finding import Finding

#: A check: it returns what it has found.
Check = Callable[[], "tuple[Finding, ...]"]


def findings(checks: Mapping[str, Check], seconds: float) -> tuple[Finding, ...]:
    """Make all checks at once, and return what they have found, in their order.

    A check that raises, or that has no answer after `seconds`, is a failure of its subject (its name).
    """
    found: dict[str, tuple[Finding, ...]] = {}

    def make(subject: str, check: Check) -> None:
        try:
            found[subject] = check()
        except Exception as error:
            found[subject] = (unknown(subject, f"{type(error).__name__}: {error}"),)

    threads = {
        subject: threading.Thread(target=make, args=(subject, check), name=f"doctor: {subject}", daemon=True)
        for subject, check in checks.items()
    }
    end = time.monotonic() + seconds
    for thread in threads.values():
        thread.start()
    for subject, thread in threads.items():
        thread.join(max(0.0, end - time.monotonic()))
        if thread.is_alive():
            found[subject] = (late(subject, seconds),)
    return tuple(finding for subject in checks for finding in found[subject])


def late(subject: str, seconds: float) -> Finding:
    """Return the failure of a check that has no answer."""
    return Finding(
        "fail",
        subject,
        f"no answer within {seconds:g} s: a file system or a driver does not respond",
        "look at the mounts (cat /proc/mounts) and at the kernel's log (dmesg), or choose other folders",
    )


def unknown(subject: str, reason: str) -> Finding:
    """Return the failure of a check that raised an error that it does not know."""
    return Finding(
        "fail",
        subject,
        f"the check itself failed: {' '.join(reason.split())}",
        "mend what the error names; else report it with the line of --json",
    )
