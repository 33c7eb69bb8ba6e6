# SPDX-License-Identifier: Apache-2.0
"""The command line: parse the arguments, then import the one subcommand that was asked for.

`python -m aiperf_mpi` alone means `run`, and only `run` touches MPI. Exit codes: 0 valid, 2 usage, 3 finished but
invalid, 4 drained, 5 failure.
"""

from __future__ import annotations

import argparse
import errno
import io
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from aiperf_mpi import __version__
from aiperf_mpi.exits import EXIT_BROKEN_PIPE, EXIT_INVALID, EXIT_USAGE
from aiperf_mpi.opcount.flops import add_flops_arguments

#: How long the ranks that print nothing wait before they leave with a usage error.
SILENT_SECONDS = 2.0

SUBCOMMANDS = ("run", "report", "verify", "compare", "flops", "estimate")


class Parser(argparse.ArgumentParser):
    """Says what is wrong with a command line once for all ranks, and in one line."""

    def error(self, message: str) -> NoReturn:
        """Exit with 2, on all ranks alike."""
        launched = self.prog.endswith((" run", "aiperf_mpi"))
        sys.exit(refuse(ValueError(f"{message}; see {self.prog} --help"), launched))


def parser() -> argparse.ArgumentParser:
    """The parser of all subcommands."""
    top = Parser(
        prog="python -m aiperf_mpi",
        description="Rank an AI supercomputer by automated machine learning on all of it. "
        "Launch under MPI: mpirun -n N python -m aiperf_mpi --preset demo --output runs/first",
    )
    top.add_argument("--version", action="version", version=f"aiperf_mpi {__version__}")
    commands = top.add_subparsers(dest="command", metavar="{" + ",".join(SUBCOMMANDS) + "}")

    run = commands.add_parser("run", help="run the benchmark (the default; under mpirun or srun)")
    add_run_arguments(run)

    report = commands.add_parser("report", help="print the report of a result file")
    report.add_argument("file", help="result.h5, or result.partial.h5 of a run that was killed")
    report.add_argument("others", nargs="*", metavar="FILE", help="further runs, to be put beside the first one")
    report.add_argument("--html", metavar="OUT", help="write the report as one HTML file instead")
    report.set_defaults(handler=report_command)

    verify = commands.add_parser("verify", help="judge a result file: exit 0 if it is valid, 3 if not, 2 if it is none")
    verify.add_argument("file", help="result.h5, or result.partial.h5 of a run that was killed")
    verify.add_argument("--json", action="store_true", help="print the verdict and its checks as one JSON object")
    verify.add_argument("--repair", action="store_true", help="FILE is a run's folder, or a file in it: write a new "
                        "result from its journal, beside the old files, and judge that")  # fmt: skip
    verify.add_argument("--reevaluate", action="store_true", help="also load the best model from checkpoints/ beside "
                        "FILE and validate it again (V03): exit 3 if its error is another one")  # fmt: skip
    verify.add_argument("--data", default="", metavar="PATH", help="where the data set lies here, for --reevaluate")
    verify.set_defaults(handler=verify_command)

    compare = commands.add_parser("compare", help="put runs side by side: ratios, their intervals, weak scaling")
    compare.add_argument("files", nargs="+", metavar="FILE", help="result files; the first valid one is the base")
    compare.add_argument("--json", action="store_true", help="print the comparison as one JSON object")
    compare.add_argument("--html", metavar="OUT", help="write the comparison as one HTML file instead")
    compare.set_defaults(handler=compare_command)

    flops = commands.add_parser("flops", help="count the operations of a network by three methods (no MPI needed)")
    add_flops_arguments(flops)
    flops.set_defaults(handler=flops_command)

    estimate = commands.add_parser("estimate", help="what a run will take on a described machine (no MPI needed)")
    add_estimate_arguments(estimate)
    estimate.set_defaults(handler=estimate_command)
    return top


