# SPDX-License-Identifier: Apache-2.0
"""Judge how far the wall clocks of the hosts are apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aiperf_mpi.planning.finding import Finding

SUBJECT = "clocks"

#: Seconds by which a wall clock may differ. The run's own times come from rank 0; dates of files, of logs and
#: the job's end come from each host.
MOST_SECONDS = 1.0

#: Most hosts that are named.
_MOST = 4


@dataclass(frozen=True, slots=True)
class HostClock:
    """The wall clock of a host minus that of rank 0's host, in seconds, and the bound of the error."""

    host: str
    seconds: float
    uncertainty: float


def judge(clocks: Sequence[HostClock]) -> Finding:
    """Return whether all clocks agree with that of the first one, which is rank 0's."""
    wrong = [clock for clock in clocks if abs(clock.seconds) - clock.uncertainty > MOST_SECONDS]
    if wrong:
        wrong.sort(key=lambda clock: -abs(clock.seconds))
        named = ", ".join(f"{clock.host} by {clock.seconds:+.1f} s" for clock in wrong[:_MOST])
        more = f" and {len(wrong) - _MOST} more hosts" if len(wrong) > _MOST else ""
        text = f"wall clocks differ from that of {clocks[0].host}: {named}{more}"
        return Finding("warn", SUBJECT, text, "set the clocks by NTP (chronyc tracking shows their state)")
    if len(clocks) == 1:
        return Finding("ok", SUBJECT, "one host has one clock")
    most = max(abs(clock.seconds) + clock.uncertainty for clock in clocks)
    return Finding("ok", SUBJECT, f"within {most:.3f} s on {len(clocks)} hosts")
