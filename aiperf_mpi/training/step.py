# SPDX-License-Identifier: Apache-2.0
"""One step of training and of evaluation on one device: pure functions that :mod:`compile` maps over the devices.

Collectives run over the axis that :data:`aiperf_mpi.data.device.AXIS` names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from aiperf_mpi.data.device import AXIS, augment, normalise
from aiperf_mpi.search.architecture import Architecture
from aiperf_mpi.training.resnet import network
from aiperf_mpi.training.stem import PLAIN


@dataclass(frozen=True, slots=True)
class StepSettings:
    """What a compiled step depends on beside the architecture.

    Arguments:
        batch_per_device: images of one device in a step.
        precision: of the activations, one of `resnet.PRECISIONS`.
        momentum: of stochastic gradient descent.
        label_smoothing: share of the target that is spread over all classes, in training only.
        augment: random crops and mirroring, in training only.
        fused: batch norms take in what follows them, see `resnet.Network`.
        stem: how the first convolution is computed, one of `opcount.forms.STEMS`.
        mean, deviation: of the pixels scaled to 0..1, one value per channel or one for all.
    """

    batch_per_device: int
    precision: str = "float32"
    momentum: float = 0.9
    label_smoothing: float = 0.1
    augment: bool = False
    fused: bool = True
    stem: str = PLAIN
    mean: tuple[float, ...] = (0.5,)
    deviation: tuple[float, ...] = (0.25,)


class TrainState(NamedTuple):
    """Everything that a step changes: parameters, batch norms' running statistics, the optimiser's momenta, the steps
    done (int32 []), and the key of the trial's random numbers on the devices (uint32 [2], never changed)."""

    params: Any
    batch_stats: Any
    momenta: Any
    step: Any
    key: Any


class Metrics(NamedTuple):
    """Sums over the valid images of all devices: loss (float32), correct answers and images (int32, exact)."""

    loss: jax.Array
    correct: jax.Array
    images: jax.Array


TrainStep = Callable[..., tuple[TrainState, Metrics]]
EvalStep = Callable[..., Metrics]


def initial_state(variables: Any, settings: StepSettings, rng: np.random.Generator) -> TrainState:
    """The state before the first step, of one device, in numpy.

    Arguments:
        variables: collections `params` and `batch_stats`, as `initial_variables` or a checkpoint gives them.
        rng: the stream (`streams.AUGMENT` of the trial) that the key of the devices' random numbers is drawn from.
    """
    momenta = jax.eval_shape(_optimiser(settings).init, variables["params"])
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), momenta)
    key = rng.integers(1 << 32, size=2, dtype=np.uint32)
    return TrainState(variables["params"], variables["batch_stats"], zeros, np.int32(0), key)


def train_step(architecture: Architecture, settings: StepSettings) -> TrainStep:
    """The function (state, images uint8 [B, H, W, C], labels int32 [B], learning rate []) -> (state, metrics).

    Gradients are averaged over the devices; each device keeps the batch statistics of its own images. The loss is the
    cross entropy with label smoothing. Every image is taken for valid, as training leaves out the remainder.
    """
    model = network(architecture, settings.precision, settings.fused, settings.stem)
    optimiser = _optimiser(settings)

    def step(
        state: TrainState, images: jax.Array, labels: jax.Array, learning_rate: jax.Array
    ) -> tuple[TrainState, Metrics]:
        if settings.augment:
            images = augment(images, _step_key(state))
        inputs = normalise(images, settings.mean, settings.deviation)
        targets = optax.smooth_labels(jax.nn.one_hot(labels, architecture.base.classes), settings.label_smoothing)

        def loss_of(params: Any) -> tuple[jax.Array, tuple[jax.Array, Any]]:
            variables = {"params": params, "batch_stats": state.batch_stats}
            logits, changed = model.apply(variables, inputs, train=True, mutable=["batch_stats"])
            losses = optax.softmax_cross_entropy(logits, targets)
            return losses.mean(), (logits, changed["batch_stats"])

        (loss, (logits, batch_stats)), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        gradients = jax.lax.pmean(gradients, AXIS)
        updates, momenta = optimiser.update(gradients, state.momenta)
        params = jax.tree.map(lambda p, u: p - learning_rate * u, state.params, updates)

        count = labels.shape[0]
        correct = jnp.sum(jnp.argmax(logits, -1) == labels, dtype=jnp.int32)
        metrics = Metrics(loss * count, correct, jnp.int32(count))
        return TrainState(params, batch_stats, momenta, state.step + 1, state.key), jax.lax.psum(metrics, AXIS)

    return step


def eval_step(architecture: Architecture, settings: StepSettings) -> EvalStep:
    """The function (params, batch_stats, images, labels, valid bool [B]) -> metrics of the valid images.

    The loss is the cross entropy with the labels as they are; batch norms use their running statistics.
    """
    model = network(architecture, settings.precision, settings.fused, settings.stem)

    def step(params: Any, batch_stats: Any, images: jax.Array, labels: jax.Array, valid: jax.Array) -> Metrics:
        inputs = normalise(images, settings.mean, settings.deviation)
        logits: Any = model.apply({"params": params, "batch_stats": batch_stats}, inputs, train=False)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)

        # Images that only fill up the batch are selected away rather than multiplied by 0: theirs may be NaN.
        right = jnp.argmax(logits, -1) == labels
        metrics = Metrics(
            jnp.sum(jnp.where(valid, losses, 0)),
            jnp.sum(valid & right, dtype=jnp.int32),
            jnp.sum(valid, dtype=jnp.int32),
        )
        return jax.lax.psum(metrics, AXIS)

    return step


def average_statistics(batch_stats: Any) -> Any:
    """Running statistics averaged over the devices: before an evaluation, a checkpoint and a digest."""
    return jax.lax.pmean(batch_stats, AXIS)


def _optimiser(settings: StepSettings) -> optax.GradientTransformation:
    """Stochastic gradient descent but for its learning rate, an argument of the step, so that it never recompiles."""
    return optax.trace(settings.momentum)


def _step_key(state: TrainState) -> jax.Array:
    """A key for this step on this device; the trial's key and its steps determine it."""
    key = jax.random.wrap_key_data(state.key, impl="threefry2x32")
    return jax.random.fold_in(jax.random.fold_in(key, state.step), jax.lax.axis_index(AXIS))
