# SPDX-License-Identifier: Apache-2.0
"""`estimate`: predict what a run needs on a described machine, before it is queued."""

from __future__ import annotations

import argparse
import json
import shutil
from textwrap import wrap
from typing import Any

from aiperf_mpi.commands.options import add_configuration_options
from aiperf_mpi.commands.refusal import refuse


def add_estimate(commands: Any) -> None:
    """Add `estimate` to the subparsers: the options of the configuration, and those of the machine."""
    estimate = commands.add_parser(
        "estimate", help="predict what a run needs on a described machine (no MPI needed)"
    )
    add_configuration_options(estimate)
    estimate.add_argument("--nodes", type=int, required=True, metavar="N", help="nodes of the machine")
    estimate.add_argument(
        "--devices-per-node", type=int, default=1, metavar="D", help="accelerators of a node (default 1)"
    )
    estimate.add_argument(
        "--ranks-per-node",
        type=int,
        default=3,
        metavar="K",
        help="trainers and generators of a node (default 3)",
    )
    estimate.add_argument(
        "--device",
        default="",
        metavar="NAME",
        help="name of an accelerator, as its driver gives it, or cpu (for train.precision = auto)",
    )
    rate = estimate.add_mutually_exclusive_group()
    rate.add_argument("--ops-per-device", type=float, metavar="X", help="op/s at which a device trains")
    rate.add_argument(
        "--images-per-second",
        type=float,
        metavar="X",
        help="images per second at which a device trains the initial network",
    )
    estimate.add_argument(
        "--staging-rate",
        type=float,
        default=1e9,
        metavar="X",
        help="bytes per second at which a node copies the data set (default 1e9)",
    )
    estimate.add_argument("--json", action="store_true", help="print one JSON object")
    estimate.set_defaults(handler=estimate_command)


def estimate_command(arguments: argparse.Namespace) -> int:
    """Print memory, time, operations, score, node-hours and storage of a run; needs neither MPI nor JAX."""
    from aiperf_mpi.config import ConfigError, load, preset_expectation
    from aiperf_mpi.data.catalogue import resolved
    from aiperf_mpi.planning.estimate.estimate import estimate
    from aiperf_mpi.planning.estimate.machine import read_machine
    from aiperf_mpi.planning.estimate.text import to_object, to_text

    try:
        config = resolved(
            load(arguments.preset, arguments.config, arguments.sets, time_limit=arguments.time_limit)
        )
        machine = read_machine(
            config,
            arguments.nodes,
            arguments.devices_per_node,
            arguments.ranks_per_node,
            arguments.ops_per_device,
            arguments.images_per_second,
            arguments.staging_rate,
            arguments.device,
        )
        numbers = estimate(config, machine)
    except ConfigError as error:
        return refuse(error)
    if arguments.json:
        print(json.dumps(to_object(config, machine, numbers), indent=1))
    else:
        width = min(110, shutil.get_terminal_size((110, 24)).columns)
        print(to_text(machine, numbers, width))
        if config.run.preset:
            words = f"Expected of preset {config.run.preset} {preset_expectation(config.run.preset)}"
            print("", *wrap(words, width, subsequent_indent="  "), sep="\n")
    return 0
