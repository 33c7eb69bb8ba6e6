# SPDX-License-Identifier: Apache-2.0
"""The judge: recompute everything from the rows of a result file, and return the verdict.

Only the judge may call a rate a score. The run, `verify`, `report` and `compare` call it; none of them trusts
the attributes of a file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from aiperf_mpi import __version__
from aiperf_mpi.config.classes import RULES, OfficialRules
from aiperf_mpi.machine.energy import NOT_MEASURED
from aiperf_mpi.printable import plain
from aiperf_mpi.results.evidence import samples
from aiperf_mpi.results.evidence.ceiling import UNKNOWN
from aiperf_mpi.results.evidence.choices import by_models
from aiperf_mpi.results.evidence.evidence import Evidence
from aiperf_mpi.results.evidence.reading import classified_of, segments_of
from aiperf_mpi.results.file.apart import read_apart
from aiperf_mpi.results.file.resultfile import NotAResult, Result, read
from aiperf_mpi.results.file.rows import DONE, FAILED, STOPPED
from aiperf_mpi.results.file.schema import ENDS, UNENDED
from aiperf_mpi.results.file.score import normalised
from aiperf_mpi.results.judge.checks import CHECKS, FATAL, OFFICIAL, Rule

__all__ = ["Finding", "NotAResult", "Reason", "Verdict", "judge", "judge_content", "judge_file"]

#: Checks of the finished file, which the judge makes itself, as they need its bytes or its verdict.
SEAL = Rule(
    "V21",
    FATAL,
    "complete = 1 of a run that ended, SHA-256 of the content",
    "The file is complete and unchanged.",
    why="A file that was changed after the run proves nothing.",
)
AGREES = Rule(
    "I12",
    FATAL,
    "every attribute of the verdict, reasons by their identifiers",
    "The attributes of the verdict are those that the judge recomputes.",
    why="Readers that trust the attributes must not get another verdict.",
)

NOT_COMPLETE = "the file is not complete: the run has not ended, or was killed"


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a result is invalid: the identifier of a check, and a problem that it found."""

    id: str
    text: str


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check, whether or not it is fatal for this run; `wrong` has its problems."""

    id: str
    severity: str
    about: str
    limit: str
    measured: str
    passed: bool
    wrong: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """The verdict on a result. Rates are in op/s, times in s, errors are fractions; NaN or 0 without a value.

    `trials_by_surrogate` counts the trained trials with a network that the surrogate chose, `trials_by_hpo`
    those with hyperparameters that the optimiser chose; -1 if the file does not say.
    `segments` counts the starts of the program on the run's folder: more than 1 if it was resumed.
    `cls` is official or trial, `division` closed or open. `peak_declared` has the words of a declared peak
    that counts, else "". `utilisation` has the means of columns of /samples.
    `rate` is credited operations over core seconds, whatever the verdict: only `score_ops` and
    `score_regulated` are scores, and NaN unless the result is valid and official.
    """

    valid: bool
    cls: str
    division: str
    reasons: tuple[Reason, ...]
    findings: tuple[Finding, ...]
    end: str
    total_ops: int
    rate: float
    regulated: float
    best_error: float
    best_trial: int
    error_final: float
    core_seconds: float
    trials: int
    trials_done: int
    trials_failed: int
    trials_by_surrogate: int
    trials_by_hpo: int
    ranks: int
    nodes: int
    replicas: int
    devices: int
    segments: int
    peak_ops: float
    peak_source: str
    peak_declared: str
    utilisation: dict[str, float]
    energy_joules: float
    energy_level: str

    @property
    def score_ops(self) -> float:
        """The score of a valid official run in op/s, else NaN."""
        return self.rate if self.valid and self.cls == "official" else math.nan

    @property
    def score_regulated(self) -> float:
        """The regulated score of a valid official run in op/s, else NaN."""
        return self.regulated if self.valid and self.cls == "official" else math.nan

    @property
    def trial_rate_ops(self) -> float:
        """The rate of a valid trial run in op/s, else NaN."""
        return self.rate if self.valid and self.cls == "trial" else math.nan

    @property
    def unscored_rate_ops(self) -> float:
        """The rate of an invalid run in op/s, else NaN."""
        return math.nan if self.valid else self.rate

    @property
    def mfu(self) -> float:
        """The rate of a valid run over the peak rate of its devices, idle time included.

        NaN if the run is invalid or no peak is known.
        """
        return self.rate / self.peak_ops if self.valid and self.peak_ops > 0 else math.nan

    @property
    def resnet50_images(self) -> float:
        """The rate of a valid run as ImageNet images per second of a ResNet-50 training, else NaN."""
        return normalised(self.rate) if self.valid else math.nan

    @property
    def ops_per_watt(self) -> float:
        """Credited operations of a valid run over its energy, in op/J = op/s/W.

        NaN if the run is invalid or its energy is unknown.
        """
        return self.total_ops / self.energy_joules if self.valid and self.energy_joules > 0 else math.nan

    @property
    def reason_ids(self) -> tuple[str, ...]:
        """The identifiers of the reasons, each once, in order."""
        return tuple(dict.fromkeys(reason.id for reason in self.reasons))

    def attributes(self) -> dict[str, Any]:
        """Return the verdict as root attributes of the result file."""
        return {
            "class": self.cls,
            "division": self.division,
            "valid": int(self.valid),
            "invalid_reasons": json.dumps([[reason.id, reason.text] for reason in self.reasons]),
            "score_ops": self.score_ops,
            "score_regulated": self.score_regulated,
            "trial_rate_ops": self.trial_rate_ops,
            "unscored_rate_ops": self.unscored_rate_ops,
            "peak_ops": self.peak_ops,
            "peak_source": self.peak_source,
            "mfu": self.mfu,
            "energy_joules": self.energy_joules,
            "energy_level": self.energy_level,
            "ops_per_watt": self.ops_per_watt,
        }


def judge(path: Path | str, *, own: bool = False, rules: OfficialRules = RULES) -> Verdict:
    """Return the verdict on a result file; `own` and `rules` as for `judge_file`.

    Raises NotAResult (a ValueError) with one line if the file is not a result. Anything wrong inside a result
    is a reason of the verdict.
    """
    return judge_file(path, own=own, rules=rules)[1]


def judge_file(
    path: Path | str, *, own: bool = False, rules: OfficialRules = RULES
) -> tuple[Result, Verdict]:
    """Return the content of a result file and the verdict on it. Raises NotAResult like `judge`.

    A file that this program has just written (`own`) is read in this process, and any other one apart. The
    benchmark has one set of `rules`; tests pass others.
    """
    result = read(path) if own else read_apart(path)
    verdict = judge_content(result, rules)
    return result, _with_findings(verdict, [_seal(result), _agrees(result, verdict)])


def judge_content(result: Result, rules: OfficialRules = RULES) -> Verdict:
    """Return the verdict on the content of a result that may not be sealed yet (see `judge`)."""
    evidence = Evidence(result, rules)
    cls, division = _class(evidence)
    with np.errstate(all="ignore"):
        findings, reasons = _make_checks(evidence, cls)

        # Damaged rows give default values: a check has reported the damage.
        total = _value(lambda: evidence.total_ops, 0)
        final = _value(lambda: evidence.final, None)
        best_error, best_trial = _value(lambda: evidence.best, (math.nan, -1))
        status = _value(lambda: evidence.status, np.zeros(0, int))
        peak = _value(lambda: evidence.ceiling, UNKNOWN)
        trials_by_surrogate, trials_by_hpo = _value(lambda: by_models(evidence), None) or (-1, -1)
        used = _value(lambda: samples.means(evidence), {})
        energy, level = _value(lambda: evidence.energy, (math.nan, f"{NOT_MEASURED}: its rows are damaged"))
    facts = result.attributes
    return Verdict(
        valid=not reasons,
        cls=cls,
        division=division,
        reasons=tuple(reasons),
        findings=tuple(findings),
        end=facts["end"] if facts.get("end") in ENDS else "unknown",
        total_ops=total,
        rate=final.rate if final else math.nan,
        regulated=final.regulated if final else math.nan,
        best_error=best_error,
        best_trial=best_trial,
        error_final=facts.get("error_final", math.nan),
        core_seconds=facts.get("core_seconds", 0.0),
        trials=len(status),
        trials_done=int(np.isin(status, (DONE, STOPPED)).sum()),
        trials_failed=int((status == FAILED).sum()),
        trials_by_surrogate=trials_by_surrogate,
        trials_by_hpo=trials_by_hpo,
        ranks=facts.get("n_ranks", 0),
        nodes=facts.get("n_nodes", 0),
        replicas=facts.get("n_replicas", 0),
        devices=facts.get("n_devices", 0),
        segments=_value(lambda: segments_of(evidence), 1),
        peak_ops=peak.total,
        peak_source=plain(peak.source),
        peak_declared=plain(peak.declared),
        utilisation=used,
        energy_joules=energy,
        energy_level=plain(level),
    )


def _make_checks(evidence: Evidence, cls: str) -> tuple[list[Finding], list[Reason]]:
    """Return the findings of all registered checks, and the reasons why a run of this class is invalid."""
    findings: list[Finding] = []
    reasons: list[Reason] = []
    for check in CHECKS:
        outcome = check.run(evidence)
        problems = tuple(map(plain, outcome.problems))
        findings.append(_finding(check, plain(outcome.measured), problems))
        if check.severity == FATAL or (check.severity == OFFICIAL and cls == "official"):
            reasons += [Reason(check.id, text) for text in problems]
    return findings, reasons


def _finding(rule: Rule, measured: str, problems: tuple[str, ...]) -> Finding:
    """Return the finding of a check with these problems."""
    return Finding(rule.id, rule.severity, rule.about, rule.limit, measured, not problems, problems)


def _class(evidence: Evidence) -> tuple[str, str]:
    """Return class and division by the stored configuration; trial and open if it cannot be read."""
    return _value(lambda: classified_of(evidence)[:2], ("trial", "open"))


def _value(compute: Callable[[], Any], default: Any) -> Any:
    """Return a recomputed value, or `default` if the rows are damaged."""
    try:
        return compute()
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
        return default


def unended(verdict: Verdict) -> Verdict:
    """Return the verdict on a run that never came to its end: invalid, by V21 as for its file."""
    return replace(verdict, valid=False, reasons=(*verdict.reasons, Reason(SEAL.id, NOT_COMPLETE)))


# -- the finished file -----------------------------------------------------------------------------


def _with_findings(verdict: Verdict, findings: list[Finding]) -> Verdict:
    """Return the verdict with the findings of further checks, all of them fatal."""
    reasons = [Reason(finding.id, text) for finding in findings for text in finding.wrong]
    return replace(
        verdict,
        valid=verdict.valid and not reasons,
        reasons=(*verdict.reasons, *reasons),
        findings=(*verdict.findings, *findings),
    )


def _seal(result: Result) -> Finding:
    """Check that the file was completed and that its content has not changed since."""
    problems = []
    if result.attributes.get("complete") != 1:
        problems.append(NOT_COMPLETE)
    elif (end := result.attributes.get("end")) in UNENDED:
        problems.append(f"the file is complete, but its run did not end: attribute end is {end!r}")
    if not result.content_sha256 or result.attributes.get("content_sha256") != result.content_sha256:
        problems.append("the content does not have the stored hash: it was changed after the end of the run")
    return _finding(SEAL, result.content_sha256, tuple(problems))


def _agrees(result: Result, verdict: Verdict) -> Finding:
    """Check that the verdict in the file is the judge's; an unfinished file has no verdict."""
    complete = result.attributes.get("complete") == 1
    return _finding(AGREES, "", tuple(_disagreements(result, verdict)) if complete else ())


