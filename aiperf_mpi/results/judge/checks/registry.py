# SPDX-License-Identifier: Apache-2.0
"""The registry of checks: each has an identifier, a severity, a limit, a reason, and a function that yields
problems.

Identifiers V01 to V21 are those of the benchmark's rules; I01 and following are checks of the file's own
consistency.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from aiperf_mpi.results.evidence.evidence import Evidence

#: Severities: a problem makes every run invalid, or official runs only.
FATAL, OFFICIAL = "fatal", "official"

#: At most this many problems of a check are kept.
MAX_FINDINGS = 5

#: What a check may raise on damaged values: each of these is a problem of the file.
_DAMAGE = (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError)

#: A text of a check that begins with this is a measured value, not a problem.
MEASURED = "= "


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a check measured, as text, and the problems that it found; without a problem it passed."""

    measured: str
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rule:
    """The description of a check: `severity` is FATAL or OFFICIAL, `limit` is what it allows, `about` is what
    it checks, `why` is the reason for it."""

    id: str
    severity: str
    limit: str
    about: str
    why: str


Body = Callable[[Evidence], Iterable[str]]


@dataclass(frozen=True, slots=True)
class Check(Rule):
    """A registered check of a result's content."""

    body: Body

    def run(self, evidence: Evidence) -> Outcome:
        """Check the evidence; an exception that damaged values cause is a problem too."""
        measured: list[str] = []
        problems: list[str] = []
        try:
            for text in self.body(evidence):
                (measured if text.startswith(MEASURED) else problems).append(text.removeprefix(MEASURED))
        except _DAMAGE as error:
            problems.append(f"cannot be checked: {str(error) or type(error).__name__}")
        more = len(problems) - MAX_FINDINGS
        rest = [f"{more} more findings"] if more > 0 else []
        return Outcome("; ".join(measured), (*problems[:MAX_FINDINGS], *rest))


CHECKS: list[Check] = []


def check(identifier: str, limit: str, *, why: str, severity: str = FATAL) -> Callable[[Body], Body]:
    """Register a function that yields the problems of a result, and measured values after MEASURED.

    Its docstring says what it checks; `why` is the reason in docs/rules.md.
    """

    def register(body: Body) -> Body:
        about = " ".join((body.__doc__ or "").split("\n\n")[0].split())
        CHECKS.append(Check(identifier, severity, limit, about, why, body))
        return body

    return register


def rows_where(table: str, mask: np.ndarray, text: str) -> Iterator[str]:
    """Yield one problem for the rows of `table` where `mask` holds: the first of them, and their number."""
    rows = np.flatnonzero(mask)
    if len(rows):
        more = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
        yield f"/{table} row {rows[0]}{more}: {text}"


def column_differs(table: str, name: str, stored: list, expected: list) -> Iterator[str]:
    """Yield one problem if a column differs from the recomputed values."""
    if len(stored) != len(expected):
        yield f"/{table}/{name} has {len(stored)} rows instead of {len(expected)}"
        return
    rows = [
        row
        for row, (a, b) in enumerate(zip(stored, expected, strict=True))
        if a != b and not (a != a and b != b)
    ]
    if rows:
        more = f" and {len(rows) - 1} more rows" if len(rows) > 1 else ""
        first = rows[0]
        yield f"/{table}/{name} row {first}{more}: {short(stored[first])} instead of {short(expected[first])}"


def short(value: object) -> str:
    """Return `value` as text of at most 60 characters."""
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
