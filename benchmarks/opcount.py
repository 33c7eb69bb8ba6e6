# SPDX-License-Identifier: Apache-2.0
"""Measure the cost of counting and cross-checking one candidate of ResNet-50's size on a generator rank.

    python benchmarks/opcount.py [--repeat N] [--json]

Prints processor seconds (all threads, so what one core needs) and elapsed seconds of each part: the tables,
the traces of both steps, the traversals, and the whole check. The first candidate of a process also fills
JAX's caches; later ones are typical of a run. The goal is under 3 s, the traversal included.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax  # noqa: E402
import numpy as np  # noqa: E402

from aiperf_mpi.crosscheck.check import check_operations  # noqa: E402
from aiperf_mpi.crosscheck.trace import trace_eval, trace_train  # noqa: E402
from aiperf_mpi.network.architecture import Architecture, resnet50  # noqa: E402
from aiperf_mpi.network.morphism import random_chain  # noqa: E402
from aiperf_mpi.opcount import METHOD_VERSIONS  # noqa: E402
from aiperf_mpi.opcount.analytical import operations  # noqa: E402
from aiperf_mpi.training.steps.step import StepSettings  # noqa: E402
from aiperf_mpi.trials.candidate import Candidate  # noqa: E402

#: The paper's batch size, on a node of eight devices, and a candidate as far from its parent as a record
#: allows.
BATCH, DEVICES, MORPHS = 448, 8, 8

#: Seconds of one core that a candidate may cost.
GOAL = 3.0


def timed(
    times: dict[str, list[tuple[float, float]]], name: str, function: Callable[..., Any], *given: Any
) -> Any:
    """Call a function, append its (processor, elapsed) seconds to `times`, and return its result."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = function(*given)
    times.setdefault(name, []).append((time.process_time() - cpu, time.perf_counter() - wall))
    return result


def measure(repeat: int) -> dict[str, list[tuple[float, float]]]:
    """Return the seconds of each part for `repeat` candidates; the first has no morphs."""
    times: dict[str, list[tuple[float, float]]] = {}
    settings = StepSettings(BATCH, "bfloat16")
    for number in range(repeat):
        rng = np.random.default_rng(number)
        architecture, own = random_chain(Architecture(), rng, MORPHS) if number else (resnet50(), ())
        candidate = Candidate.new(
            architecture,
            own,
            parent_id=0,
            replica=0,
            generator=0,
            round=1,
            batch_per_device=BATCH,
            devices=DEVICES,
            seed=1,
        )

        # The whole check first: what comes after it finds JAX's caches of these shapes warm.
        problem = timed(times, "whole check", check_operations, candidate, settings, DEVICES)
        if problem:
            raise SystemExit(f"candidate {number}: {problem}")
        timed(times, "tables", operations, Architecture(architecture.base, architecture.morphs))
        train = timed(times, "trace of the training step", trace_train, architecture, settings, DEVICES)
        timed(times, "its traversal", train.count)
        evaluate = timed(times, "trace of the evaluation step", trace_eval, architecture, settings, DEVICES)
        timed(times, "its traversal (evaluation)", evaluate.count)
    return times


def main() -> int:
    """Measure and print; return 1 if the median whole check of later candidates misses the goal."""
    parser = argparse.ArgumentParser(description="Cost of counting one candidate of the size of ResNet-50.")
    parser.add_argument("--repeat", type=int, default=6, help="candidates (default 6)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    times = measure(max(arguments.repeat, 2))

    rows = {
        name: {
            "first_cpu_s": values[0][0],
            "cpu_s": statistics.median(cpu for cpu, _ in values[1:]),
            "elapsed_s": statistics.median(wall for _, wall in values[1:]),
        }
        for name, values in times.items()
    }
    met = rows["whole check"]["cpu_s"] < GOAL
    machine = {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
    }
    if arguments.json:
        print(
            json.dumps(
                {
                    "machine": machine,
                    "versions": dict(METHOD_VERSIONS),
                    "goal_s": GOAL,
                    "met": met,
                    "seconds": rows,
                },
                indent=2,
            )
        )
        return not met

    print(
        f"ResNet-50 and {MORPHS} random morphs, batch {BATCH} on each of {DEVICES} devices; "
        + ", ".join(f"{key} {value}" for key, value in machine.items())
    )
    print(f"{'':34}{'first':>10}{'median':>10}{'elapsed':>10}")
    for name, row in rows.items():
        print(f"{name:34}" + "".join(f"{seconds:8.3f} s" for seconds in row.values()))
    print(f"goal: a whole check in under {GOAL} s of one core: {'met' if met else 'MISSED'}")
    return not met


if __name__ == "__main__":
    sys.exit(main())
