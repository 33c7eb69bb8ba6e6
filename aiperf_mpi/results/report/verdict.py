# SPDX-License-Identifier: Apache-2.0
"""Format a verdict: lines for standard output, exit codes, JSON. No other module formats a score."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from aiperf_mpi.config.datasets import DATASETS
from aiperf_mpi.exits import EXIT_DRAINED, EXIT_INVALID, EXIT_VALID
from aiperf_mpi.opcount.rates import exact_text, ops_text
from aiperf_mpi.printable import PREFIX, counted, plain
from aiperf_mpi.results.evidence.evidence import Evidence
from aiperf_mpi.results.judge.judge import Verdict

#: Most reasons that the verdict's lines give in words; `report` and `verify` give all of them.
MAX_WHY = 3


def exit_code(verdict: Verdict) -> int:
    """Return the exit code of the run: 0 valid for its class, 3 finished but invalid, 4 drained."""
    return EXIT_DRAINED if verdict.end == "drained" else verify_code(verdict)


def verify_code(verdict: Verdict) -> int:
    """Return the exit code of `verify`, which judges the file alone: 0 valid, 3 invalid."""
    return EXIT_VALID if verdict.valid else EXIT_INVALID


def status(verdict: Verdict) -> str:
    """Return VALID or INVALID."""
    return "VALID" if verdict.valid else "INVALID"


def error_text(error: float) -> str:
    """Return an error as a fraction; `nan` if there is none."""
    return "nan" if math.isnan(error) else f"{error:.6f}"


def verdict_lines(verdict: Verdict) -> list[str]:
    """Return the verdict as `AIPERF_MPI key: value` lines, each key once, its status first.

    Only a valid official run has `score_ops` (and `score_regulated`, if it has an error); a valid trial run
    has `trial_rate_ops`, an invalid run `unscored_rate_ops`, `reasons`, and `why` in words. `rate` is the
    same number with a decimal prefix. `peak` is there if the peak of its devices is declared, `segments` if
    the run was resumed,
    `trials_by_surrogate` and `trials_by_hpo` if the file says what chose its candidates.
    """
    return [f"{PREFIX} {key}: {value}" for key, value in _pairs(verdict)]


def _pairs(verdict: Verdict) -> Iterator[tuple[str, str]]:
    """Yield the keys and values of the verdict's lines."""
    yield "status", status(verdict)
    yield "class", verdict.cls
    yield "division", verdict.division
    yield "end", verdict.end
    for key in ("ranks", "nodes", "replicas", "devices"):
        yield key, str(getattr(verdict, key))
    if verdict.segments > 1:
        yield "segments", str(verdict.segments)
    yield "core_seconds", f"{verdict.core_seconds:.3f}"
    yield "trials", str(verdict.trials)
    yield "trials_done", str(verdict.trials_done)
    if verdict.trials_by_surrogate >= 0:
        yield "trials_by_surrogate", str(verdict.trials_by_surrogate)
        yield "trials_by_hpo", str(verdict.trials_by_hpo)
    yield "best_error", error_text(verdict.best_error)
    yield "error_final", error_text(verdict.error_final)
    yield from rate_pairs(verdict)
    yield "rate", ops_text(verdict.rate)
    if verdict.peak_declared:
        yield "peak", verdict.peak_declared
    if not verdict.valid:
        yield "reasons", ",".join(verdict.reason_ids)
        yield "why", why(verdict)


def why(verdict: Verdict) -> str:
    """Return the first problem of each reason in words, at most MAX_WHY of them, on one line."""
    first = {reason.id: reason.text for reason in reversed(verdict.reasons)}
    texts = [first[identifier] for identifier in verdict.reason_ids]
    more = len(texts) - MAX_WHY
    return "; ".join([*texts[:MAX_WHY], *([f"and {counted(more, 'more reason')}"] if more > 0 else [])])


