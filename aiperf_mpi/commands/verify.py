# SPDX-License-Identifier: Apache-2.0
"""`verify`: judge a result file; `--repair` makes one from a journal, `--reevaluate` validates its model."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aiperf_mpi.commands.refusal import refuse
from aiperf_mpi.config import ConfigError
from aiperf_mpi.config.classes import RULES, OfficialRules
from aiperf_mpi.config.paths import expanded, replaced
from aiperf_mpi.descriptors import tell
from aiperf_mpi.exits import EXIT_INVALID
from aiperf_mpi.printable import counted, named

#: Most problems of a journal that are printed.
MOST_PROBLEMS = 20


def add_verify(commands: Any) -> None:
    """Add `verify` to the subparsers."""
    verify = commands.add_parser(
        "verify", help="judge a result file: exit 0 if valid, 3 if invalid, 2 if not a result"
    )
    verify.add_argument("file", help="result.h5, or result.partial.h5 of a run that was killed")
    verify.add_argument(
        "--json", action="store_true", help="print the verdict and its checks as one JSON object"
    )
    verify.add_argument(
        "--repair",
        action="store_true",
        help="write a new result from a run's journal, next to the old files, and judge it; FILE is the "
        "run's folder or a file in it",
    )
    verify.add_argument(
        "--reevaluate",
        action="store_true",
        help="also load the best model from checkpoints/ next to FILE and validate it again (V03); exit 3 "
        "if its error differs",
    )
    verify.add_argument(
        "--data", default="", metavar="PATH", help="where the data set is here, for --reevaluate"
    )
    verify.set_defaults(handler=verify_command)


def verify_file(path: Path | str, *, as_json: bool = False, rules: OfficialRules = RULES) -> int:
    """Judge a file and print the verdict with every check on standard output; return 0 (valid) or 3.

    Raises NotAResult if the file is not a result. Only tests pass other `rules` than those of the benchmark.
    """
    from aiperf_mpi.results.judge.judge import judge
    from aiperf_mpi.results.report.verdict import check_lines, verdict_json, verdict_lines, verify_code

    verdict = judge(path, rules=rules)
    print(verdict_json(verdict) if as_json else "\n".join([*verdict_lines(verdict), *check_lines(verdict)]))
    return verify_code(verdict)


def verify_command(arguments: argparse.Namespace) -> int:
    """Judge the result, with `--repair` before and `--reevaluate` after it; return the exit code."""
    from aiperf_mpi.results.judge.judge import NotAResult
    from aiperf_mpi.results.output.repair import RepairError, repair

    try:
        file: Path | str = replaced("FILE", arguments.file)
        data = str(expanded("--data", arguments.data)) if arguments.data else ""
        if arguments.reevaluate:
            check_memory()
        if arguments.repair:
            file, problems = repair(file)
            for line in (*problems[:MOST_PROBLEMS], *more(problems), f"wrote {named(file)}"):
                tell(f"aiperf_mpi: {line}")
        code = verify_file(file, as_json=arguments.json)
    except (ConfigError, NotAResult, RepairError) as error:
        return refuse(error)
    return max(code, verify_again(Path(file), data)) if arguments.reevaluate else code


def check_memory() -> None:
    """Raise ConfigError if JAX cannot validate the model here: it would abort."""
    from aiperf_mpi.planning.memory import too_small_to_trace

    if problem := too_small_to_trace("leave --reevaluate out"):
        raise ConfigError(problem)


def more(problems: Sequence[str]) -> list[str]:
    """Return a line for the problems of a journal that are not printed."""
    left = len(problems) - MOST_PROBLEMS
    return [f"and {counted(left, 'more damaged line')} of the journal"] if left > 0 else []


def verify_again(file: Path, data_path: str) -> int:
    """Repeat check V03 from the checkpoint next to a result, and print the outcome on standard error.

    Return 0 if the errors agree, 3 if they differ, 2 if the model cannot be validated.
    """
    from aiperf_mpi.commands.reevaluation import ReevaluationError, reevaluate
    from aiperf_mpi.results.judge.judge import judge_file

    try:
        repetition = reevaluate(judge_file(file)[0], file.parent, data_path)
    except ReevaluationError as error:
        return refuse(error)
    except (KeyError, ValueError) as error:
        return refuse(ValueError(f"{named(file)}: the rows do not identify the best model: {error}"))
    tell(f"aiperf_mpi: {repetition}")
    return 0 if repetition.agrees else EXIT_INVALID
