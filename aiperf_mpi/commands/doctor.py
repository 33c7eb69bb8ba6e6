# SPDX-License-Identifier: Apache-2.0
"""`doctor`: say what a run would find here: on this host, or under a launcher on all ranks of the job."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any

from aiperf_mpi.commands.options import add_configuration_options
from aiperf_mpi.commands.refusal import refuse
from aiperf_mpi.launchers import RANK_VARIABLES

if TYPE_CHECKING:
    from aiperf_mpi.config import Config
    from aiperf_mpi.site.text import Examination

#: Signals that end `doctor` without a launcher.
_SIGNALS = (signal.SIGINT, signal.SIGTERM)

#: Columns where the output is not a terminal.
WIDTH = 80


def add_doctor(commands: Any) -> None:
    """Add `doctor` to the subparsers, with the options of `run` that change what it needs."""
    doctor = commands.add_parser(
        "doctor", help="check this host, or under mpirun all ranks, for a run with the same options"
    )
    add_configuration_options(doctor)
    doctor.add_argument("--output", metavar="FOLDER", help="the folder that the run will write")
    doctor.add_argument(
        "--ranks-per-node", type=int, metavar="K", help="split ranks 1, 2, ... into nodes of K ranks"
    )
    doctor.add_argument(
        "--stage", metavar="FOLDER", help="folder of each node to which packed pictures are copied first"
    )
    doctor.add_argument("--json", action="store_true", help="print one JSON object (docs/doctor.md)")
    doctor.set_defaults(handler=doctor_command, prepare=prepare)


def doctor_command(arguments: argparse.Namespace) -> int:
    """Check this host, print what was found, and return 0, or 2 if a run would be refused."""
    started = time.monotonic()
    from aiperf_mpi.config import ConfigError
    from aiperf_mpi.parallel.examination import examine_alone

    # What was made for a try is removed, so the signal must not end the process at once.
    for number in _SIGNALS:
        signal.signal(number, _interrupt)
    try:
        config = read(arguments)
    except ConfigError as error:
        return refuse(error)
    found = examine_alone(config, started)
    show(found, arguments.json)
    return found.code


def prepare(arguments: argparse.Namespace) -> Callable[[Sequence[str]], int]:
    """Make what this rank brings into the job, before MPI's initialisation; only rank 0 reads files.

    Return the function that checks the job, which takes the command line.
    """
    started = time.monotonic()
    from aiperf_mpi.ending import process
    from aiperf_mpi.parallel.examination import Request, refuse_job
    from aiperf_mpi.parallel.launch.launcher import LaunchError

    process.step = "configuration"
    config = None if process.rank else read(arguments)
    request = Request(started, config, lambda: read(arguments), lambda found: show(found, arguments.json))
    process.step = "imports"
    try:
        from aiperf_mpi.parallel import doctor
    except LaunchError as error:
        problem = str(error)
        return lambda words: refuse_job(request, problem)
    return partial(doctor.examine_job, doctor.prepare(request))


def read(arguments: argparse.Namespace) -> Config:
    """Return the configuration that a run with these arguments has. Raises ConfigError.

    A packed data set that cannot be read decides nothing: the check of the data set says why.
    """
    from aiperf_mpi.config import ConfigError, load
    from aiperf_mpi.data.catalogue import resolved

    config = load(
        arguments.preset,
        arguments.config,
        arguments.sets,
        time_limit=arguments.time_limit,
        output=arguments.output,
        stage=arguments.stage,
        ranks_per_node=arguments.ranks_per_node,
    )
    try:
        return resolved(config)
    except ConfigError:
        return config


def show(found: Examination, as_json: bool) -> None:
    """Print what was found on standard output."""
    from aiperf_mpi.site.text import to_object, to_text

    if as_json:
        print(json.dumps(to_object(found), indent=1), flush=True)
        return
    # Under a launcher isatty proves nothing: some give a rank a terminal that no person sees.
    launched = any(name in os.environ for name in RANK_VARIABLES)
    terminal = sys.stdout is not None and sys.stdout.isatty() and not launched
    terminal = terminal and os.environ.get("TERM", "dumb") != "dumb"
    width = max(60, min(110, shutil.get_terminal_size((WIDTH, 24)).columns)) if terminal else WIDTH
    print(to_text(found, width, colour=terminal and "NO_COLOR" not in os.environ), flush=True)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """End the process with its clean-up; a second signal ends it at once."""
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_DFL)
    raise KeyboardInterrupt(number)
