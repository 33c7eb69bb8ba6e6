#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Measure the dispatch of a step on a replica of two processes: compiled ahead (two forms), or by `jax.pmap`.

The step does nothing but add 1 to each of as many small arrays as the state of a ResNet-50 has, on two CPU
processes, so that nearly all of its time is dispatch. The ways take turns; medians of `--calls` calls, of the
slower process.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.tables import markdown, out_folder, write  # noqa: E402

#: Arrays of the parameters of a ResNet-50: 53 convolutions, 53 batch norms of two, and a dense layer of two.
ARRAYS = 161

AHEAD = "{}, compiled ahead"
PLAIN = "pmap, called plainly"


def measure(process: int, address: str, calls: int) -> dict[str, list[float]]:
    """Return the ms of a call by way, [elapsed, thread's processor time], on one of two processes."""
    import jax
    import numpy as np

    from aiperf_mpi.training.steps.devices import device_sharding, place
    from aiperf_mpi.training.steps.dispatch import PMAP, SHARD_MAP, lower, over_devices

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, 2, process, cluster_detection_method="deactivate")
    devices = jax.devices()
    own = {str(number): np.ones((1, 8), np.float32) for number in range(ARRAYS)}
    shapes = {name: jax.ShapeDtypeStruct((2, 8), np.float32) for name in own}

    def step(state: Any) -> Any:
        return jax.tree.map(lambda x: x + 1, state)

    # A compiled program takes whole arrays, a plain call of pmap only the arrays that a process holds.
    ways: dict[str, Any] = {
        AHEAD.format(form): lower(step, devices, (shapes,), in_axes=(0,), donate=(0,), form=form).compile()
        for form in (PMAP, SHARD_MAP)
    }
    states = {way: place(own, device_sharding(devices)) for way in ways}
    ways[PLAIN], states[PLAIN] = over_devices(step, devices, in_axes=(0,), donate=(0,), form=PMAP), own

    spent: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for _ in range(calls + 1):
        for way, call in ways.items():
            begin, used = time.perf_counter(), time.thread_time()
            states[way] = call(states[way])
            spent[way].append((time.perf_counter() - begin, time.thread_time() - used))
            jax.block_until_ready(states[way])
    jax.distributed.shutdown()

    # The first call compiles where nothing was compiled ahead.
    return {
        way: [1e3 * median(column) for column in zip(*pairs[1:], strict=True)] for way, pairs in spent.items()
    }


def main() -> None:
    """Run two processes, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--calls", type=int, default=60)
    parser.add_argument("--out", type=out_folder, help="folder for dispatch.md and dispatch.json")
    parser.add_argument("--process", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--address", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.process is not None:
        print(json.dumps(measure(given.process, given.address, given.calls)))
        return

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [sys.executable, __file__, "--calls", str(given.calls), "--address", address, "--process"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    pair = [
        subprocess.Popen([*command, str(i)], stdout=subprocess.PIPE, text=True, env=environment)
        for i in (0, 1)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in pair]
    if any(process.returncode for process in pair):
        sys.exit("a process failed; its error is above")
    sides = [json.loads(output.splitlines()[-1]) for output in outputs]

    # Processor time says more on a machine that has other work.
    import jax

    rows = {way: [max(side[way][column] for side in sides) for column in (0, 1)] for way in sides[0]}
    write(
        given.out,
        "dispatch",
        "\n\n".join(
            [
                "# Dispatch over two processes",
                f"Two processes of one CPU device each, {ARRAYS} arrays, medians of {given.calls} calls in "
                f"turn; JAX {jax.__version__}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.0f}.",
                markdown(
                    ["Dispatch", "ms a call", "ms of the calling thread's processor"],
                    [[way, f"{wall:.2f}", f"{cpu:.2f}"] for way, (wall, cpu) in rows.items()],
                ),
            ]
        ),
        rows,
    )


if __name__ == "__main__":
    main()
