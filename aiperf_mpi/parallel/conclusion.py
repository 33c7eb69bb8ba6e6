# SPDX-License-Identifier: Apache-2.0
"""The last step of a run on rank 0: the result is judged, and the verdict is printed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from aiperf_mpi.config.classes import RULES, OfficialRules
from aiperf_mpi.descriptors import OutputLost, tell
from aiperf_mpi.exits import EXIT_FAILURE
from aiperf_mpi.parallel.coordinator.coordinator import End
from aiperf_mpi.planning.folder import lost
from aiperf_mpi.printable import named, plain
from aiperf_mpi.results.output.client import WriterStatus

if TYPE_CHECKING:
    from aiperf_mpi.results.file.resultfile import Result
    from aiperf_mpi.results.judge.judge import Verdict


def conclude(status: WriterStatus, end: End, output: Path, run_id: str, rules: OfficialRules = RULES) -> int:
    """Judge the result file of this run, as `verify` does, print the verdict, and return its exit code.

    What the verdict means is said in sentences on standard error.

    Without a result of this run it is EXIT_FAILURE, however the run ended: a job script that sees a drain
    relies on a result.
    """
    from aiperf_mpi.results.evidence.evidence import Evidence
    from aiperf_mpi.results.judge import judge
    from aiperf_mpi.results.output.package import JOURNAL
    from aiperf_mpi.results.output.repair import without_result
    from aiperf_mpi.results.report.answers import answer_lines
    from aiperf_mpi.results.report.verdict import exit_code, lines_without_result, verdict_lines

    # The cause of a drain was told when it began.
    for problem in status.errors:
        if problem != end.cause:
            tell(f"aiperf_mpi: {problem}")
    try:
        result, verdict = judged(status.result, run_id, rules) if status.result else (None, None)
    except judge.NotAResult as error:
        tell(f"aiperf_mpi: {error}")
        result = verdict = None
    if result is None or verdict is None:
        gone = lost(output, run_id, holds_file=(output / JOURNAL).is_file())
        left = f"no result of this run was written: {gone}" if gone else without_result(output)
        tell(f"aiperf_mpi: {left}")
        lines, code = lines_without_result(end.name, gone or next(iter(status.errors), "")), EXIT_FAILURE
    else:
        lines, code = verdict_lines(verdict), exit_code(verdict)
        for line in answer_lines(Evidence(result, rules), verdict, named(status.result)):
            tell(f"aiperf_mpi: {line}")
    try:
        print("\n".join(lines), flush=True)
    except OutputLost as error:
        # The exit code stays that of the run, whose result is written.
        tell(f"aiperf_mpi: {error}; `python -m aiperf_mpi verify` on the result prints the verdict")
    return code


def judged(path: str, run_id: str, rules: OfficialRules = RULES) -> tuple[Result, Verdict]:
    """Return the result that this run's writer has written, and the verdict on it.

    Raises NotAResult for the file of another run, which may have taken the place of this one's meanwhile.
    """
    from aiperf_mpi.results.judge import judge

    result, verdict = judge.judge_file(path, own=True, rules=rules)
    if (found := result.attributes.get("run_id")) != run_id:
        raise judge.NotAResult(
            f"{named(path)}: the file of another run, {plain(str(found))}, not of {run_id}"
        )
    return result, verdict
