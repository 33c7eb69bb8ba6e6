# SPDX-License-Identifier: Apache-2.0
"""`report`: show the result of a finished run, as text or as one HTML file."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from aiperf_mpi.commands.refusal import refuse


def add_report(commands: Any) -> None:
    """Add `report` to the subparsers."""
    report = commands.add_parser("report", help="print the report of a result file")
    report.add_argument("file", help="result.h5, or result.partial.h5 of a run that was killed")
    report.add_argument(
        "others", nargs="*", metavar="FILE", help="more runs, to be compared with the first one"
    )
    report.add_argument("--html", metavar="OUT", help="write the report to one HTML file instead")
    report.set_defaults(handler=report_command)


def report_command(arguments: argparse.Namespace) -> int:
    """Print the whole report from the file alone; return 0 if the file is readable, valid or not, else 2."""
    from aiperf_mpi.results.judge.judge import NotAResult

    try:
        if arguments.html:
            from aiperf_mpi.results.report.html import html_report

            return write_page(html_report(arguments.file, *arguments.others), arguments.html)
        from aiperf_mpi.results.report.text import text_report

        # Read every file before the first line is printed.
        comparison = ""
        if arguments.others:
            from aiperf_mpi.results.report.compare import compare, entry, to_text

            entries = [entry(path) for path in (arguments.file, *arguments.others)]
            comparison = f"\n{to_text(compare(entries))}"
        print(f"{text_report(arguments.file)}{comparison}", end="")
    except NotAResult as error:
        return refuse(error)
    return 0


def write_page(page: str, path: str) -> int:
    """Write an HTML file; return 0, or 2 after a line that says why it cannot be written."""
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(page)
    except OSError as error:
        return refuse(
            OSError(f"--html {path}: cannot be written: {error.strerror}; name a file in a writable folder")
        )
    print(f"aiperf_mpi: wrote {path}", file=sys.stderr)
    return 0
