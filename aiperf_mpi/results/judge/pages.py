# SPDX-License-Identifier: Apache-2.0
"""The tables of docs/rules.md and docs/result-format.md, made from the registry of checks and the schema.

`python -m aiperf_mpi.results.judge.pages` writes them anew, between the marks `<!-- table: NAME -->` and
`<!-- end -->`; it is run in the root of the repository.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path

from aiperf_mpi.config.config import settings
from aiperf_mpi.results.file.schema import ATTRIBUTES, TABLES, Column
from aiperf_mpi.results.judge.rules import LEFT_OUT, RULES, TABLE_4_ROWS, UNCHECKED

PAGES = ("docs/rules.md", "docs/result-format.md")

_MARKED = re.compile(r"(?<=<!-- table: )(\S+)( -->\n).*?(?=<!-- end -->)", re.DOTALL)


def rewritten(text: str) -> str:
    """Return a page with all marked tables made anew. Raises KeyError for the name of an unknown table."""
    tables = _tables()
    return _MARKED.sub(lambda match: f"{match[1]}{match[2]}\n{tables[match[1]]}\n\n", text)


def marked(text: str) -> list[str]:
    """Return the names of the marked tables of a page."""
    return [match[1] for match in _MARKED.finditer(text)]


def _tables() -> dict[str, str]:
    """Return all tables by name."""
    tables = {
        "checks": _table(
            ("Check", "Severity", "Limit", "Reason"), ((r.id, r.severity, r.limit, r.why) for r in RULES)
        ),
        "left-out": _reasons("Check", LEFT_OUT),
        "unchecked": _reasons("Name", {f"`{name}`": why for name, why in UNCHECKED.items()}),
        "attributes": _columns(ATTRIBUTES),
        "table-4": _table(
            ("Row", "Table 4", "Settings", "Note"),
            (
                (row, value, ", ".join(f"`{key}`" for key in keys) or "none", why or "-")
                for row, (value, keys, why) in TABLE_4_ROWS.items()
            ),
        ),
        "rules": _table(
            ("Setting", "Rule", "Value", "Source"),
            (
                (f"`{key}`", rule.kind, rule.words, rule.source)
                for key, (_, meaning) in settings().items()
                if (rule := meaning.rule) is not None
            ),
        ),
        # The class follows from this setting, as the page says.
        "free": _list(
            key for key, (_, meaning) in settings().items() if meaning.rule is None and key != "run.official"
        ),
    }
    for table in TABLES.values():
        about = f"{table.description[0].upper()}{table.description[1:]}; dimension scale `{table.scale}`."
        tables[table.name] = f"{about}\n\n{_columns(table.columns)}"
    return tables


def _columns(columns: Iterable[Column]) -> str:
    """Return the table of columns or attributes."""
    rows = ((c.name, c.dtype, c.units or "-", c.description) for c in columns)
    return _table(("Name", "Type", "Unit", "Meaning"), rows)


def _list(keys: Iterable[str]) -> str:
    """Return the keys of settings as lines of text."""
    words = ", ".join(f"`{key}`" for key in keys)
    return textwrap.fill(words, 120, break_long_words=False, break_on_hyphens=False)


def _reasons(head: str, reasons: Mapping[str, str]) -> str:
    """Return a table of names with the reason of each."""
    return _table((head, "Why"), reasons.items())


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    lines = [f"| {' | '.join(row)} |" for row in (head, *rows)]
    return "\n".join([lines[0], "|-" * len(head) + "|", *lines[1:]])


if __name__ == "__main__":
    for name in PAGES:
        path = Path(name)
        path.write_text(rewritten(path.read_text(encoding="utf-8")), encoding="utf-8")
