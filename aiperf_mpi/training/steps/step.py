# SPDX-License-Identifier: Apache-2.0
"""One step of training and of evaluation on one device: pure functions that :mod:`compile` maps over the
devices.

Collectives run over the axis that :data:`aiperf_mpi.training.steps.devices.AXIS` names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from aiperf_mpi.network.architecture import Architecture
from aiperf_mpi.training.model.images import augment, normalise
from aiperf_mpi.training.model.resnet import network
from aiperf_mpi.training.model.stem import PLAIN
from aiperf_mpi.training.steps.devices import AXIS


@dataclass(frozen=True, slots=True)
class StepSettings:
    """What a compiled step depends on beside the architecture.

    Arguments:
        batch_per_device: images of one device in a step.
        accumulate: micro-batches that a device's images are cut into and that follow one another inside of
            the step, so that it needs less memory; it must divide them. Batch norms see one micro-batch at a
            time.
        precision: of the activations, one of `resnet.PRECISIONS`.
        momentum: of stochastic gradient descent.
        label_smoothing: share of the target that is spread over all classes, in training only.
        augment: random crops and mirroring, in training only.
        fused: batch norms take in what follows them, see `resnet.Network`.
        stem: how the first convolution is computed, one of `opcount.forms.STEMS`.
        synchronised: batch norms use the statistics of all devices' images, not each device those of its own.
        mean, deviation: of the pixels scaled to 0..1, one value per channel or one for all.
    """

    batch_per_device: int
    precision: str = "float32"
    momentum: float = 0.9
    label_smoothing: float = 0.1
    augment: bool = False
    fused: bool = True
    stem: str = PLAIN
    synchronised: bool = False
    accumulate: int = 1
    mean: tuple[float, ...] = (0.5,)
    deviation: tuple[float, ...] = (0.25,)

    def __post_init__(self) -> None:
        if self.accumulate < 1 or self.batch_per_device % self.accumulate:
            raise ValueError(
                f"{self.batch_per_device} images of a device do not divide into {self.accumulate} parts"
            )

    @property
    def micro_batch(self) -> int:
        """Images that a device computes at a time."""
        return self.batch_per_device // self.accumulate


#: Dynamic loss scaling (Micikevicius et al., 2018, section 3.2): where it starts, and the steps without an
#: overflow after which it doubles. An overflow halves it.
FIRST_SCALE, SCALE_STEPS = 2.0**15, 2000


class LossScale(NamedTuple):
    """What the loss is multiplied by before its gradients are taken (float32 [], a power of 2), so that they
    do not vanish in float16, and the steps since it changed (int32 [])."""

    factor: Any
    steps: Any


class TrainState(NamedTuple):
    """Everything that a step changes: parameters, batch norms' running statistics, the optimiser's momenta,
    the steps done (int32 []), the key of the trial's random numbers on the devices (uint32 [2], never
    changed), and the scale of the loss (LossScale in float16, else empty)."""

    params: Any
    batch_stats: Any
    momenta: Any
    step: Any
    key: Any
    scale: Any = ()


class Metrics(NamedTuple):
    """Sums over the valid images of all devices: loss (float32), correct answers and images (int32,
    exact)."""

    loss: jax.Array
    correct: jax.Array
    images: jax.Array


TrainStep = Callable[..., tuple[TrainState, Metrics]]
EvalStep = Callable[..., Metrics]


def initial_state(variables: Any, settings: StepSettings, rng: np.random.Generator) -> TrainState:
    """The state before the first step, of one device, in numpy.

    Arguments:
        variables: collections `params` and `batch_stats`, as `initial_variables` or a checkpoint gives them.
        rng: the stream (`streams.AUGMENT` of the trial) that the key of the devices' random numbers is drawn
            from.
    """
    momenta = jax.eval_shape(_optimiser(settings).init, variables["params"])
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), momenta)
    key = rng.integers(1 << 32, size=2, dtype=np.uint32)
    scale = LossScale(np.float32(FIRST_SCALE), np.int32(0)) if settings.precision == "float16" else ()
    return TrainState(variables["params"], variables["batch_stats"], zeros, np.int32(0), key, scale)


def train_step(architecture: Architecture, settings: StepSettings) -> TrainStep:
    """The function (state, images uint8 [B, H, W, C], labels int32 [B], learning rate []) -> (state,
    metrics).

    Gradients are averaged over micro-batches and devices. The loss is the cross entropy with label smoothing.
    Every image is taken for valid, as training leaves out the remainder.

    Each micro-batch moves the running statistics from where they were before the step, and their mean is
    kept: so one device that accumulates n micro-batches ends where n devices do once their statistics are
        averaged.

    In float16 the loss is scaled, and a step with a gradient that is not finite changes the scale alone.
    """
    axis = AXIS if settings.synchronised else None
    model = network(architecture, settings.precision, settings.fused, settings.stem, axis)
    optimiser = _optimiser(settings)

    def step(
        state: TrainState, images: jax.Array, labels: jax.Array, learning_rate: jax.Array
    ) -> tuple[TrainState, Metrics]:
        def micro(place: jax.Array, images: jax.Array, labels: jax.Array) -> tuple[Any, Any, Metrics]:
            if settings.augment:
                images = augment(images, _step_key(state, place))
            inputs = normalise(images, settings.mean, settings.deviation)
            targets = optax.smooth_labels(
                jax.nn.one_hot(labels, architecture.base.classes), settings.label_smoothing
            )

            def loss_of(params: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array, Any]]:
                variables = {"params": params, "batch_stats": state.batch_stats}
                logits, changed = model.apply(variables, inputs, train=True, mutable=["batch_stats"])
                loss = optax.softmax_cross_entropy(logits, targets).mean()
                scaled = loss * state.scale.factor if state.scale else loss
                return scaled, (loss, logits, changed["batch_stats"])

            gradients, (loss, logits, batch_stats) = jax.grad(loss_of, has_aux=True)(state.params)
            count = labels.shape[0]
            correct = jnp.sum(jnp.argmax(logits, -1) == labels, dtype=jnp.int32)
            return gradients, batch_stats, Metrics(loss * count, correct, jnp.int32(count))

        like = (state.params, state.batch_stats, _no_images())
        gradients, batch_stats, metrics = _in_parts(settings.accumulate, micro, like, images, labels)
        if settings.accumulate > 1:
            gradients, batch_stats = jax.tree.map(lambda x: x / settings.accumulate, (gradients, batch_stats))
        gradients = jax.lax.pmean(gradients, AXIS)
        metrics = jax.lax.psum(metrics, AXIS)

        def updated(gradients: Any) -> tuple[Any, Any, Any]:
            updates, momenta = optimiser.update(gradients, state.momenta)
            params = jax.tree.map(lambda p, u: p - learning_rate * u, state.params, updates)
            return params, momenta, batch_stats

        if not state.scale:
            params, momenta, batch_stats = updated(gradients)
            return TrainState(params, batch_stats, momenta, state.step + 1, state.key), metrics

        # All devices have the same mean, and so they agree whether it is finite.
        gradients = jax.tree.map(lambda x: x / state.scale.factor, gradients)
        finite = jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(gradients)]).all()
        kept = (state.params, state.momenta, state.batch_stats)
        params, momenta, batch_stats = jax.lax.cond(finite, updated, lambda _: kept, gradients)
        scale = _next_scale(state.scale, finite)
        return TrainState(params, batch_stats, momenta, state.step + 1, state.key, scale), metrics

    return step


def eval_step(architecture: Architecture, settings: StepSettings) -> EvalStep:
    """The function (params, batch_stats, images, labels, valid bool [B]) -> metrics of the valid images.

    The loss is the cross entropy with the labels as they are; batch norms use their running statistics.
    """
    model = network(architecture, settings.precision, settings.fused, settings.stem)

    def step(
        params: Any, batch_stats: Any, images: jax.Array, labels: jax.Array, valid: jax.Array
    ) -> Metrics:
        def micro(_: jax.Array, images: jax.Array, labels: jax.Array, valid: jax.Array) -> Metrics:
            inputs = normalise(images, settings.mean, settings.deviation)
            logits: Any = model.apply({"params": params, "batch_stats": batch_stats}, inputs, train=False)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)

            # Images that only fill up the batch are selected away rather than multiplied by 0: theirs may be
            # NaN.
            right = jnp.argmax(logits, -1) == labels
            return Metrics(
                jnp.sum(jnp.where(valid, losses, 0)),
                jnp.sum(valid & right, dtype=jnp.int32),
                jnp.sum(valid, dtype=jnp.int32),
            )

        return jax.lax.psum(_in_parts(settings.accumulate, micro, _no_images(), images, labels, valid), AXIS)

    return step


def _no_images() -> Metrics:
    return Metrics(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


def _in_parts(parts: int, function: Callable[..., Any], like: Any, *batches: jax.Array) -> Any:
    """The sum of `function(place, *micro-batches)`, a tree as `like`, over the `parts` of the batches [B,
    ...]; `place` (int32 []) counts the micro-batches of all devices."""
    place = jax.lax.axis_index(AXIS) * parts
    if parts == 1:
        return function(place, *batches)

    def add(total: Any, part: tuple[jax.Array, ...]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, function(*part)), None

    cut = [x.reshape(parts, x.shape[0] // parts, *x.shape[1:]) for x in batches]
    return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, like), (place + jnp.arange(parts), *cut))[0]


def average_statistics(batch_stats: Any) -> Any:
    """Running statistics averaged over the devices: before an evaluation, a checkpoint and a digest."""
    return jax.lax.pmean(batch_stats, AXIS)


def _optimiser(settings: StepSettings) -> optax.GradientTransformation:
    """Stochastic gradient descent but for its learning rate, an argument of the step, so that it never
    recompiles."""
    return optax.trace(settings.momentum)


def _next_scale(scale: LossScale, finite: jax.Array) -> LossScale:
    """Half of the scale behind an overflow, double of it after SCALE_STEPS steps without one."""
    grows = scale.steps + 1 >= SCALE_STEPS
    factor = jnp.where(finite, jnp.where(grows, 2.0, 1.0), 0.5) * scale.factor
    return LossScale(factor, jnp.where(finite & ~grows, scale.steps + 1, 0))


def _step_key(state: TrainState, place: jax.Array) -> jax.Array:
    """A key for the micro-batch in this `place` of this step; the trial's key, its steps and the place
    determine it."""
    key = jax.random.wrap_key_data(state.key, impl="threefry2x32")
    return jax.random.fold_in(jax.random.fold_in(key, state.step), place)
