# SPDX-License-Identifier: Apache-2.0
"""The command line: parse the arguments and call one subcommand, which imports what it needs.

`python -m aiperf_mpi` alone means `run`, and only `run` touches MPI. Exit codes: 0 valid, 2 usage, 3 finished
but invalid, 4 drained, 5 failure.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from aiperf_mpi import __version__
from aiperf_mpi.commands.compare import add_compare
from aiperf_mpi.commands.doctor import add_doctor
from aiperf_mpi.commands.estimate import add_estimate
from aiperf_mpi.commands.flops import add_flops
from aiperf_mpi.commands.refusal import refuse
from aiperf_mpi.commands.report import add_report
from aiperf_mpi.commands.run import add_run
from aiperf_mpi.commands.verify import add_verify
from aiperf_mpi.exits import EXIT_BROKEN_PIPE

SUBCOMMANDS = ("run", "report", "verify", "compare", "flops", "estimate", "doctor")


class Parser(argparse.ArgumentParser):
    """Reports an error in the command line in one line, and once for all ranks."""

    def error(self, message: str) -> NoReturn:
        """Print the message and exit with code 2 on every rank."""
        launched = self.prog.endswith((" run", " doctor", "aiperf_mpi"))
        sys.exit(refuse(ValueError(f"{message}; see {self.prog} --help"), launched))


def parser() -> argparse.ArgumentParser:
    """Return the parser with all subcommands."""
    top = Parser(
        prog="python -m aiperf_mpi",
        description="Rank an AI supercomputer by automated machine learning on all of it. "
        "Launch under MPI: mpirun -n N python -m aiperf_mpi --preset demo --output runs/first",
    )
    top.add_argument("--version", action="version", version=f"aiperf_mpi {__version__}")
    commands = top.add_subparsers(dest="command", metavar="{" + ",".join(SUBCOMMANDS) + "}")

    for add in (add_run, add_report, add_verify, add_compare, add_flops, add_estimate, add_doctor):
        add(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Parse `argv` (by default the process's arguments), run its subcommand and return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and not words[0].startswith("-") and words[0] not in SUBCOMMANDS:
        return refuse(ValueError(_unknown_command(words[0])), launched=True)
    if not words or (words[0] not in SUBCOMMANDS and words[0] not in ("-h", "--help", "--version")):
        words.insert(0, "run")
    arguments = parser().parse_args(words)
    # Print "?" for characters that the encoding lacks: the lines of a tree must not end the report.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        code = arguments.handler(arguments)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader closed the pipe, as in `report FILE | head`. Python's flush at exit must not fail too.
        _drop_output()
        return EXIT_BROKEN_PIPE
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename is not None:
            raise
        _drop_output()
        return refuse(OSError("cannot write to standard output: no space left on the device"))


def _unknown_command(word: str) -> str:
    """Return the message for a first word that is not a command, with the most similar command."""
    guesses = difflib.get_close_matches(word, SUBCOMMANDS, n=1)
    hint = f"did you mean {guesses[0]}?" if guesses else f"commands: {', '.join(SUBCOMMANDS)}"
    return f"unknown command {word!r}; {hint}"


def _drop_output() -> None:
    """Discard all output that is still buffered, so that Python's flush at exit does not fail as well."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
