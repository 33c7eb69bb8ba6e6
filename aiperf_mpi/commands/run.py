# SPDX-License-Identifier: Apache-2.0
"""`run`: the benchmark itself, the only command that starts MPI."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from aiperf_mpi.commands.options import add_configuration_options
from aiperf_mpi.commands.refusal import refuse


def add_run(commands: Any) -> None:
    """Add `run` to the subparsers; `config.load` checks the values of its options."""
    run = commands.add_parser("run", help="run the benchmark (the default; under mpirun or srun)")
    add_configuration_options(run)
    run.add_argument("--seed", type=int, help="seed of every random stream")
    run.add_argument(
        "--output", metavar="FOLDER", help="new folder for the result, on a file system of all ranks"
    )
    run.add_argument(
        "--ranks-per-node", type=int, metavar="K", help="split ranks 1, 2, ... into nodes of K ranks"
    )
    run.add_argument("--view", choices=("auto", "live", "plain"), help="what rank 0 shows on standard error")
    run.add_argument("--check", action="store_true", help="check the configuration, print it, and stop")
    run.set_defaults(handler=run_command)


def run_command(arguments: argparse.Namespace) -> int:
    """Read the configuration and run the benchmark under MPI; return the exit code."""
    from aiperf_mpi.parallel.launch.drain import Drain

    # Install the signal handlers first: imports can take minutes on a slow file system, and a batch system
    # may send its signal during them.
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
