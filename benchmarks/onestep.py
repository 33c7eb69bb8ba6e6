# SPDX-License-Identifier: Apache-2.0
"""The training step of one network on one device, compiled ahead and timed in windows of steps.

The step is the one that a trial runs, made by `aiperf_mpi.training.steps.compile.compile_steps`.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import jax
import numpy as np

from aiperf_mpi.network.architecture import Architecture, Base
from aiperf_mpi.network.morphism import eligible_morphs
from aiperf_mpi.opcount.analytical import operations
from aiperf_mpi.results.report.interval import factor
from aiperf_mpi.training.model.initial import initial_variables
from aiperf_mpi.training.steps.compile import compile_steps
from aiperf_mpi.training.steps.devices import place
from aiperf_mpi.training.steps.step import StepSettings
from benchmarks.shape import Shape

#: The morphs whose step is measured in addition to ResNet-50's.
MORPHS = ("deeper", "wider", "skip")

#: Low, so that random labels do not make a loss infinite within some hundred steps.
RATE = 0.001

#: ImageNet's usual mean and deviation of each channel, on a scale from 0 to 1.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def settings_of(shape: Shape, **changes: Any) -> StepSettings:
    """Return the step's settings with `changes`; raises ValueError for an unknown field."""
    plain = StepSettings(
        shape.batches[0], shape.precision, augmentation=shape.augmentation, mean=MEAN, deviation=DEVIATION
    )
    if missing := set(changes) - {item.name for item in fields(plain)}:
        raise ValueError(f"this version's step has no setting {', '.join(sorted(missing))}")
    return replace(plain, **changes)


@dataclass
class Measured:
    """The seconds of a step in each window."""

    images: int
    seconds: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Images per second, from the median window."""
        return self.images / statistics.median(self.seconds)

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "images_per_second": self.rate}


class Step:
    """A network's training step on the first device, with a batch of random images on that device."""

    def __init__(self, network: Architecture, settings: StepSettings) -> None:
        self.network, self.settings = network, settings
        self.compiled = compile_steps(network, settings, jax.devices()[:1])
        self.state = self.compiled.start(
            initial_variables(network, np.random.default_rng(0), zero_gamma=True), np.random.default_rng(1)
        )
        self.images, self.labels = place(
            random_batch(network.base, settings.batch_per_device), self.compiled.sharding
        )
        self.rate = self.compiled.scalar(RATE)
        # The first steps allocate, and on some devices still choose their kernels.
        self.window(2)

    def run(self, images: Any, labels: Any) -> Any:
        """Dispatch one step and return its metrics."""
        self.state, metrics = self.compiled.train(self.state, images, labels, self.rate)
        return metrics

    def window(self, steps: int) -> float:
        """Return the seconds of a step, from `steps` of them on the batch on the device."""
        begin = time.perf_counter()
        for _ in range(steps):
            metrics = self.run(self.images, self.labels)
        loss = float(metrics.loss)
        seconds = (time.perf_counter() - begin) / steps
        if not math.isfinite(loss):
            raise ArithmeticError(f"the loss is {loss}")
        return seconds

    def described(self) -> dict[str, Any]:
        """Return the compiled program's statistics and the network's credited operations."""
        train = self.compiled.train
        memory, costs = train.memory_analysis(), train.cost_analysis()
        costs = (costs[0] if costs else {}) if isinstance(costs, list | tuple) else costs or {}
        return {
            "batch": self.settings.batch_per_device,
            "parameters": self.network.parameters,
            "operations": operations(self.network)[0],
            "precision": self.compiled.precision,
            "trace_s": self.compiled.trace_seconds,
            "compile_s": self.compiled.compile_seconds,
            "temporary_bytes": getattr(memory, "temp_size_in_bytes", None),
            "xla_bytes": costs.get("bytes accessed"),
        }


def random_batch(base: Base, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Return random images uint8 [1, B, H, W, C] and labels int32 [1, B], the same for every caller."""
    rng = np.random.default_rng(7)
    images = rng.integers(0, 256, (1, batch, base.image_size, base.image_size, base.channels), dtype=np.uint8)
    return images, rng.integers(0, base.classes, (1, batch), dtype=np.int32)


def morphed(network: Architecture, op: str) -> Architecture:
    """Return the network after the middle one of its possible morphs of a kind; deterministic."""
    eligible = eligible_morphs(network, (op,))
    return network.apply(eligible[len(eligible) // 2])


def in_turn(windows: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Run each of the windows `repeats` times, one after the other, in alternating order."""
    seconds: dict[str, list[float]] = {name: [] for name in windows}
    for turn in range(repeats):
        for name in list(windows)[:: 1 if turn % 2 == 0 else -1]:
            seconds[name].append(windows[name]())
    return seconds


def ratio(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """Return the geometric mean of paired ratios, with the limits of its 95 % interval."""
    logs = [math.log(a / b) for a, b in zip(above, below, strict=True)]
    mean = statistics.mean(logs)
    half = factor(statistics.stdev(logs) / math.sqrt(len(logs)), len(logs) - 1) if len(logs) > 1 else math.inf
    limits = (math.exp(mean - half), math.exp(mean + half)) if math.isfinite(half) else (None, None)
    return {"ratio": math.exp(mean), "low": limits[0], "high": limits[1]}
