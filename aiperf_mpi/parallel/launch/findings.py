# SPDX-License-Identifier: Apache-2.0
"""What the checks of all ranks have found, before the core time: a refusal, or warnings for the result."""

from __future__ import annotations

from collections.abc import Sequence

from aiperf_mpi.ending import lines, write_error
from aiperf_mpi.exits import EXIT_USAGE
from aiperf_mpi.machine.affinity import ranges
from aiperf_mpi.parallel.launch.start import INIT_SECONDS, INIT_VARIABLE, Outcome, exchange, seconds_of
from aiperf_mpi.planning.finding import Finding, first_failure, warnings


def compare_findings(findings: Sequence[Finding]) -> list[dict[str, str]]:
    """Gather what each rank's checks have found: refuse on a failure, log the warnings. Collective.

    Return on rank 0 the warnings, each once, with the ranks that have it under "ranks"; [] on other ranks.
    Raises AgreedError with the first failure.
    """
    failure = first_failure(findings)
    kept = [one.to_dict() for one in warnings(findings)]
    outcome = Outcome(EXIT_USAGE, failure) if failure else Outcome(value=kept)
    _, values = exchange("checks of the environment", outcome, seconds_of(INIT_VARIABLE, INIT_SECONDS))
    ranks_of: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for rank in sorted(values):
        for one in values[rank]:
            ranks_of.setdefault(tuple(one.items()), []).append(rank)
    gathered = [{**dict(one), "ranks": ranges(ranks)} for one, ranks in ranks_of.items()]
    for one in gathered:
        text = "; ".join(filter(None, (one["text"], one["remedy"])))
        write_error(lines(f"warning: ranks {one['ranks']}: {one['subject']}: {text}"))
    return gathered
