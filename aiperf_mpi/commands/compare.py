# SPDX-License-Identifier: Apache-2.0
"""`compare`: show the results of several runs next to each other, as text, JSON or one HTML file."""

from __future__ import annotations

import argparse
from typing import Any

from aiperf_mpi.commands.refusal import refuse
from aiperf_mpi.commands.report import write_page
from aiperf_mpi.config import ConfigError
from aiperf_mpi.config.paths import replaced
from aiperf_mpi.exits import EXIT_INVALID, EXIT_VALID


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


def compare_command(arguments: argparse.Namespace) -> int:
    """Print the comparison; return 0 if all files are valid, 3 if one is not, 2 if one is not a result."""
    from aiperf_mpi.results.judge.judge import NotAResult
    from aiperf_mpi.results.report.compare import compare_files

    try:
        files = [replaced("FILE", name) for name in arguments.files]
        if arguments.html is not None:
            from aiperf_mpi.results.report.html import html_comparison

            def page() -> tuple[str, int]:
                text, valid = html_comparison(files)
                return text, EXIT_VALID if valid else EXIT_INVALID

            return write_page(page, arguments.html, files)
        return compare_files(files, as_json=arguments.json)
    except (ConfigError, NotAResult) as error:
        return refuse(error)
