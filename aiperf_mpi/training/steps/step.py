# SPDX-License-Identifier: Apache-2.0
"""The training step and the evaluation step of one device: pure functions.

:mod:`compile` maps them over the devices of a replica. Collectives run over the axis
:data:`aiperf_mpi.training.steps.devices.AXIS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from aiperf_mpi.data.synthetic import MadeImages
from aiperf_mpi.network.architecture import Architecture, Base
from aiperf_mpi.opcount.tally import AUGMENTATION
from aiperf_mpi.training.model.augmentation import NONE, augment
from aiperf_mpi.training.model.images import centre, make, normalise
from aiperf_mpi.training.model.resnet import Network, network
from aiperf_mpi.training.model.stem import PLAIN
from aiperf_mpi.training.steps.devices import AXIS


@dataclass(frozen=True, slots=True)
class StepSettings:
    """Everything except the architecture that a compiled step depends on.

    Arguments:
        batch_per_device: images that one device processes in a step.
        accumulate: number of micro-batches into which the step cuts a device's images, to need less memory.
            It must divide `batch_per_device`. The micro-batches follow one another, and batch norms see one
            at a time.
        precision: precision of the activations, one of `resnet.PRECISIONS`.
        momentum: momentum of stochastic gradient descent.
        label_smoothing: share of the target that is spread over all classes, in training only.
        augmentation: how training crops and mirrors images at random, one of the forms of `augment`.
        stored_size: height and width of the images that arrive on the device; 0: those of the network.
            Evaluation takes the centre.
        made: the images that the step makes from the numbers that arrive; None if their pixels arrive.
        fused: whether batch norms are fused with the layers after them, see `resnet.Network`.
        stem: form in which the first convolution is computed, one of `opcount.forms.STEMS`.
        forms: forms of layers that read and write less memory, names of `opcount.forms.LEAN`. They need
            `fused`.
        synchronised: whether batch norms use the statistics of the images on all devices; by default each
            device uses those of its own images.
        mean, deviation: mean and standard deviation of the pixels scaled to 0..1, one value per channel or
            one for all.
    """

    batch_per_device: int
    precision: str = "float32"
    momentum: float = 0.9
    label_smoothing: float = 0.1
    augmentation: str = NONE
    stored_size: int = 0
    made: MadeImages | None = None
    fused: bool = True
    stem: str = PLAIN
    forms: tuple[str, ...] = ()
    synchronised: bool = False
    accumulate: int = 1
    mean: tuple[float, ...] = (0.5,)
    deviation: tuple[float, ...] = (0.25,)

    def __post_init__(self) -> None:
        if self.accumulate < 1 or self.batch_per_device % self.accumulate:
            raise ValueError(
                f"{self.batch_per_device} images of a device do not divide into {self.accumulate} parts"
            )

        if self.forms and not self.fused:
            raise ValueError("a step in other forms than the plain one needs fused batch norms")

    @property
    def micro_batch(self) -> int:
        """Number of images that a device processes at a time."""
        return self.batch_per_device // self.accumulate

    def arriving(self, base: Base) -> jax.ShapeDtypeStruct:
        """Return the form of an image as it arrives on the device: pixels uint8, or its number uint32 []."""
        if self.made is not None:
            return jax.ShapeDtypeStruct((), np.uint32)
        return jax.ShapeDtypeStruct(self.image_shape(base), np.uint8)

    def image_shape(self, base: Base) -> tuple[int, int, int]:
        """Return height, width and channels of the images that are cropped for the network."""
        side = self.stored_size or base.image_size
        if side < base.image_size:
            raise ValueError(f"stored images of {side} pixels are smaller than the {base.image_size} needed")
        return side, side, base.channels

    def pixels(self, base: Base, images: jax.Array) -> jax.Array:
        """Return the images uint8 [B, S, S, C] of what arrived on the device."""
        if self.made is None:
            return images
        return make(images, self.made, self.image_shape(base), base.classes)


#: Dynamic loss scaling (Micikevicius et al., 2018, section 3.2): the first scale, and the number of steps
#: without an overflow after which the scale doubles. An overflow halves it.
FIRST_SCALE, SCALE_STEPS = 2.0**15, 2000


class LossScale(NamedTuple):
    """The factor of the loss in float16, and its age.

    The loss is multiplied by `factor` (float32 [], a power of 2) before it is differentiated, so that
    gradients do not underflow. `steps` (int32 []) counts the steps since the factor changed.
    """

    factor: Any
    steps: Any


class TrainState(NamedTuple):
    """Everything that a step changes.

    Attributes:
        params: parameters of the network.
        batch_stats: running statistics of the batch norms.
        momenta: momenta of the optimiser.
        step: number of steps done (int32 []).
        key: key of the trial's random numbers on the devices (uint32 [2]); it never changes.
        scale: scale of the loss (LossScale in float16, else empty).
    """

    params: Any
    batch_stats: Any
    momenta: Any
    step: Any
    key: Any
    scale: Any = ()


class Metrics(NamedTuple):
    """Sums over the valid images of all devices.

    `loss` is float32; `correct` (correct answers) and `images` are int32, and exact.
    """

    loss: jax.Array
    correct: jax.Array
    images: jax.Array


TrainStep = Callable[..., tuple[TrainState, Metrics]]
EvalStep = Callable[..., Metrics]


def initial_state(variables: Any, settings: StepSettings, rng: np.random.Generator) -> TrainState:
    """Return the state of one device before the first step, as numpy arrays.

    Arguments:
        variables: collections `params` and `batch_stats`, from `initial_variables` or a checkpoint.
        rng: random stream (`streams.AUGMENT` of the trial) from which the key of the devices' random numbers
            is drawn.
    """
    momenta = jax.eval_shape(_optimiser(settings).init, variables["params"])
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), momenta)
    key = rng.integers(1 << 32, size=2, dtype=np.uint32)
    scale = LossScale(np.float32(FIRST_SCALE), np.int32(0)) if settings.precision == "float16" else ()
    return TrainState(variables["params"], variables["batch_stats"], zeros, np.int32(0), key, scale)


def train_step(architecture: Architecture, settings: StepSettings) -> TrainStep:
    """Return the training step of an architecture, as a function of one device.

    The step maps (state, images [B, ...], labels int32 [B], learning rate []) to (state, metrics). The images
    are those of `StepSettings.arriving`. The step averages gradients over micro-batches and devices. The loss
    is the cross entropy with label smoothing. All images count as valid, as training leaves out an incomplete
    last batch.

    Each micro-batch updates the running statistics from their values before the step, and the mean of the
    results is kept. So one device that accumulates n micro-batches has the statistics of n devices after
    theirs are averaged.

    In float16 the loss is scaled. A step with a gradient that is not finite changes only the scale and the
    count of steps.
    """
    axis = AXIS if settings.synchronised else None
    model = network(architecture, settings.precision, settings.fused, settings.stem, axis, settings.forms)

    def step(
        state: TrainState, images: jax.Array, labels: jax.Array, learning_rate: jax.Array
    ) -> tuple[TrainState, Metrics]:
        # Sum over the micro-batches, then average over them and over the devices.
        micro = partial(_gradients, model, architecture.base, settings, state)
        like = (state.params, state.batch_stats, _no_images())
        gradients, batch_stats, metrics = _in_parts(settings.accumulate, micro, like, images, labels)
        if settings.accumulate > 1:
            gradients, batch_stats = jax.tree.map(lambda x: x / settings.accumulate, (gradients, batch_stats))
        gradients = jax.lax.pmean(gradients, AXIS)
        metrics = jax.lax.psum(metrics, AXIS)

        update = partial(_update, settings, state, batch_stats, learning_rate)
        if state.scale:
            return _update_scaled(state, gradients, update), metrics
        params, momenta, batch_stats = update(gradients)
        return TrainState(params, batch_stats, momenta, state.step + 1, state.key), metrics

    return step


def _gradients(
    model: Network,
    base: Base,
    settings: StepSettings,
    state: TrainState,
    place: jax.Array,
    images: jax.Array,
    labels: jax.Array,
) -> tuple[Any, Any, Metrics]:
    """Return the (scaled) gradients, the running statistics and the metrics of one micro-batch."""
    images = settings.pixels(base, images)
    if settings.augmentation == NONE:
        images = centre(images, base.image_size)
    else:
        with jax.named_scope(AUGMENTATION):
            numbers = place * settings.micro_batch + jnp.arange(settings.micro_batch)
            key = _step_key(state)
        images = augment(images, key, numbers, settings.augmentation, base.image_size)
    inputs = normalise(images, settings.mean, settings.deviation)
    targets = optax.smooth_labels(jax.nn.one_hot(labels, base.classes), settings.label_smoothing)

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


def _update(
    settings: StepSettings, state: TrainState, batch_stats: Any, learning_rate: jax.Array, gradients: Any
) -> tuple[Any, Any, Any]:
    """Return the parameters and momenta after a step along these gradients, and the new statistics."""
    updates, momenta = _optimiser(settings).update(gradients, state.momenta)
    params = jax.tree.map(lambda p, u: p - learning_rate * u, state.params, updates)
    return params, momenta, batch_stats


def _update_scaled(
    state: TrainState, gradients: Any, update: Callable[[Any], tuple[Any, Any, Any]]
) -> TrainState:
    """Return the state after `update` with the gradients divided by the loss scale.

    If a gradient is not finite, only the scale and the count of steps change.
    """
    gradients = jax.tree.map(lambda x: x / state.scale.factor, gradients)

    # All devices have the same mean gradient, so all make the same choice.
    finite = jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(gradients)]).all()
    kept = (state.params, state.momenta, state.batch_stats)
    params, momenta, batch_stats = jax.lax.cond(finite, update, lambda _: kept, gradients)
    scale = _next_scale(state.scale, finite)
    return TrainState(params, batch_stats, momenta, state.step + 1, state.key, scale)


def eval_step(architecture: Architecture, settings: StepSettings) -> EvalStep:
    """Return the evaluation step of an architecture, as a function of one device.

    The step maps (params, batch_stats, images, labels, valid bool [B]) to the metrics of the valid images.
    The loss is the cross entropy without label smoothing. Batch norms use their running statistics.
    """
    model = network(architecture, settings.precision, settings.fused, settings.stem, forms=settings.forms)

    def step(
        params: Any, batch_stats: Any, images: jax.Array, labels: jax.Array, valid: jax.Array
    ) -> Metrics:
        def micro(_: jax.Array, images: jax.Array, labels: jax.Array, valid: jax.Array) -> Metrics:
            images = centre(settings.pixels(architecture.base, images), architecture.base.image_size)
            inputs = normalise(images, settings.mean, settings.deviation)
            logits: Any = model.apply({"params": params, "batch_stats": batch_stats}, inputs, train=False)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)

            # Drop the losses of padding images by selection: multiplying by 0 would keep a NaN.
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
    """Return the sum of `function(place, *micro-batches)` over the `parts` of the batches [B, ...].

    The sum is a tree like `like`. `place` (int32 []) is the index of the micro-batch among those of all
    devices.
    """
    place = jax.lax.axis_index(AXIS) * parts
    if parts == 1:
        return function(place, *batches)

    def add(total: Any, part: tuple[jax.Array, ...]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, function(*part)), None

    cut = [x.reshape(parts, x.shape[0] // parts, *x.shape[1:]) for x in batches]
    return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, like), (place + jnp.arange(parts), *cut))[0]


def average_statistics(batch_stats: Any) -> Any:
    """Average the running statistics over the devices, for an evaluation, a checkpoint or a digest."""
    return jax.lax.pmean(batch_stats, AXIS)


def _optimiser(settings: StepSettings) -> optax.GradientTransformation:
    """Return the momentum part of stochastic gradient descent.

    The learning rate is an argument of the step, so that a new rate needs no compilation.
    """
    return optax.trace(settings.momentum)


def _next_scale(scale: LossScale, finite: jax.Array) -> LossScale:
    """Return the scale halved after an overflow, and doubled after SCALE_STEPS steps without one."""
    grows = scale.steps + 1 >= SCALE_STEPS
    factor = jnp.where(finite, jnp.where(grows, 2.0, 1.0), 0.5) * scale.factor
    return LossScale(factor, jnp.where(finite & ~grows, scale.steps + 1, 0))


def _step_key(state: TrainState) -> jax.Array:
    """Return the random key of a step, the same on all devices, from the trial's key."""
    return jax.random.fold_in(jax.random.wrap_key_data(state.key, impl="threefry2x32"), state.step)