def rate_pairs(verdict: Verdict) -> Iterator[tuple[str, str]]:
    """Yield the run's rate under the names that its verdict allows."""
    if not verdict.valid:
        yield "unscored_rate_ops", exact_text(verdict.unscored_rate_ops)
    elif verdict.cls == "official":
        yield "score_ops", exact_text(verdict.score_ops)
        if not math.isnan(verdict.score_regulated):
            yield "score_regulated", exact_text(verdict.score_regulated)
    else:
        yield "trial_rate_ops", exact_text(verdict.trial_rate_ops)


def rate_titles(verdict: Verdict) -> tuple[str, str]:
    """Return the names of rate and regulated rate in a text: a score only for a valid official run."""
    if not verdict.valid:
        return "unscored rate", "unscored regulated rate"
    return (
        ("score", "regulated score") if verdict.cls == "official" else ("trial rate", "regulated trial rate")
    )


def has_regulated(e: Evidence) -> bool:
    """Return whether a text may show the regulated rate: not for pictures that the program has made up."""
    limits = DATASETS.get(str(e.attribute("dataset")))
    return limits is None or not limits.made


def lines_without_result(end: str, cause: str = "") -> list[str]:
    """Return the lines of a run without a result file: invalid, for reason V21 (no complete file).

    `cause` is why the file was not written, as far as it is known.
    """
    text = "no result file of this run was written"
    pairs = (
        ("status", "INVALID"),
        ("end", end),
        ("reasons", "V21"),
        ("why", plain(f"{text}: {cause}") if cause else text),
    )
    return [f"{PREFIX} {key}: {value}" for key, value in pairs]


def reason_lines(verdict: Verdict) -> list[str]:
    """Return one line for each reason why a result is invalid, each rule in words at its first problem."""
    rules = {finding.id: finding.about for finding in verdict.findings}
    lines = []
    for reason in verdict.reasons:
        rule = rules.pop(reason.id, "")
        lines.append(f"{reason.id}: {reason.text}{f'. The rule: {rule}' if rule else ''}")
    return lines


# -- verify ----------------------------------------------------------------------------------------


def check_lines(verdict: Verdict) -> list[str]:
    """Return one line for each check, with its measured value and limit, and lines for its faults."""
    lines = []
    for finding in verdict.findings:
        measured = f"{finding.measured}; " if finding.measured else ""
        # A trial run need not pass a check of official runs.
        outcome = "passed" if finding.passed else "FAILED" if finding.id in verdict.reason_ids else "not met"
        limit = "only official runs must" if outcome == "not met" else "limit"
        lines.append(f"{finding.id} {outcome}: {measured}{limit}: {finding.limit}")
        lines += [f"    {text}" for text in finding.wrong]
    return lines


def verdict_json(verdict: Verdict) -> str:
    """Return the verdict and its checks as one JSON object; unknown numbers are null."""
    return json.dumps(known(verdict_object(verdict)), indent=1)


def verdict_object(verdict: Verdict, *, findings: bool = True) -> dict[str, Any]:
    """Return the verdict as a JSON object, with or without its checks, and with the rates that it allows."""
    rates = (
        "score_ops",
        "score_regulated",
        "trial_rate_ops",
        "unscored_rate_ops",
        "resnet50_images",
        "mfu",
        "ops_per_watt",
    )
    left_out = {"rate", "regulated"} | (set() if findings else {"findings"})
    left_out |= set() if verdict.peak_declared else {"peak_declared"}
    left_out |= set() if verdict.segments > 1 else {"segments"}
    left_out |= set() if verdict.trials_by_surrogate >= 0 else {"trials_by_surrogate", "trials_by_hpo"}
    data = asdict(verdict) | {"status": status(verdict), "total_ops": str(verdict.total_ops)}
    data = {"class" if key == "cls" else key: value for key, value in data.items() if key not in left_out}
    return data | {key: getattr(verdict, key) for key in rates}


def known(value: Any) -> Any:
    """Return a JSON value with null in place of every number that is not finite."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {key: known(entry) for key, entry in value.items()}
        case list() | tuple():
            return [known(entry) for entry in value]
        case _:
            return value
