# SPDX-License-Identifier: Apache-2.0
"""`report`: show the result of a finished run, as text or as one HTML file."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from aiperf_mpi.commands.refusal import refuse
from aiperf_mpi.config import ConfigError
from aiperf_mpi.config.paths import expanded, replaced
from aiperf_mpi.descriptors import tell
from aiperf_mpi.exits import EXIT_VALID
from aiperf_mpi.files import not_regular, system_reason
from aiperf_mpi.printable import named


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
        files = [replaced("FILE", name) for name in (arguments.file, *arguments.others)]
        if arguments.html is not None:
            from aiperf_mpi.results.report.html import html_report

            return write_page(lambda: (html_report(*files), EXIT_VALID), arguments.html, files)
        from aiperf_mpi.results.report.text import text_report

        # Read every file before the first line is printed.
        comparison = ""
        if len(files) > 1:
            from aiperf_mpi.results.report.compare import compare, entry, to_text

            entries = [entry(path) for path in files]
            comparison = f"\n{to_text(compare(entries))}"
        print(f"{text_report(files[0])}{comparison}", end="")
    except (ConfigError, NotAResult) as error:
        return refuse(error)
    return 0


def wrong_page(path: str, inputs: Sequence[str]) -> str:
    """Return why an HTML file cannot be written to a path, or ""; writing it may still fail.

    A file that is there is replaced, unless it is one of the `inputs`. Anything but a regular file is
    refused: writing to a FIFO would wait for its reader.
    """
    try:
        if not path or "\0" in path:
            return "is not a file name"
        target = os.path.realpath(path)
        if os.path.lexists(target) and (reason := not_regular(target)):
            return reason
    except OSError as error:
        return f"cannot be written: {system_reason(error)}"
    sources = (os.path.realpath(name) for name in inputs if "\0" not in name)
    return "is a file that the page is made of" if target in sources else ""


def write_page(page: Callable[[], tuple[str, int]], path: str, inputs: Sequence[str]) -> int:
    """Write the HTML file that `page` makes, whole or not at all, and return the code that comes with it.

    Return 2 after a line that says why it cannot be written; what is known of the path is checked before the
    page is made.
    """
    try:
        path = str(expanded("--html", path, stored=False)) if path else path
    except ConfigError as error:
        return refuse(error)
    reason = wrong_page(path, inputs)
    if not reason:
        from aiperf_mpi import hdf5

        text, code = page()
        try:
            hdf5.write(Path(os.path.realpath(path)), text.encode("utf-8", "replace"))
        except OSError as error:
            reason = f"cannot be written: {system_reason(error)}"
    if reason:
        return refuse(ValueError(f"--html {named(path)}: {reason}; name a new file in a writable folder"))
    tell(f"aiperf_mpi: wrote {named(path)}")
    return code
