# SPDX-License-Identifier: Apache-2.0
"""What a check of the environment has found: fine, a warning, or a failure, and the remedy.

A run refuses to start on a failure, and logs and stores its warnings. `doctor` shows all findings.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal

#: What stands between the problem and the remedy of a message.
_BETWEEN = re.compile(r"; |\. (?=[A-Z])")

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check.

    Attributes:
        level: "ok", "warn" (the run starts, but may be slow or incomplete) or "fail" (it cannot start).
        subject: what was checked, in one to three words, such as "shared memory".
        text: what was measured or is wrong, with rank, host, file or variable.
        remedy: what to do; empty for "ok".
    """

    level: Level
    subject: str
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        """Return the text and the remedy as one line, as a run prints them."""
        return f"{self.text}; {self.remedy}" if self.remedy else self.text

    def to_dict(self) -> dict[str, str]:
        """Return the attributes for JSON."""
        return asdict(self)


def refusal(subject: str, message: str) -> Finding:
    """Return the failure that a message "what is wrong; what to do" tells.

    What to do follows the last semicolon, or is the last sentence, outside of parentheses.
    """
    for between in reversed(list(_BETWEEN.finditer(message))):
        text, remedy = message[: between.start()], message[between.end() :]
        if text.count("(") == text.count(")"):
            return Finding("fail", subject, text, remedy)
    return Finding("fail", subject, message, "correct what the message names")


def first_failure(findings: Iterable[Finding]) -> str | None:
    """Return the line of the first failure, or None if there is none."""
    return next((str(finding) for finding in findings if finding.level == "fail"), None)


def warnings(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return the findings that are warnings, in their order."""
    return tuple(finding for finding in findings if finding.level == "warn")
