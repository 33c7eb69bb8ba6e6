# SPDX-License-Identifier: Apache-2.0
"""Compare preparing the next candidate in a thread with lowering it on a CPU rank by jax.export.

    python benchmarks/compile_ahead.py [--repeat N] [--out FOLDER]

On an accelerator, the other thread slows the loop that dispatches the steps while it holds Python's
interpreter lock: in tracing and lowering, as compiling releases the lock. The table has the processor seconds
of both ways, and the time of a small network's step while another thread traces, at the usual switch interval
and at the trainer's. jax.export does not support pmap and needs the package flatbuffers; without the package,
both are left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax  # noqa: E402
import numpy as np  # noqa: E402
from jax import export  # noqa: E402

from aiperf_mpi.network.architecture import Architecture, Base, resnet50  # noqa: E402
from aiperf_mpi.network.morphism import random_chain  # noqa: E402
from aiperf_mpi.parallel.trainer.worker import SWITCH_SECONDS  # noqa: E402
from aiperf_mpi.training.model.initial import initial_variables  # noqa: E402
from aiperf_mpi.training.model.resnet import expected_shapes  # noqa: E402
from aiperf_mpi.training.steps.compile import Compiled, compile_steps  # noqa: E402
from aiperf_mpi.training.steps.devices import AXIS  # noqa: E402
from aiperf_mpi.training.steps.dispatch import SHARD_MAP, over_devices  # noqa: E402
from aiperf_mpi.training.steps.step import StepSettings, initial_state, train_step  # noqa: E402
from benchmarks.tables import described, machine, markdown, out_folder, write  # noqa: E402

#: The topology of ResNet-50, narrow: tracing costs what it costs at full width.
BASE, SETTINGS = Base(image_size=32, channels=1, classes=10, width=4), StepSettings(32)

#: A network with a short step, for the loop that runs while another thread traces.
SMALL = Base(image_size=16, channels=1, classes=10, width=4, blocks=(1, 1))


#: Titles of the measurements.
NAMES = {
    "trace_and_lower": "trace and lower, in a thread of the trainer",
    "export": "trace and export, on another rank",
    "serialise": "serialise, on another rank",
    "deserialise_and_lower": "deserialise and lower what was exported, in the trainer",
    "alone": "alone",
    "usual_interval": "next to a tracing thread, Python's switch interval",
    "short_interval": "next to a tracing thread, the trainer's switch interval",
}


def cpu(work: Callable[[], Any]) -> tuple[Any, float]:
    """Return the result of `work` and the processor seconds of this process that it took."""
    begin = time.process_time()
    result = work()
    return result, time.process_time() - begin


def arguments(architecture: Architecture) -> tuple[Any, ...]:
    """Return the shapes of a training step's arguments on one device; the first axis is that of devices."""
    variables = jax.tree.map(
        lambda shape: np.zeros(shape, np.float32),
        expected_shapes(architecture),
        is_leaf=lambda node: isinstance(node, tuple),
    )
    state = initial_state(variables, SETTINGS, np.random.default_rng(0))
    base, batch = architecture.base, SETTINGS.batch_per_device
    images = np.zeros((batch, base.image_size, base.image_size, base.channels), np.uint8)
    one = (state, images, np.zeros(batch, np.int32))
    mapped = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *np.shape(x)), np.asarray(x).dtype), one)
    return (*mapped, jax.ShapeDtypeStruct((), np.float32))


def both_ways(architecture: Architecture) -> dict[str, float]:
    """Return processor seconds to trace and lower a step from Flax, and through jax.export."""
    given, devices = arguments(architecture), jax.devices()[:1]

    def step() -> Any:
        return over_devices(
            train_step(architecture, SETTINGS),
            devices,
            in_axes=(0, 0, 0, None),
            out_axes=(0, None),
            donate=(0,),
            form=SHARD_MAP,
        )

    _, lowered = cpu(lambda: jax.jit(step()).lower(*given))
    times = {"trace_and_lower": lowered}
    if importlib.util.find_spec("flatbuffers") is None:
        return times

    # Its trees cross as lists of leaves, which need no registration.
    leaves, structure = jax.tree.flatten(given)
    flat = jax.jit(lambda *leaves: jax.tree.leaves(step()(*jax.tree.unflatten(structure, leaves))))
    exported, times["export"] = cpu(lambda: export.export(flat)(*leaves))
    data, times["serialise"] = cpu(exported.serialize)
    times["bytes"] = float(len(data))
    _, times["deserialise_and_lower"] = cpu(lambda: jax.jit(export.deserialize(data).call).lower(*leaves))
    return times


