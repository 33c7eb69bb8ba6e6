# SPDX-License-Identifier: Apache-2.0
"""The registry of checks: identifier, whom a check is fatal for, its limit, and the function that finds what
is wrong.

Identifiers V01 to V21 are those of the benchmark's rules; I01 and following are checks of the file's own
consistency.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from aiperf_mpi.results.evidence.evidence import Evidence

#: Fatal for every run, or for official ones only.
FATAL, OFFICIAL = "fatal", "official"

#: Of a check's findings, at most this many are kept.
MAX_FINDINGS = 5

#: What a check that meets damaged values may raise: all of it counts against the file.
_DAMAGE = (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a check measured, in words, and what it found wrong; nothing wrong means that it passed."""

    measured: str
    wrong: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Check:
    """A registered check: `severity` is FATAL or OFFICIAL, `limit` says what is allowed, `about` what is
    checked."""

    id: str
    severity: str
    limit: str
    about: str
    body: Callable[[Evidence], Iterable[str]]

    def run(self, evidence: Evidence) -> Outcome:
        """Check the evidence; what the check raises is a finding too."""
        measured: list[str] = []
        wrong: list[str] = []
        try:
            for text in self.body(evidence):
                (measured if text.startswith(MEASURED) else wrong).append(text.removeprefix(MEASURED))
        except _DAMAGE as error:
            wrong.append(
                f"cannot be checked: {error}" if str(error) else f"cannot be checked: {type(error).__name__}"
            )
        more = [f"{len(wrong) - MAX_FINDINGS} more findings"] if len(wrong) > MAX_FINDINGS else []
        return Outcome("; ".join(measured), (*wrong[:MAX_FINDINGS], *more))


CHECKS: list[Check] = []

#: A text that begins with this is no finding, but what was measured.
MEASURED = "= "

Body = Callable[[Evidence], Iterable[str]]


def check(identifier: str, limit: str, severity: str = FATAL) -> Callable[[Body], Body]:
    """Register a function that yields what is wrong with a result; texts behind MEASURED say what was
    measured."""

    def register(body: Body) -> Body:
        about = (body.__doc__ or "").strip().splitlines()[0]
        CHECKS.append(Check(identifier, severity, limit, about, body))
        return body

    return register


def rows_where(table: str, wrong: np.ndarray, text: str) -> Iterator[str]:
    """One finding for the rows of `table` where `wrong` holds: the first of them and how many there are."""
    rows = np.flatnonzero(wrong)
    if len(rows):
        more = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
        yield f"/{table} row {rows[0]}{more}: {text}"


def column_differs(table: str, name: str, stored: list, expected: list) -> Iterator[str]:
    """One finding if a column is not what was recomputed."""
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
    """`value` as text of at most 60 characters."""
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
