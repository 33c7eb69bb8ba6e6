# SPDX-License-Identifier: Apache-2.0
"""One training step on this process's CPU: gradients, statistics and loss of a form against the plain form.

The momenta after a first step are its gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from aiperf_mpi.network.architecture import Architecture
from aiperf_mpi.training.model.initial import initial_variables
from aiperf_mpi.training.steps.compile import lower_train, options_of
from aiperf_mpi.training.steps.devices import device_sharding, place, replicate
from aiperf_mpi.training.steps.dispatch import PMAP
from aiperf_mpi.training.steps.step import StepSettings, initial_state
from benchmarks.onestep import random_batch


@dataclass(frozen=True)
class Gradients:
    """What one step computes, as trees of numpy arrays on one device, and its loss."""

    of_params: Any
    statistics: Any
    loss: float


@dataclass(frozen=True)
class Apart:
    """Relative norms of the difference of two steps' gradients.

    Attributes:
        whole: of all gradients together.
        worst: of the parameter that differs most.
        statistics: of all running statistics together.
        loss: of the loss.
    """

    whole: float
    worst: float
    statistics: float
    loss: float


def varied_variables(architecture: Architecture, seed: int = 0) -> Any:
    """Return random variables in which no batch norm is the identity, and some of its scales are negative."""
    rng = np.random.default_rng(seed)
    variables = initial_variables(architecture, rng)
    for tensors in variables["params"].values():
        if "scale" in tensors:
            tensors["scale"] = (1 + 0.2 * rng.standard_normal(tensors["scale"].shape)).astype(np.float32)
            tensors["scale"][::3] *= -1
        if "bias" in tensors:
            tensors["bias"] = (0.1 * rng.standard_normal(tensors["bias"].shape)).astype(np.float32)
    return variables


def gradients(architecture: Architecture, settings: StepSettings, variables: Any) -> Gradients:
    """Return the gradients of one step with a batch of random images."""
    devices = jax.devices("cpu")[:1]
    step = lower_train(architecture, settings, devices, PMAP).compile(options_of(settings))
    sharding = device_sharding(devices)
    images, labels = place(random_batch(architecture.base, settings.batch_per_device), sharding)
    state = replicate(initial_state(variables, settings, np.random.default_rng(1)), sharding)
    rate = jax.device_put(np.float32(0.1), NamedSharding(sharding.mesh, PartitionSpec()))
    state, metrics = step(state, images, labels, rate)
    of_params, statistics = jax.device_get((state.momenta.trace, state.batch_stats))
    return Gradients(of_params, statistics, float(metrics.loss))


def apart(found: Gradients, expected: Gradients) -> Apart:
    """Return how far two steps' gradients are apart, relative to the expected ones."""
    pairs = list(zip(_leaves(found.of_params), _leaves(expected.of_params), strict=True))
    of_statistics = list(zip(_leaves(found.statistics), _leaves(expected.statistics), strict=True))
    return Apart(
        _distance(pairs),
        max(_distance([pair]) for pair in pairs),
        _distance(of_statistics),
        abs(found.loss / expected.loss - 1),
    )


def compared(
    architecture: Architecture,
    settings: StepSettings,
    forms: tuple[str, ...],
    precisions: Sequence[str] = ("float32", "bfloat16"),
) -> tuple[Apart, ...]:
    """Return the distances to the plain float32 step of a step with `forms` in each of `precisions`."""
    variables = varied_variables(architecture)
    expected = gradients(architecture, replace(settings, precision="float32", forms=()), variables)
    changed = (replace(settings, precision=precision, forms=forms) for precision in precisions)
    return tuple(apart(gradients(architecture, each, variables), expected) for each in changed)


def _leaves(tree: Any) -> list[np.ndarray]:
    return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]


def _distance(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    difference = sum(float(np.sum((found - expected) ** 2)) for found, expected in pairs)
    size = sum(float(np.sum(expected**2)) for _, expected in pairs)
    return float(np.sqrt(difference / max(size, 1e-60)))
