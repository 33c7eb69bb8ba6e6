# SPDX-License-Identifier: Apache-2.0
"""`flops`: count the operations of a network by three methods, as in the paper's Tables 3 and A1.

The analytical count needs neither JAX nor MPI and is printed first; the two other methods trace the training
step.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from aiperf_mpi.commands.flops_page import Page
from aiperf_mpi.commands.flops_request import Request, measure, per_image, read_request
from aiperf_mpi.commands.refusal import refuse
from aiperf_mpi.config import ConfigError
from aiperf_mpi.descriptors import tell
from aiperf_mpi.exits import EXIT_INVALID, EXIT_VALID
from aiperf_mpi.opcount.analytical import count
from aiperf_mpi.opcount.forms import FORM_SETS
from aiperf_mpi.opcount.table import as_counts

if TYPE_CHECKING:
    from aiperf_mpi.crosscheck.check import Difference


def add_flops(commands: Any) -> None:
    """Add `flops` to the subparsers."""
    flops = commands.add_parser(
        "flops", help="count the operations of a network by three methods (no MPI needed)"
    )
    network = flops.add_mutually_exclusive_group()
    network.add_argument(
        "--arch", metavar="FILE", help="architecture in its JSON form (docs/architecture-json.md)"
    )
    network.add_argument(
        "--preset", help="initial network and data of a preset (default: the paper's ResNet-50)"
    )
    flops.add_argument("--image-size", type=int, metavar="N", help="height and width of the images in pixels")
    flops.add_argument("--classes", type=int, metavar="N", help="number of classes")
    flops.add_argument(
        "--batch", type=int, default=1, metavar="N", help="images of the traced step (default 1)"
    )
    flops.add_argument(
        "--forms", choices=FORM_SETS, help="forms of the traced step's layers, as train.forms (default plain)"
    )
    flops.add_argument("--per-layer", action="store_true", help="list every layer")
    flops.add_argument(
        "--analytical", action="store_true", help="only the analytical count, without importing JAX"
    )
    flops.add_argument("--json", action="store_true", help="print one JSON object, with integers per image")
    flops.set_defaults(handler=flops_command)


def flops_command(arguments: argparse.Namespace) -> int:
    """Print the counts; return 0, 3 if methods differ that must agree, or 2 for unusable arguments."""
    try:
        request = read_request(arguments)
        if not arguments.analytical:
            check_memory()
        if arguments.json:
            return print_json(request, arguments.analytical)
        return print_page(request, arguments.per_layer, arguments.analytical)
    except ValueError as error:
        return refuse(error)


def check_memory() -> None:
    """Raise ConfigError if the step cannot be traced here: before a line is printed, as JAX would abort."""
    from aiperf_mpi.planning.memory import too_small_to_trace

    if problem := too_small_to_trace("use --analytical"):
        raise ConfigError(problem)


def print_page(request: Request, per_layer: bool, analytical: bool) -> int:
    """Print tables for people; return the exit code."""
    # The analytical tables appear before JAX is imported.
    page = Page()
    page.analytical(request)
    if per_layer:
        page.layers(request.architecture)
    if analytical:
        return EXIT_VALID

    analysis, differences = measure(request)
    page.methods(request, analysis, differences)
    return report_differences(differences)


def print_json(request: Request, analytical: bool) -> int:
    """Print one JSON object with the counts per image of each method; return the exit code."""
    kinds = count(request.architecture.layers()).kinds
    methods: dict[str, Any] = {"rules": "paper", "analytical": as_counts(kinds), "jaxpr": None, "xla": None}
    differences: tuple[Difference, ...] = ()
    if not analytical:
        analysis, differences = measure(request)
        methods["jaxpr"] = as_counts(per_image(analysis.executed.kinds(), request.batch))
        if analysis.agreement.agrees:
            methods["xla"] = as_counts(per_image(analysis.modelled.kinds(), request.batch))
    print(json.dumps(methods, indent=2))
    return report_differences(differences)


def report_differences(differences: Sequence[Difference]) -> int:
    """Print each difference on standard error; return 0 if there are none, else 3."""
    for difference in differences:
        tell(f"aiperf_mpi: DIFFERENT {difference}")
    return EXIT_INVALID if differences else EXIT_VALID
