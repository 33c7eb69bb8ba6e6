# SPDX-License-Identifier: Apache-2.0
"""Five questions that a reader of a result asks first, and their answers in sentences.

All statements about validity, class and rate come from the judge. A report shows all answers; at the end of a
run they follow the verdict.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from aiperf_mpi.opcount.rates import ops_text, rate_text
from aiperf_mpi.phases import PHASES
from aiperf_mpi.printable import counted, plain
from aiperf_mpi.results.evidence.evidence import Evidence
from aiperf_mpi.results.evidence.gaps import gaps
from aiperf_mpi.results.evidence.reading import classified_of
from aiperf_mpi.results.judge.judge import Verdict
from aiperf_mpi.results.report.verdict import has_regulated, rate_titles, reason_lines, status

#: The question whose answer a page shows as a bar, too.
TIME = "Where did the time go?"

#: Most reasons and departures of an answer; the report has all of them.
MOST_REASONS = 3

#: Most replicas whose gaps are computed: the answers follow a run at once, also one of ten thousand replicas.
MOST_REPLICAS = 1000

#: Phases with less than this share of the trainers' time are left out of the answer.
LEAST_SHARE = 0.005

#: From these shares of the trainers' time on, an answer says what to do about a phase.
MUCH = {"compile": 0.20, "idle": 0.10, "data": 0.05, "search": 0.10, "communicate": 0.05, "io": 0.05}

#: What can be done about a phase that takes much of the trainers' time.
REMEDIES = {
    "compile": "run longer, or compile the next candidate during a trial (parallel.compile_ahead = on)",
    "idle": "start more generators on each node, so that a candidate is always ready",
    "data": "read pictures from the node (--stage DIR), or with more threads (data.workers)",
    "search": "start generators on each node: without them the trainers make the candidates",
    "communicate": "look at the trainers of a replica: they wait for the slowest of them",
    "io": "put --output on a faster file system",
}

#: What damaged rows may raise; the answer then says that it is not known.
_DAMAGE = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


@dataclass(frozen=True, slots=True)
class Answer:
    """A question, and the sentences of its answer."""

    question: str
    lines: tuple[str, ...]


def answers(e: Evidence, verdict: Verdict, file: str = "FILE") -> list[Answer]:
    """Return the answers to the five questions; `file` is the name of the result in the commands of the last.

    An answer that damaged rows prevent says so.
    """
    questions: dict[str, Callable[[], Iterator[str]]] = {
        "Valid?": lambda: _valid(e, verdict),
        "How fast, of what peak?": lambda: _speed(e, verdict),
        TIME: lambda: _time(e),
        "What was found?": lambda: _found(e, verdict),
        "What to do next?": lambda: _next(e, verdict, file),
    }
    return [Answer(question, _lines(content)) for question, content in questions.items()]


def answer_lines(e: Evidence, verdict: Verdict, file: str) -> list[str]:
    """Return the answers as lines of a log: each question with its first sentence, the others below it."""
    lines = []
    for answer in answers(e, verdict, file):
        first, *more = answer.lines
        lines += [f"{answer.question} {first}", *(f"    {line}" for line in more)]
    return lines


def phase_shares(e: Evidence) -> dict[str, float]:
    """Return the share of each phase in the wall time of all trainers, start-up included; the largest first.

    Raises ValueError if no trainer has reported its times.
    """
    rows = e.table("ranks")
    trains = rows["role"].astype(str) == "trainer"
    seconds = {phase: float(np.nansum(rows[f"seconds_{phase}"][trains])) for phase in PHASES}
    if not (whole := sum(seconds.values())) > 0:
        raise ValueError("no trainer has reported its times")
    shares = {phase: value / whole for phase, value in seconds.items()}
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def _lines(content: Callable[[], Iterator[str]]) -> tuple[str, ...]:
    try:
        return tuple(content())
    except _DAMAGE as error:
        return (f"Not known: {plain(str(error))}.",)


def _valid(e: Evidence, verdict: Verdict) -> Iterator[str]:
    """Say whether the result is valid, and why it is not, or is not a score."""
    yield (
        f"{status(verdict)}: class {verdict.cls}, division {verdict.division}; "
        f"{_ended(verdict)} after {verdict.core_seconds:,.1f} s of core time."
    )
    if verdict.segments > 1:
        yield from _segments(e)
    if not verdict.valid:
        first = {line.partition(":")[0]: line for line in reversed(reason_lines(verdict))}
        yield f"{counted(len(first), 'check')} of {len(verdict.findings)} failed:"
        yield from _first([first[identifier] for identifier in verdict.reason_ids], "check")
        return
    if verdict.cls == "official":
        return
    departures = [str(departure) for departure in classified_of(e)[2] if departure.rule.kind == "fixed"]
    yield "Its rate is not a score: the run departs from what the benchmark fixes."
    yield from _first(departures, "departure")


def _ended(verdict: Verdict) -> str:
    return {
        "time_limit": "it ended at its time limit",
        "drained": "it was drained",
        "killed": "it was killed",
    }.get(verdict.end, f"its end is {verdict.end}")


def _segments(e: Evidence) -> Iterator[str]:
    """Say how often the run was started, why each of its segments ended, and what was lost between them."""
    rows = e.table("segments")
    count = len(rows["segment"])
    yield f"It has {count} segments, as it was resumed {counted(count - 1, 'time')}:"
    lines = []
    for row in range(count):
        cause = f" ({plain(str(rows['end_cause'][row]))})" if rows["end_cause"][row] else ""
        seconds = float(rows["t_end"][row] - rows["t_start"][row])
        lost = ""
        if rows["lost_trials"][row]:
            lost = f"; lost: {counted(int(rows['lost_epochs'][row]), 'epoch')} of "
            lost += f"{counted(int(rows['lost_trials'][row]), 'trial')} that it cut short"
        lines.append(
            f"segment {row + 1}: {seconds:,.1f} s on {counted(int(rows['n_ranks'][row]), 'rank')}, "
            f"{plain(str(rows['end'][row]))}{cause}{lost}"
        )
    yield from _first(lines, "segment")


def _first(lines: list[str], thing: str) -> Iterator[str]:
    """Yield the first MOST_REASONS lines as items, and how many more there are."""
    yield from (f"- {plain(line)}" for line in lines[:MOST_REASONS])
    if (more := len(lines) - MOST_REASONS) > 0:
        yield f"- and {counted(more, f'more {thing}')}"


def _speed(e: Evidence, verdict: Verdict) -> Iterator[str]:
    """Say the rate, and what share of the devices' peak it is."""
    title, regulated = rate_titles(verdict)
    yield f"{title.capitalize()}: {rate_text(verdict.rate)}."
    if verdict.valid and has_regulated(e) and math.isfinite(verdict.regulated):
        yield f"{regulated.capitalize()}: {rate_text(verdict.regulated)}."
    devices = counted(verdict.devices, "device")
    if not math.isnan(verdict.mfu):
        yield (
            f"{verdict.mfu:.2%} of the peak of {devices} at {plain(str(e.attribute('precision')))}, "
            f"{ops_text(verdict.peak_ops)} ({verdict.peak_source})."
        )
    elif verdict.valid:
        yield (
            f"The peak of {devices} is not known ({verdict.peak_source}), so neither is the share of it; "
            "section [declared] of a configuration states one (docs/rules.md)."
        )
    if verdict.valid:
        yield f"As fast as {verdict.resnet50_images:,.3g} images of ImageNet a second on ResNet-50."


