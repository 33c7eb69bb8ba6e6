# SPDX-License-Identifier: Apache-2.0
"""Measure the overhead of our training loop over a bare loop of the same step, and of pmap over plain jit.

    python benchmarks/training_loop.py [--pairs N] [--steps K] [--out FOLDER]

Both sides of a pair take K steps of the same compiled program, one right after the other and in turns first,
so that other work on the machine slows both. The ratio of a pair is of elapsed seconds; the table has the
median of the ratios with the bounds that 95 of 100 bootstrap samples of the pairs keep (one-sided). Processor
seconds are shown as well: on a busy machine they are more reliable. Goals: at most 1.05 at steps of at
least 40 ms on two cores.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax  # noqa: E402
import numpy as np  # noqa: E402

from aiperf_mpi.network.architecture import Base, resnet50  # noqa: E402
from aiperf_mpi.phases import PhaseTimer  # noqa: E402
from aiperf_mpi.training.fit import FitSettings, Training  # noqa: E402
from aiperf_mpi.training.model.initial import initial_variables  # noqa: E402
from aiperf_mpi.training.steps.compile import Compiled, compile_steps  # noqa: E402
from aiperf_mpi.training.steps.devices import DeviceBatch, place  # noqa: E402
from aiperf_mpi.training.steps.dispatch import PMAP, SHARD_MAP  # noqa: E402
from aiperf_mpi.training.steps.step import StepSettings  # noqa: E402
from benchmarks.tables import described, machine, markdown, out_folder, write  # noqa: E402

#: The digits' network at a width and a batch at which a step takes 40 ms and more on two cores.
BASE, BATCH = Base(image_size=32, channels=1, classes=10, width=8), 64

#: Samples of the bootstrap, and the part of them that the upper bound holds.
SAMPLES, PART = 10_000, 0.95


@dataclass(frozen=True)
class Spent:
    """Elapsed and processor seconds of K steps."""

    wall: float
    cpu: float


def images_of(steps: int, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return host batches of one device: images, labels, and a mask in which all are valid."""
    rng = np.random.default_rng(seed)
    shape = (1, BATCH, BASE.image_size, BASE.image_size, BASE.channels)
    return [
        (
            rng.integers(0, 256, shape, dtype=np.uint8),
            rng.integers(0, BASE.classes, shape[:2], dtype=np.int32),
            np.ones(shape[:2], bool),
        )
        for _ in range(steps)
    ]


def started(compiled: Compiled) -> Any:
    """Return the state before the first step, on the device."""
    variables = initial_variables(compiled.architecture, np.random.default_rng(1), zero_gamma=True)
    state = compiled.start(variables, np.random.default_rng(2))
    return jax.block_until_ready(state)


def bare(compiled: Compiled, batches: list[Any]) -> Spent:
    """Run the loop as written by hand: batches are on the host, and nothing is read before the end."""
    state, rate = started(compiled), compiled.scalar(0.01)
    placed = [jax.block_until_ready(place(DeviceBatch(*batch), compiled.sharding)) for batch in batches]
    wall, cpu = time.perf_counter(), time.process_time()
    for batch in placed:
        state, metrics = compiled.train(state, batch.images, batch.labels, rate)
    jax.block_until_ready((state, metrics))
    return Spent(time.perf_counter() - wall, time.process_time() - cpu)


def ours(compiled: Compiled, batches: list[Any]) -> Spent:
    """Run an epoch of our loop: batches go through the feed, each step is counted, and MPI is polled."""
    marks: list[tuple[float, float]] = []

    def mark() -> None:
        marks.append((time.perf_counter(), time.process_time()))

    class Timer(PhaseTimer):
        """Reads the clock when all steps of an epoch are complete."""

        def switch(self, phase: str | None) -> str | None:
            if phase == "validate":
                mark()
            return super().switch(phase)

    def train_batches(epoch: int) -> Iterator[Any]:
        return iter(batches)

    training = Training(
        compiled,
        started(compiled),
        train_batches,
        lambda: iter(batches[:1]),
        FitSettings(1, 1, lambda epoch: 0.01),
        timer=Timer(),
        poll=lambda: False,
    )
    training.open()
    time.sleep(0.05)
    mark()
    list(training)
    (wall, cpu), (wall_end, cpu_end) = marks
    return Spent(wall_end - wall, cpu_end - cpu)


def paired(first: Callable[[], Spent], second: Callable[[], Spent], pairs: int) -> list[tuple[Spent, Spent]]:
    """Run both sides `pairs` times in alternating order, after one run of each that does not count."""
    first(), second()
    pairs_run = []
    for number in range(pairs):
        if number % 2:
            b = second()
            pairs_run.append((first(), b))
        else:
            a = first()
            pairs_run.append((a, second()))
    return pairs_run


def ratio(pairs: list[tuple[Spent, Spent]], kind: str, seed: int = 0) -> dict[str, float]:
    """Return the median ratio of first to second, and its one-sided bounds by bootstrap over the pairs."""
    ratios = np.array([getattr(a, kind) / getattr(b, kind) for a, b in pairs])
    rng = np.random.default_rng(seed)
    medians = np.median(ratios[rng.integers(len(ratios), size=(SAMPLES, len(ratios)))], axis=1)
    low, high = np.quantile(medians, [1 - PART, PART])
    return {"median": float(np.median(ratios)), "low": float(low), "high": float(high)}


def compiled_as(dispatch: str) -> Compiled:
    """Return the compiled step of BASE for one device."""
    return compile_steps(resnet50(BASE), StepSettings(BATCH), jax.devices()[:1], dispatch)


def measure(pairs: int, steps: int) -> list[dict[str, Any]]:
    """Return a row for each comparison."""
    batches = images_of(steps)
    pmap, jit = compiled_as(PMAP), compiled_as(SHARD_MAP)
    rows = []
    for name, first, second in (
        ("our loop / bare loop", lambda: ours(pmap, batches), lambda: bare(pmap, batches)),
        ("pmap / plain jit", lambda: bare(pmap, batches), lambda: bare(jit, batches)),
    ):
        spent = paired(first, second, pairs)
        rows.append(
            {
                "comparison": name,
                "pairs": pairs,
                "steps": steps,
                "step_ms": float(np.median([b.wall for _, b in spent]) / steps * 1e3),
                "step_cpu_ms": float(np.median([b.cpu for _, b in spent]) / steps * 1e3),
                "wall": ratio(spent, "wall"),
                "cpu": ratio(spent, "cpu"),
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""

    def interval(bounds: dict[str, float]) -> str:
        return f"{bounds['median']:.3f} ({bounds['low']:.3f} to {bounds['high']:.3f})"

    return markdown(
        ["comparison", "ms a step", "ratio, elapsed (95 % bounds)", "ratio, processor (95 % bounds)"],
        [
            [row["comparison"], f"{row['step_ms']:.1f}", interval(row["wall"]), interval(row["cpu"])]
            for row in rows
        ],
    )


def main() -> int:
    """Measure, print, and write to the named folder."""
    parser = argparse.ArgumentParser(description="What the training loop and pmap cost, on one device.")
    parser.add_argument("--pairs", type=int, default=40, help="pairs of each comparison (default 40)")
    parser.add_argument("--steps", type=int, default=20, help="steps of each side of a pair (default 20)")
    parser.add_argument("--out", type=out_folder, help="folder for training_loop.md and training_loop.json")
    given = parser.parse_args()
    place = machine()
    rows = measure(given.pairs, given.steps)
    text = "\n\n".join(["# What the training loop and pmap cost", described(place), table(rows)])
    write(given.out, "training_loop", text, {"machine": place, "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
