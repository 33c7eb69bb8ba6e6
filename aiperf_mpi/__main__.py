# SPDX-License-Identifier: Apache-2.0
"""The command line: parse the arguments and call one subcommand, which imports what it needs.

`python -m aiperf_mpi` alone means `run`. Only `run`, and `doctor` and `pack` under a launcher, touch MPI.
Exit codes: 0 valid, 2 usage, 3 finished but invalid, 4 drained, 5 failure. Only the standard library is
imported at the top: any other import may fail on one rank of a job, and is then told to all.
"""

from __future__ import annotations

import argparse
import difflib
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

#: The subcommands that run as a job, if a launcher started it.
LAUNCHED = ("run", "doctor", "pack")

SUBCOMMANDS = ("run", "report", "verify", "compare", "flops", "estimate", "doctor", "pack")


class UsageError(ValueError):
    """An error in the command line, in one line."""


class Parser(argparse.ArgumentParser):
    """Raises UsageError for an error in the command line: a rank of a job must not leave alone."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError with the message."""
        raise UsageError(f"{message}; see {self.prog} --help")

    def _print_message(self, message: str, file: Any = None) -> None:
        # argparse ignores that a help text cannot be written.
        if message:
            print(message, end="", file=file or sys.stderr, flush=True)


def parser() -> argparse.ArgumentParser:
    """Return the parser with all subcommands."""
    from aiperf_mpi import __version__
    from aiperf_mpi.commands.compare import add_compare
    from aiperf_mpi.commands.doctor import add_doctor
    from aiperf_mpi.commands.estimate import add_estimate
    from aiperf_mpi.commands.flops import add_flops
    from aiperf_mpi.commands.pack import add_pack
    from aiperf_mpi.commands.report import add_report
    from aiperf_mpi.commands.run import add_run
    from aiperf_mpi.commands.verify import add_verify

    top = Parser(
        prog="python -m aiperf_mpi",
        description="Rank an AI supercomputer by automated machine learning on all of it. "
        "Launch under MPI: mpirun -n N python -m aiperf_mpi --preset demo --output runs/first",
    )
    top.add_argument("--version", action="version", version=f"aiperf_mpi {__version__}")
    commands = top.add_subparsers(dest="command", metavar="{" + ",".join(SUBCOMMANDS) + "}")

    every = (add_run, add_report, add_verify, add_compare, add_flops, add_estimate, add_doctor, add_pack)
    for add in every:
        add(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Parse `argv` (by default the process's arguments), run its subcommand and return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    first = words[0] if words else ""
    if first in ("-h", "--help", "--version") or (first in SUBCOMMANDS and first not in LAUNCHED):
        return command(words)
    try:
        from aiperf_mpi import ending
        from aiperf_mpi.launchers import starts_several
    except BaseException as error:
        _end_without_package(error)
    try:
        alone = first in ("doctor", "pack") and not starts_several()
        return command(words) if alone else run(words)
    except Exception as error:
        ending.end_job(*ending.describe(error))


# -- a job -----------------------------------------------------------------------------------------


def run(words: Sequence[str]) -> int:
    """Run the benchmark, `doctor` or `pack` on this rank; return the exit code of `--check` or of a refusal.

    Whatever fails here before MPI's initialisation is held, and told after it: a rank that left alone would
    leave the others in it for ever.
    """
    from aiperf_mpi.ending import describe, end_job, lines, process, watch, write_error

    watch.start()
    held: tuple[int, str] | None = None
    try:
        arguments = _arguments(words)
        if "check" in arguments and arguments.check:
            watch.stop()
            return command(["run", *(word for word in words if word != "run")])
        job_of_rank = arguments.prepare(arguments)
    except BaseException as error:
        if isinstance(error, SystemExit) and not error.code:
            raise
        held = describe(error)
    if held is not None and process.rank is None:
        process.clean()
        watch.stop()
        write_error(lines(held[1]))
        return held[0]
    if held is not None:
        try:
            from aiperf_mpi.parallel.launch.job import job
        except BaseException as error:
            end_job(held[0], "\n".join(dict.fromkeys((held[1], describe(error)[1]))))
        with job(held, words):
            raise RuntimeError(held[1])
    return int(job_of_rank(words))


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    """Return the parsed arguments of a job; raises Refusal for an error in them."""
    from aiperf_mpi.ending import Refusal

    if words and not words[0].startswith("-") and words[0] not in LAUNCHED:
        raise Refusal(_unknown_command(words[0]))
    try:
        return parser().parse_args(words if words and words[0] in LAUNCHED else ["run", *words])
    except UsageError as error:
        raise Refusal(str(error)) from None


def _end_without_package(error: BaseException) -> NoReturn:
    """End the job where even the module that ends jobs cannot be imported, by MPICH's launcher or by an exit
    code."""
    names = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "SLURM_PROCID")
    rank = next((os.environ[name] for name in names if name in os.environ), "?")
    where = f"aiperf_mpi: rank {rank} on host {os.uname().nodename}: "
    code, text = 5, "".join(traceback.format_exception(error))
    text += f"aiperf_mpi itself cannot be imported: {error!r}; all ranks end with exit code 5"
    if isinstance(error, KeyboardInterrupt):
        text = "SIGINT while the program was imported: the run ends without a result"
    with suppress(Exception):
        from aiperf_mpi import interpreter

        if explained := interpreter.explain(error):
            code, text = 2, explained
    os.write(2, "".join(f"{where}{line}\n" for line in text.splitlines()).encode(errors="replace"))
    try:
        launcher = int(os.environ["PMI_FD"])
        os.write(launcher, b"cmd=init pmi_version=1 pmi_subversion=1\n")
        os.read(launcher, 1000)
        os.write(launcher, b"cmd=abort exitcode=%d\n" % code)
        time.sleep(3)
    finally:
        os._exit(code)


# -- other commands --------------------------------------------------------------------------------


def command(words: Sequence[str]) -> int:
    """Run a subcommand that starts no job of its own, and return its exit code."""
    from aiperf_mpi import ending, interpreter
    from aiperf_mpi.commands.refusal import refuse
    from aiperf_mpi.descriptors import OutputLost
    from aiperf_mpi.exits import EXIT_BROKEN_PIPE, EXIT_USAGE
    from aiperf_mpi.files import lack

    try:
        arguments = parser().parse_args(words)
        code = int(arguments.handler(arguments))
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except KeyboardInterrupt as error:
        number = signal.Signals(error.args[0] if error.args else signal.SIGINT)
        ending.write_error(f"aiperf_mpi: {words[0]}: ended by {number.name}\n")
        return 128 + number
    except UsageError as error:
        if words[0] == "doctor" and ending.process.rank is not None:
            ending.end_job(EXIT_USAGE, str(error), where="")
        return refuse(error)
    except OutputLost as error:
        return EXIT_BROKEN_PIPE if error.closed_pipe else refuse(error)
    except (MemoryError, OSError, ImportError, AttributeError, RuntimeError) as error:
        if not (text := interpreter.explain(error) or lack(error)):
            raise
        return refuse(ValueError(text))


def _unknown_command(word: str) -> str:
    """Return the message for a first word that is not a command, with the most similar command."""
    guesses = difflib.get_close_matches(word, SUBCOMMANDS, n=1)
    hint = f"did you mean {guesses[0]}?" if guesses else f"commands: {', '.join(SUBCOMMANDS)}"
    return f"unknown command {word!r}; {hint}"


def program() -> int:
    """Run the command line as a program of its own, which owns its standard input, output and error."""
    try:
        from aiperf_mpi.descriptors import guard

        guard()
    except BaseException as error:
        _end_without_package(error)
    return main()


if __name__ == "__main__":
    sys.exit(program())
