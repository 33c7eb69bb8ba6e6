# SPDX-License-Identifier: Apache-2.0
"""`report` and `compare`: show the results of finished runs, as text or as one HTML file."""

from __future__ import annotations

import argparse
from typing import Any

from aiperf_mpi.commands.refusal import refuse
from aiperf_mpi.exits import EXIT_INVALID


def add_report(commands: Any) -> None:
    """Add `report` to the subparsers."""
    report = commands.add_parser("report", help="print the report of a result file")
    report.add_argument("file", help="result.h5, or result.partial.h5 of a run that was killed")
    report.add_argument(
        "others", nargs="*", metavar="FILE", help="more runs, to be compared with the first one"
    )
    report.add_argument("--html", metavar="OUT", help="write the report to one HTML file instead")
    report.set_defaults(handler=report_command)


def add_compare(commands: Any) -> None:
    """Add `compare` to the subparsers."""
    compare = commands.add_parser(
        "compare", help="compare runs: ratios, their confidence intervals, weak scaling"
    )
    compare.add_argument(
        "files", nargs="+", metavar="FILE", help="result files; the first valid one is the base"
    )
    compare.add_argument("--json", action="store_true", help="print the comparison as one JSON object")
    compare.add_argument("--html", metavar="OUT", help="write the comparison to one HTML file instead")
    compare.set_defaults(handler=compare_command)


def report_command(arguments: argparse.Namespace) -> int:
    """Print the whole report from the file alone; return 0 if the file is readable, valid or not, else 2."""
    from aiperf_mpi.results.judge.judge import NotAResult

    try:
        if arguments.html:
            from aiperf_mpi.results.report.html import html_report

            return write_page(html_report(arguments.file, *arguments.others), arguments.html)
        from aiperf_mpi.results.report.text import text_report

        print(text_report(arguments.file), end="")
        if arguments.others:
            from aiperf_mpi.results.report.compare import compare, entry, to_text

            entries = [entry(path) for path in (arguments.file, *arguments.others)]
            print(f"\n{to_text(compare(entries))}", end="")
    except NotAResult as error:
        return refuse(error)
    return 0


def write_page(page: str, path: str) -> int:
    """Write an HTML file; return 0, or 2 after a line that says why it cannot be written."""
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(page)
    except OSError as error:
        return refuse(OSError(f"--html {path}: cannot be written: {error.strerror}"))
    return 0


def compare_command(arguments: argparse.Namespace) -> int:
    """Print the comparison; return 0 if all files are valid, 3 if one is not, 2 if one is not a result."""
    from aiperf_mpi.results.judge.judge import NotAResult
    from aiperf_mpi.results.report.compare import compare_files

    try:
        if arguments.html:
            from aiperf_mpi.results.report.html import html_comparison

            page, valid = html_comparison(arguments.files)
            return write_page(page, arguments.html) or (0 if valid else EXIT_INVALID)
        return compare_files(arguments.files, as_json=arguments.json)
    except NotAResult as error:
        return refuse(error)
