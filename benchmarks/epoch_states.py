# SPDX-License-Identifier: Apache-2.0
"""What does the state of a trial cost the steps of its training, each time that it is written?

    python benchmarks/epoch_states.py FOLDER [--writes N] [--image SIZE] [--batch N] [--out FOLDER]

Steps of ResNet-50 at full width run one after the other on small pictures, as the state does not depend on
their size. Now and then the state is copied to the host between two steps, as after an epoch, and a thread
writes its file into FOLDER. The cost is the copy, and what the steps take longer meanwhile.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax  # noqa: E402
import numpy as np  # noqa: E402

from aiperf_mpi.config.sections import Result  # noqa: E402
from aiperf_mpi.network.architecture import Base, resnet50  # noqa: E402
from aiperf_mpi.parallel.trainer.worker import Worker, take_turns  # noqa: E402
from aiperf_mpi.training.epoch_files import write_epoch  # noqa: E402
from aiperf_mpi.training.epoch_state import EpochState, Trained, TrialStart, WholeEpoch  # noqa: E402
from aiperf_mpi.training.model.initial import initial_variables  # noqa: E402
from aiperf_mpi.training.steps.compile import compile_steps  # noqa: E402
from aiperf_mpi.training.steps.step import StepSettings  # noqa: E402
from benchmarks.tables import described, goals, machine, markdown, out_folder, write  # noqa: E402

#: Steps between two states, of which the usual step is the median.
STEPS = 20

#: Most of a step's time that a state may cost on average.
GOAL = 0.01


def steps_of(image: int, batch: int) -> Iterator[tuple[float, Any, Any]]:
    """Yield the seconds of each step, the compiled steps, and the state after it."""
    compiled = compile_steps(resnet50(Base(image_size=image)), StepSettings(batch), jax.devices()[:1])
    variables = initial_variables(compiled.architecture, np.random.default_rng(0))
    state, rate = compiled.start(variables, np.random.default_rng(0)), compiled.scalar(0.01)
    images, labels = np.zeros((1, batch, image, image, 3), np.uint8), np.zeros((1, batch), np.int32)
    images, labels = jax.device_put((images, labels), compiled.sharding)
    while True:
        begin = time.perf_counter()
        state, metrics = compiled.train(state, images, labels, rate)
        jax.block_until_ready(metrics)
        yield time.perf_counter() - begin, compiled, state


def measure(folder: Path, writes: int, image: int, batch: int) -> dict[str, float]:
    """Return medians over the states: seconds of a step, of the copy, of the write, and of the cost in all;
    and the bytes of a file."""
    take_turns()
    worker, steps = Worker("epochs"), steps_of(image, batch)
    usual = statistics.median([next(steps)[0] for _ in range(STEPS)][STEPS // 4 :])
    copies, written, costs = list[float](), list[float](), list[float]()
    path = folder
    for number in range(1, writes + 1):
        _, compiled, state = next(steps)
        begin = time.perf_counter()
        held = compiled.held(state)
        copies.append(time.perf_counter() - begin)

        # The best epoch is another one, so that the file has its weights too.
        best = {"params": held.params, "batch_stats": held.batch_stats}
        epochs = tuple(WholeEpoch(1, 1, 1.0, 0.5 + 0.1 * i / number) for i in range(number + 1))
        start = TrialStart(0, 0, compiled.architecture)
        epoch = EpochState(start, held, Trained(epochs, best))
        future, slow = worker.submit(partial(write_epoch, folder, epoch)), 0.0
        begin = time.perf_counter()
        while not future.done():
            slow += next(steps)[0] - usual
        written.append(time.perf_counter() - begin)
        path = future.result()
        costs.append(copies[-1] + max(0.0, slow))
        usual = statistics.median(next(steps)[0] for _ in range(STEPS))
    worker.close()
    medians = {"copy": copies, "write": written, "cost": costs}
    return {
        "step": usual,
        **{name: statistics.median(values) for name, values in medians.items()},
        "bytes": float(path.stat().st_size),
    }


def main() -> int:
    """Measure, print, and write to the named folder."""
    parser = argparse.ArgumentParser(description="What the state of a trial costs the steps of its training.")
    parser.add_argument("folder", type=out_folder, help="folder of the states")
    parser.add_argument("--writes", type=int, default=5, help="states (default 5)")
    parser.add_argument("--image", type=int, default=32, help="height and width of a picture (default 32)")
    parser.add_argument("--batch", type=int, default=8, help="images of a step (default 8)")
    parser.add_argument("--out", type=out_folder, help="folder for epoch_states.md and epoch_states.json")
    given = parser.parse_args()
    place, seconds = machine(), Result().checkpoint_seconds
    medians = measure(given.folder, given.writes, given.image, given.batch)
    share = medians["cost"] / seconds
    rows = [
        ["a step", f"{medians['step']:.3f} s"],
        ["the copy to the host, between two steps", f"{medians['copy']:.3f} s"],
        ["the write, in a thread", f"{medians['write']:.3f} s"],
        ["the copy, and what the steps take longer meanwhile", f"{medians['cost']:.3f} s"],
        ["the file", f"{medians['bytes'] / 1e6:.0f} MB"],
        [f"share of a step on average, with a state in {seconds:g} s", f"{share:.3%}"],
    ]
    text = "\n\n".join(
        [
            "# States of the trial that trains",
            described(place),
            markdown([f"ResNet-50, {given.batch} images of {given.image} pixels", "median"], rows),
            goals({f"less than {GOAL:.0%} of a step's time": share < GOAL}),
        ]
    )
    write(given.out, "epoch_states", text, {**medians, "share": share, "machine": place})
    return 0 if share < GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