def _disagreements(result: Result, verdict: Verdict) -> Iterator[str]:
    """Yield a problem for each attribute of the verdict that is not the recomputed one."""
    for name, expected in verdict.attributes().items():
        stored = result.attributes.get(name)
        if isinstance(expected, float) and isinstance(stored, float):
            same = math.isclose(stored, expected, rel_tol=1e-9) or (
                math.isnan(stored) and math.isnan(expected)
            )
        elif name == "invalid_reasons" and result.attributes.get("aiperf_mpi_version") != __version__:
            # Texts are for people, and another version may word them in another way.
            same = _identifiers(stored) == _identifiers(expected)
        else:
            same = stored == expected
        if not same:
            yield plain(f"attribute {name} is {str(stored)[:60]!r}, but the rows give {str(expected)[:60]!r}")


def _identifiers(reasons: Any) -> list[str] | None:
    """Return the identifiers of stored reasons, or None unless they are a JSON list of pairs of text."""
    try:
        pairs = json.loads(reasons)
    except (RecursionError, TypeError, ValueError):
        return None
    if not isinstance(pairs, list) or not all(_is_reason(pair) for pair in pairs):
        return None
    return [identifier for identifier, _ in pairs]


def _is_reason(pair: Any) -> bool:
    """Return whether a JSON value is an identifier and a text that is safe to print."""
    return (
        isinstance(pair, list)
        and len(pair) == 2
        and all(isinstance(text, str) and plain(text) == text for text in pair)
    )