def _time(e: Evidence) -> Iterator[str]:
    """Say how the trainers spent their time, and how long their devices waited between candidates."""
    parts = [f"{phase} {share:.1%}" for phase, share in phase_shares(e).items() if share >= LEAST_SHARE]
    yield f"Of the trainers' time, start-up included: {', '.join(parts)}."
    replicas = gaps(e) if e.attribute("n_replicas") <= MOST_REPLICAS else []
    waits = [gap.seconds[np.isfinite(gap.seconds)] for gap in replicas]
    known = np.concatenate(waits) if waits else np.zeros(0)
    if len(known):
        middle, most = np.median(known), known.max()
        yield f"Between two trials a replica waited {middle:.2f} s (median), {most:.2f} s at most."


def _found(e: Evidence, verdict: Verdict) -> Iterator[str]:
    """Say what the search found, and how its trials ended."""
    if math.isnan(verdict.best_error):
        yield "No network: no trial has completed a validation."
    else:
        depth = len(e.lineage(verdict.best_trial)) - 1
        origin = (
            "the initial network"
            if depth <= 0
            else f"{counted(depth, 'generation')} from the initial network"
        )
        yield f"Lowest validation error {verdict.best_error:.4f}, by trial {verdict.best_trial}, {origin}."
        if math.isfinite(verdict.error_final):
            yield f"Loaded again from its checkpoint, its error is {verdict.error_final:.4f}."
    failed = f", {verdict.trials_failed} failed" if verdict.trials_failed else ""
    yield f"{counted(verdict.trials, 'trial')}, of which {verdict.trials_done} came to an end{failed}."


def _next(e: Evidence, verdict: Verdict, file: str) -> Iterator[str]:
    """Say what to do with this result, and what would make the next run better."""
    if not verdict.valid:
        yield f"See each check with its limit: python -m aiperf_mpi verify {file}; docs/rules.md says why."
    elif verdict.cls == "official":
        yield "Pack it for a ranking: bin/aiperf-submit FOLDER --output FILE.tar.gz"
    elif e.attribute("dataset") == "imagenet":
        yield "For a score, remove the departures; run.official = true refuses what an official run lacks."
    else:
        yield "For a score, pack ImageNet (docs/data.md) and run: --preset imagenet --set data.path=DST"
    for phase, share in phase_shares(e).items():
        # Other sets than packed ones are in memory.
        if share >= MUCH.get(phase, math.inf) and (phase != "data" or e.packed is not None):
            yield f"{phase} took {share:.0%} of the trainers' time: {REMEDIES[phase]}."
    if verdict.trials_failed > 0.1 * max(verdict.trials, 1):
        yield f"{counted(verdict.trials_failed, 'trial')} failed: the section Trials says why."
    if not verdict.trials_done:
        yield "No trial came to its end: run longer, or train a smaller network."
