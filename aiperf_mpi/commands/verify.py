# SPDX-License-Identifier: Apache-2.0
"""`verify`: judges a result file alone; --repair makes one from a journal, --reevaluate validates its model
too."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from aiperf_mpi.commands.refusal import refuse
from aiperf_mpi.exits import EXIT_INVALID


def add_verify(commands: Any) -> None:
    """Add `verify` to the subparsers."""
    verify = commands.add_parser(
        "verify", help="judge a result file: exit 0 if it is valid, 3 if not, 2 if it is none"
    )
    verify.add_argument("file", help="result.h5, or result.partial.h5 of a run that was killed")
    verify.add_argument(
        "--json", action="store_true", help="print the verdict and its checks as one JSON object"
    )
    verify.add_argument(
        "--repair",
        action="store_true",
        help="FILE is a run's folder, or a file in it: write a new "
        "result from its journal, beside the old files, and judge that",
    )
    verify.add_argument(
        "--reevaluate",
        action="store_true",
        help="also load the best model from checkpoints/ beside "
        "FILE and validate it again (V03): exit 3 if its error is another one",
    )
    verify.add_argument(
        "--data", default="", metavar="PATH", help="where the data set lies here, for --reevaluate"
    )
    verify.set_defaults(handler=verify_command)


def verify_file(path: Path | str, *, as_json: bool = False) -> int:
    """Judge a file and print the verdict with every check on standard output; returns 0 (valid) or 3.

    Raises NotAResult if the file is no result at all.
    """
    from aiperf_mpi.results.judge.judge import judge
    from aiperf_mpi.results.report.verdict import check_lines, verdict_json, verdict_lines, verify_code

    verdict = judge(path)
    print(verdict_json(verdict) if as_json else "\n".join([*verdict_lines(verdict), *check_lines(verdict)]))
    return verify_code(verdict)


def verify_command(arguments: argparse.Namespace) -> int:
    """`verify`: the verdict of the file alone."""
    from aiperf_mpi.results.judge.judge import NotAResult
    from aiperf_mpi.results.output.repair import RepairError, repair

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
    from aiperf_mpi.commands.reevaluation import ReevaluationError, reevaluate
    from aiperf_mpi.results.judge.judge import judge_file

    try:
        found = reevaluate(judge_file(file)[0], file.parent, data_path)
    except ReevaluationError as error:
        return refuse(error)
    except (KeyError, ValueError) as error:
        return refuse(ValueError(f"{file}: the rows do not say which model is the best: {error}"))
    print(f"aiperf_mpi: {found}", file=sys.stderr, flush=True)
    return 0 if found.agrees else EXIT_INVALID
