# SPDX-License-Identifier: Apache-2.0
"""Show findings: a line each for people, or one JSON object."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

from aiperf_mpi import __version__
from aiperf_mpi.exits import EXIT_USAGE, EXIT_VALID
from aiperf_mpi.printable import counted, plain
from aiperf_mpi.site.merged import Seen

#: Colours of the levels, on a terminal.
_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


@dataclass(frozen=True, slots=True)
class Examination:
    """All that `doctor` has found.

    Attributes:
        seen: the findings, merged.
        ranks, hosts: ranks that were examined (0 without a launcher), and their hosts.
        launcher: how the ranks were started, "none" without a launcher.
        preset, output: of the configuration.
        seconds: from the start of the program to now.
    """

    seen: tuple[Seen, ...]
    ranks: int
    hosts: tuple[str, ...]
    launcher: str
    preset: str
    output: str
    seconds: float

    def count(self, level: str) -> int:
        """Return the number of findings of a level."""
        return sum(one.finding.level == level for one in self.seen)

    @property
    def code(self) -> int:
        """The exit code: 2 if a run would be refused, else 0."""
        return EXIT_USAGE if self.count("fail") else EXIT_VALID


def to_object(examination: Examination) -> dict[str, Any]:
    """Return the JSON object of `doctor --json`; docs/doctor.md lists its keys."""
    return {
        "doctor": 1,
        "version": __version__,
        "exit_code": examination.code,
        "counts": {level: examination.count(level) for level in ("ok", "warn", "fail")},
        "launcher": examination.launcher,
        "ranks": examination.ranks,
        "hosts": len(examination.hosts),
        "preset": examination.preset,
        "output": examination.output,
        "seconds": round(examination.seconds, 1),
        "findings": [one.to_dict() for one in examination.seen],
    }


def to_text(examination: Examination, width: int = 80, colour: bool = False) -> str:
    """Return the findings for people: level, subject, text, and below it the remedy, `width` columns wide."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    out = io.StringIO()
    console = Console(
        file=out, width=width, force_terminal=colour, color_system="standard" if colour else None,
        highlight=False, emoji=False, markup=False,
    )  # fmt: skip
    console.print(Text(plain(_title(examination))))
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for one in examination.seen:
        finding = one.finding
        text = f"{one.where}: {finding.text}" if one.where else finding.text
        table.add_row(Text(finding.level, _STYLES[finding.level]), finding.subject, Text(plain(text)))
        if finding.remedy:
            table.add_row("", "", Text(plain(f"-> {finding.remedy}"), "bold" if colour else ""))
    console.print(table)
    console.print(Text(_conclusion(examination)))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def _title(examination: Examination) -> str:
    preset = f"preset {examination.preset}" if examination.preset else "no preset"
    hosts = examination.hosts
    where = f"host {hosts[0]}" if len(hosts) == 1 else counted(len(hosts), "host")
    ranks = f"{counted(examination.ranks, 'rank')} on " if examination.ranks else ""
    return f"aiperf_mpi {__version__} doctor: {ranks}{where}, {preset}"


def _conclusion(examination: Examination) -> str:
    failures, warnings = examination.count("fail"), examination.count("warn")
    total = f"{counted(failures, 'failure')}, {counted(warnings, 'warning')} in {examination.seconds:.1f} s"
    if failures:
        return f"{total}: a run would not start here as it is"
    return f"{total}: a run would start" if examination.ranks else f"{total}: nothing here refuses a run"
