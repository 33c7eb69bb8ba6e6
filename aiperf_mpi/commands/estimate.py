# SPDX-License-Identifier: Apache-2.0
"""`estimate`: what a run will take on a described machine, before it is queued."""

from __future__ import annotations

import argparse
import json
import shutil
from typing import Any

from aiperf_mpi.commands.refusal import refuse


def add_estimate(commands: Any) -> None:
    """Add `estimate` to the subparsers: the options of the configuration, and the machine."""
    estimate = commands.add_parser(
        "estimate", help="what a run will take on a described machine (no MPI needed)"
    )
    estimate.add_argument("--preset", help="demo, cifar10, imagenet or imagenet-synthetic")
    estimate.add_argument(
        "--config", action="append", default=[], metavar="FILE", help="TOML file; may be given again"
    )
    estimate.add_argument(
        "--set", action="append", default=[], dest="sets", metavar="a.b=c", help="set one value"
    )
    estimate.add_argument("--time-limit", type=float, metavar="SECONDS", help="length of the core phase")
    estimate.add_argument("--nodes", type=int, required=True, metavar="N", help="nodes of the machine")
    estimate.add_argument(
        "--devices-per-node", type=int, default=1, metavar="D", help="accelerators of a node (1)"
    )
    estimate.add_argument(
        "--ranks-per-node", type=int, default=3, metavar="K", help="trainers and generators (3)"
    )
    rate = estimate.add_mutually_exclusive_group()
    rate.add_argument("--ops-per-device", type=float, metavar="X", help="op/s at which a device trains")
    rate.add_argument(
        "--images-per-second",
        type=float,
        metavar="X",
        help="images of the initial network that a device trains in a second",
    )
    estimate.add_argument("--json", action="store_true", help="print one JSON object")
    estimate.set_defaults(handler=estimate_command)


def estimate_command(arguments: argparse.Namespace) -> int:
    """`estimate`: memory, time, operations, score, node-hours and storage of a run, without MPI and JAX."""
    from aiperf_mpi.config import ConfigError, load
    from aiperf_mpi.planning.estimate import estimate
    from aiperf_mpi.planning.machine import read_machine
    from aiperf_mpi.planning.text import to_object, to_text

    try:
        config = load(arguments.preset, arguments.config, arguments.sets, time_limit=arguments.time_limit)
        machine = read_machine(
            config,
            arguments.nodes,
            arguments.devices_per_node,
            arguments.ranks_per_node,
            arguments.ops_per_device,
            arguments.images_per_second,
        )
        numbers = estimate(config, machine)
    except ConfigError as error:
        return refuse(error)
    if arguments.json:
        print(json.dumps(to_object(config, machine, numbers), indent=1))
    else:
        print(to_text(machine, numbers, min(110, shutil.get_terminal_size((110, 24)).columns)))
    return 0
