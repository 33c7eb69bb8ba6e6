# SPDX-License-Identifier: Apache-2.0
"""`run`: the benchmark itself, the only command that starts MPI."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from aiperf_mpi.commands.options import add_configuration_options
from aiperf_mpi.commands.refusal import refuse
from aiperf_mpi.config.datasets import AUTO
from aiperf_mpi.printable import plain

if TYPE_CHECKING:
    from aiperf_mpi.config import Config


#: Seconds for which `--check` waits for JAX to tell the devices of this host.
JAX_SECONDS = 60.0


def add_run(commands: Any) -> None:
    """Add `run` to the subparsers; `config.load` checks the values of its options."""
    run = commands.add_parser("run", help="run the benchmark (the default; under mpirun or srun)")
    add_configuration_options(run)
    run.add_argument("--seed", type=int, help="seed of every random stream")
    run.add_argument(
        "--output", metavar="FOLDER", help="new folder for the result, on a file system of all ranks"
    )
    run.add_argument(
        "--resume",
        metavar="FOLDER",
        help="go on with the run in its output folder, which was killed, drained or is to be longer",
    )
    run.add_argument(
        "--ranks-per-node", type=int, metavar="K", help="split ranks 1, 2, ... into nodes of K ranks"
    )
    run.add_argument(
        "--stage", metavar="FOLDER", help="folder of each node to which packed pictures are copied first"
    )
    run.add_argument("--view", choices=("auto", "live", "plain"), help="what rank 0 shows on standard error")
    run.add_argument("--check", action="store_true", help="check the configuration, print it, and stop")
    run.set_defaults(handler=check_command, prepare=prepare)


def check_command(arguments: argparse.Namespace) -> int:
    """Read the configuration and print it (`--check`); return the exit code.

    What it does not say itself comes first, as comments: the expected outcome of its preset, and what the
    precision `auto` becomes on this host.
    """
    from aiperf_mpi.config import ConfigError

    try:
        config = read(arguments)
    except ConfigError as error:
        return refuse(error)
    print("".join(f"# {line}\n" for line in remarks(config)) + config.to_toml())
    return 0


def remarks(config: Config) -> list[str]:
    """Return the expected outcome of the configuration's preset, and why it trains in its precision."""
    from aiperf_mpi.config import preset_expectation
    from aiperf_mpi.planning.precision import choose_for
    from aiperf_mpi.site.accelerators import devices_of
    from aiperf_mpi.site.child import JAX_PROGRAM, Child

    name = config.run.preset
    lines = [f"expected of preset {name} {preset_expectation(name)}"] if name else []
    if config.parallel.host_devices:
        told: dict[str, Any] = {"platform": "cpu", "kinds": ["cpu"] * config.parallel.host_devices}
    elif config.train.precision != AUTO:
        told = {}
    else:
        with Child(JAX_PROGRAM) as child:
            told = child.answer(JAX_SECONDS)
    if "error" in told:
        return [
            *lines,
            plain(f"train.precision: auto is decided on the trainers' devices; here {told['error']}"),
        ]
    choice = choose_for(config, [(str(told.get("platform", "")), str(told.get("capability", "")))])
    where = f" on this host ({devices_of(told)})" if told else ""
    return [*lines, plain(f"train.precision is {choice.precision}{where}: {choice.why}")]


def prepare(arguments: argparse.Namespace) -> Callable[[Sequence[str]], NoReturn]:
    """Make what this rank brings into the job, before MPI's initialisation; only rank 0 reads files.

    Return the function that runs the benchmark, which takes the command line.
    """
    from aiperf_mpi.ending import Refusal, process

    process.step = "configuration"
    if not (arguments.preset or arguments.config or arguments.sets or arguments.resume):
        # All ranks refuse it alike, as no file decides it, and rank 0 speaks for all.
        raise Refusal(three_runs())
    config = None if process.rank else read(arguments)
    process.step = "imports"
    from aiperf_mpi.parallel.run import prepare as prepare_rank
    from aiperf_mpi.parallel.run import run

    resumes = arguments.resume is not None
    return partial(run, prepare_rank(config, lambda: read(arguments), resumes=resumes))


def three_runs() -> str:
    """Return the three runs from which to choose, each with its command for this Python.

    Beyond the commands it fits on a terminal of 80 columns and 24 lines.
    """
    own = Path(sys.executable).parent / "mpiexec"
    launch = shlex.quote(str(own)) if own.exists() else "mpirun"
    program = f"{shlex.quote(sys.executable)} -m aiperf_mpi"
    return f"""nothing to run yet: the benchmark trains on ImageNet, which no
option names. There are three runs to choose from.

A first run needs this program alone: handwritten digits on any
two cores, in three minutes.
  {launch} -n 4 {program} --preset demo

A synthetic run needs accelerators, but no data: ImageNet's network
and counts, pictures that the devices make. It takes an hour and
measures the machine; its rate is not a score.
  {launch} -n N {program} --preset imagenet-synthetic

An official run needs ImageNet (ILSVRC 2012), which `pack SRC DST`
has packed (244 GiB, or some 27 GB as JPEG), accelerators of a known
peak, a validation error of at most 30 %, and 12 hours.
  {launch} -n N {program} --preset imagenet --set data.path=DST --set run.official=true

N is 3 for each node. The word `doctor` before the options checks
the job first; README.md says more."""


def read(arguments: argparse.Namespace) -> Config:
    """Return the configuration that the arguments ask for. Raises ConfigError."""
    from aiperf_mpi.config import load
    from aiperf_mpi.data.catalogue import resolved

    given: dict[str, Any] = {
        "seed": arguments.seed,
        "time_limit": arguments.time_limit,
        "output": arguments.output,
        "stage": arguments.stage,
        "view": arguments.view,
        "ranks_per_node": arguments.ranks_per_node,
    }
    sources = arguments.preset, arguments.config, arguments.sets
    if arguments.resume is None:
        return resolved(load(*sources, **given))
    from aiperf_mpi.results.output.settings import resumed_config

    return resumed_config(arguments.resume, *sources, **given)