def add_run_arguments(run: argparse.ArgumentParser) -> None:
    """The options of `run`; what they set is checked by the configuration, not here."""
    run.add_argument("--preset", help="demo, cifar10, imagenet or imagenet-synthetic")
    run.add_argument("--config", action="append", default=[], metavar="FILE", help="TOML file; may be given again")
    run.add_argument("--set", action="append", default=[], dest="sets", metavar="a.b=c", help="set one value")
    run.add_argument("--seed", type=int, help="seed of every random stream")
    run.add_argument("--time-limit", type=float, metavar="SECONDS", help="length of the core phase")
    run.add_argument("--output", metavar="FOLDER", help="new folder for the result, seen by all ranks")
    run.add_argument("--ranks-per-node", type=int, metavar="K", help="cut ranks 1, 2, ... into nodes of K ranks")
    run.add_argument("--view", choices=("auto", "live", "plain"), help="what rank 0 shows on standard error")
    run.add_argument("--check", action="store_true", help="check the configuration, print it, and stop")
    run.set_defaults(handler=run_command)


def add_estimate_arguments(estimate: argparse.ArgumentParser) -> None:
    """The options of `estimate`: those of the configuration, and the machine."""
    estimate.add_argument("--preset", help="demo, cifar10, imagenet or imagenet-synthetic")
    estimate.add_argument("--config", action="append", default=[], metavar="FILE", help="TOML file; may be given again")
    estimate.add_argument("--set", action="append", default=[], dest="sets", metavar="a.b=c", help="set one value")
    estimate.add_argument("--time-limit", type=float, metavar="SECONDS", help="length of the core phase")
    estimate.add_argument("--nodes", type=int, required=True, metavar="N", help="nodes of the machine")
    estimate.add_argument("--devices-per-node", type=int, default=1, metavar="D", help="accelerators of a node (1)")
    estimate.add_argument("--ranks-per-node", type=int, default=3, metavar="K", help="trainers and generators (3)")
    rate = estimate.add_mutually_exclusive_group()
    rate.add_argument("--ops-per-device", type=float, metavar="X", help="op/s at which a device trains")
    rate.add_argument("--images-per-second", type=float, metavar="X",
                      help="images of the initial network that a device trains in a second")  # fmt: skip
    estimate.add_argument("--json", action="store_true", help="print one JSON object")


def run_command(arguments: argparse.Namespace) -> int:
    """`run`: read the configuration, then hand over to MPI."""
    from aiperf_mpi.parallel.launch.drain import Drain

    # Heard from the first moment on: imports can take minutes on a slow file system, and a batch system does not wait.
    drain = Drain() if arguments.check else Drain().install()

    from aiperf_mpi.config import ConfigError, load

    try:
        config = load(
            arguments.preset,
            arguments.config,
            arguments.sets,
            seed=arguments.seed,
            time_limit=arguments.time_limit,
            output=arguments.output,
            view=arguments.view,
            ranks_per_node=arguments.ranks_per_node,
        )
    except ConfigError as error:
        return refuse(error, launched=True)
    if arguments.check:
        print(config.to_toml())
        return 0

    from aiperf_mpi.parallel.launch.launcher import LaunchError

    try:
        from aiperf_mpi.parallel.run import run
    except LaunchError as error:
        return refuse(error, launched=True)
    run(config, sys.argv[1:], drain)


def report_command(arguments: argparse.Namespace) -> int:
    """`report`: the whole report, from the file alone; exit code 0 says that it could be read, not that it is valid."""
    from aiperf_mpi.results.judge.judge import NotAResult

    try:
        if arguments.html:
            from aiperf_mpi.results.report.html import html_report

            return write_page(html_report(arguments.file, *arguments.others), arguments.html)
        from aiperf_mpi.results.report.text import text_report

        print(text_report(arguments.file), end="")
        if arguments.others:
            from aiperf_mpi.results.report.compare import compare, entry, to_text

            print(f"\n{to_text(compare([entry(path) for path in (arguments.file, *arguments.others)]))}", end="")
    except NotAResult as error:
        return refuse(error)
    return 0


def write_page(page: str, path: str) -> int:
    """Write an HTML file; returns 0, or 2 behind a line that says why it cannot be written."""
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(page)
    except OSError as error:
        return refuse(OSError(f"--html {path}: cannot be written: {error.strerror}"))
    return 0