def step_seconds(
    compiled: Compiled, seconds: float, interval: float, architecture: Architecture | None
) -> float:
    """Return the median seconds of a step over about `seconds`, while a thread traces a network, if any."""
    variables = initial_variables(compiled.architecture, np.random.default_rng(0))
    state, rate = compiled.start(variables, np.random.default_rng(0)), compiled.scalar(0.01)
    side, batch = compiled.architecture.base.image_size, compiled.settings.batch_per_device
    images, labels = np.zeros((1, batch, side, side, 1), np.uint8), np.zeros((1, batch), np.int32)
    images, labels = jax.device_put((images, labels), compiled.sharding)
    end = threading.Event()

    def trace() -> None:
        while not end.is_set():
            jax.make_jaxpr(train_step(architecture, SETTINGS), axis_env=[(AXIS, 1)])(*one_device)

    usual, times = sys.getswitchinterval(), []
    if architecture is not None:
        one_device = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), arguments(architecture)[:3]
        )
        one_device = (*one_device, jax.ShapeDtypeStruct((), np.float32))
    thread = threading.Thread(target=trace) if architecture is not None else None
    sys.setswitchinterval(interval)
    try:
        if thread is not None:
            thread.start()
        limit = time.perf_counter() + seconds
        while time.perf_counter() < limit:
            begin = time.perf_counter()
            state, metrics = compiled.train(state, images, labels, rate)
            jax.device_get(metrics)
            times.append(time.perf_counter() - begin)
    finally:
        end.set()
        if thread is not None:
            thread.join()
        sys.setswitchinterval(usual)
    return statistics.median(times)


def measure(repeat: int, seconds: float) -> dict[str, Any]:
    """Return medians over `repeat` networks, and the milliseconds of a step next to a tracing thread."""
    rng = np.random.default_rng(1)
    networks = [random_chain(resnet50(BASE), rng, 2)[0] for _ in range(repeat + 1)]
    rows = [both_ways(network) for network in networks][1:]
    small = compile_steps(resnet50(SMALL), SETTINGS, jax.devices()[:1])
    usual = sys.getswitchinterval()
    steps = {
        "alone": step_seconds(small, seconds, usual, None),
        "usual_interval": step_seconds(small, seconds, usual, networks[0]),
        "short_interval": step_seconds(small, seconds, SWITCH_SECONDS, networks[0]),
    }
    return {
        "cpu_seconds": {key: statistics.median(row[key] for row in rows) for key in rows[0]},
        "step_ms": {key: value * 1e3 for key, value in steps.items()},
    }


def main() -> int:
    """Measure, print, and write to the named folder."""
    parser = argparse.ArgumentParser(description="A thread that traces, against jax.export on another rank.")
    parser.add_argument("--repeat", type=int, default=5, help="networks (default 5)")
    parser.add_argument("--seconds", type=float, default=8.0, help="length of each loop of steps (default 8)")
    parser.add_argument("--out", type=out_folder, help="folder for compile_ahead.md and compile_ahead.json")
    given = parser.parse_args()
    place = machine()
    medians = measure(given.repeat, given.seconds)
    text = "\n\n".join(
        [
            "# Making the next candidate ready",
            described(place),
            markdown(
                ["part", "processor seconds"],
                [
                    [NAMES[key], f"{value:.2f}"]
                    for key, value in medians["cpu_seconds"].items()
                    if key != "bytes"
                ],
            ),
            markdown(
                ["a step of a small network", "ms"],
                [[NAMES[key], f"{value:.1f}"] for key, value in medians["step_ms"].items()],
            ),
        ]
    )
    write(given.out, "compile_ahead", text, {**medians, "machine": place})
    return 0


if __name__ == "__main__":
    sys.exit(main())