def verify_command(arguments: argparse.Namespace) -> int:
    """`verify`: the verdict of the file alone."""
    from aiperf_mpi.results.judge.judge import NotAResult
    from aiperf_mpi.results.output.repair import RepairError, repair
    from aiperf_mpi.results.report.verdict import verify_file

    file = arguments.file
    try:
        if arguments.repair:
            file, problems = repair(file)
            for line in (*problems, f"wrote {file}"):
                print(f"aiperf_mpi: {line}", file=sys.stderr)
        code = verify_file(file, as_json=arguments.json)
    except (NotAResult, RepairError) as error:
        return refuse(error)
    return max(code, verify_again(Path(file), arguments.data)) if arguments.reevaluate else code


def verify_again(file: Path, data_path: str) -> int:
    """V03 once more, from the checkpoint beside a result; says on standard error what came of it."""
    from aiperf_mpi.results.judge.judge import read
    from aiperf_mpi.training.reevaluation import ReevaluationError, reevaluate

    try:
        found = reevaluate(read(file)[0], file.parent, data_path)
    except ReevaluationError as error:
        return refuse(error)
    except (KeyError, ValueError) as error:
        return refuse(ValueError(f"{file}: the rows do not say which model is the best: {error}"))
    print(f"aiperf_mpi: {found}", file=sys.stderr, flush=True)
    return 0 if found.agrees else EXIT_INVALID


def compare_command(arguments: argparse.Namespace) -> int:
    """`compare`: exit code 0 if all files are valid, 3 if one is not, 2 if one is no result."""
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


def flops_command(arguments: argparse.Namespace) -> int:
    """`flops`: the operations of a network, without MPI; the analytical part without JAX."""
    from aiperf_mpi.opcount.flops import flops

    try:
        return flops(arguments)
    except ValueError as error:
        return refuse(error)


def estimate_command(arguments: argparse.Namespace) -> int:
    """`estimate`: memory, time, operations, score, node-hours and storage of a run, without MPI and JAX."""
    from aiperf_mpi.config import ConfigError, load
    from aiperf_mpi.system.estimate import estimate, read_machine, to_object, to_text

    try:
        config = load(arguments.preset, arguments.config, arguments.sets, time_limit=arguments.time_limit)
        machine = read_machine(
            config, arguments.nodes, arguments.devices_per_node, arguments.ranks_per_node, arguments.ops_per_device,
            arguments.images_per_second,
        )  # fmt: skip
        numbers = estimate(config, machine)
    except ConfigError as error:
        return refuse(error)
    if arguments.json:
        print(json.dumps(to_object(config, machine, numbers), indent=1))
    else:
        print(to_text(machine, numbers, min(110, shutil.get_terminal_size((110, 24)).columns)))
    return 0


def refuse(error: Exception, launched: bool = False) -> int:
    """One line on standard error; returns the exit code of a usage error.

    A `launched` command, `run`, says it from one process of the job alone; the others run where there is no MPI.
    """
    silent = False
    if launched:
        from aiperf_mpi.parallel.launch.launcher import detect

        silent = not detect().speaks

    # The launcher kills the other ranks once one has left, so the silent ones leave last.
    if silent:
        time.sleep(SILENT_SECONDS)
    else:
        print(f"aiperf_mpi: {error}", file=sys.stderr, flush=True)
    return EXIT_USAGE


def main(argv: Sequence[str] | None = None) -> int:
    """Parse `argv` (the process's own by default) and run its subcommand; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or (words[0] not in SUBCOMMANDS and words[0] not in ("-h", "--help", "--version")):
        words.insert(0, "run")
    arguments = parser().parse_args(words)
    # What a narrow encoding lacks is shown as "?": lines of a tree are no reason to end without the report.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        code = arguments.handler(arguments)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Who reads has seen enough, as in `report FILE | head`; Python's own flush at the exit must not say so again.
        _drop_output()
        return EXIT_BROKEN_PIPE
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename is not None:
            raise
        _drop_output()
        return refuse(OSError("standard output cannot take what is printed: no space left on the device"))


def _drop_output() -> None:
    """Whatever is still to be printed goes nowhere, so that Python's flush at the exit does not fail once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
