# SPDX-License-Identifier: Apache-2.0
from functools import lru_cache

import jax
import numpy as np
import pytest

from aiperf_mpi.network.architecture import Architecture, resnet50
from aiperf_mpi.training.model.initial import closing_norms
from aiperf_mpi.training.model.resnet import module_name, network
from aiperf_mpi.training.steps.compile import Compiled, compile_steps
from aiperf_mpi.training.steps.step import FIRST_SCALE, SCALE_STEPS, LossScale, StepSettings
from tests.helpers.training.cases import SHALLOW, TINY, compiled_tiny, random_batch, random_chains, started

RATE = 0.1


@lru_cache
def compiled_chain(number: int) -> Compiled:
    """Compile the steps of a chain of morphs, once for all tests of this file."""
    return compile_steps(random_chains(20)[number], StepSettings(8), jax.devices()[:1])


# -- gradients of morphed networks -----------------------------------------------------------------


def live_layers(architecture: Architecture, zero: frozenset[str]) -> set[str]:
    """Return the layers whose outputs reach the logits on a path without a batch norm of scale 0."""
    layers = architecture.layers()
    live = {layers[-1].name}
    for layer in reversed(layers):
        if layer.name in live and module_name(layer.name) not in zero:
            live.update(layer.inputs)
    return live


def check_gradients(compiled: Compiled, zero_gamma: bool) -> None:
    architecture = compiled.architecture
    state = started(compiled, zero_gamma=zero_gamma)
    images, labels = random_batch(architecture.base, 1, 8)
    state, metrics = compiled.train(state, images, labels, compiled.scalar(RATE))
    assert np.isfinite(metrics.loss) and metrics.images == 8

    # Momenta begin at zero, so after one step they are the gradients.
    gradients = jax.tree.map(lambda x: np.asarray(x[0]), state.momenta.trace)
    live = live_layers(architecture, closing_norms(architecture) if zero_gamma else frozenset())
    names = {module_name(layer.name): layer.name for layer in architecture.layers()}
    assert {names[module] for module in gradients} - live or not zero_gamma
    for module, tensors in gradients.items():
        for tensor, gradient in tensors.items():
            assert np.all(np.isfinite(gradient)), (module, tensor)
            assert np.any(gradient != 0) == (names[module] in live), (module, tensor)


@pytest.mark.parametrize("chain", [0, 1, *(pytest.param(i, marks=pytest.mark.full) for i in range(2, 20))])
def test_gradients_are_zero_only_after_a_zero_scale(chain):
    check_gradients(compiled_chain(chain), zero_gamma=chain % 2 == 0)


# -- effects of a step -----------------------------------------------------------------------------


def test_a_step_descends_along_momentum_and_learning_rate(tiny):
    state = started(tiny)
    images, labels = random_batch(TINY, 1, 4)
    before = tiny.variables(state)["params"]["dense"]["bias"]
    state, _ = tiny.train(state, images, labels, tiny.scalar(0.5))
    gradient = np.asarray(state.momenta.trace["dense"]["bias"][0])
    np.testing.assert_allclose(
        tiny.variables(state)["params"]["dense"]["bias"], before - 0.5 * gradient, rtol=1e-6
    )

    # Second step, same images: momentum = 0.9 x first gradient + second gradient, and the rate is an
    # argument.
    middle = tiny.variables(state)["params"]["dense"]["bias"]
    state, _ = tiny.train(state, images, labels, tiny.scalar(0.25))
    momentum = np.asarray(state.momenta.trace["dense"]["bias"][0])
    assert np.abs(momentum - 0.9 * gradient).max() > 1e-4
    np.testing.assert_allclose(
        tiny.variables(state)["params"]["dense"]["bias"], middle - 0.25 * momentum, rtol=1e-5, atol=1e-7
    )
    assert int(state.step[0]) == 2


def test_the_training_loss_is_the_smoothed_cross_entropy():
    compiled = compiled_tiny(label_smoothing=0.3)
    state = started(compiled)
    images, labels = random_batch(TINY, 1, 4, seed=8)
    variables = compiled.variables(state)
    inputs = (images[0] / np.float32(255) - np.float32(0.5)) / np.float32(0.25)
    logits, _ = network(resnet50(TINY)).apply(variables, inputs, train=True, mutable=["batch_stats"])

    # Of 3 classes the right one gets 0.7 + 0.3 / 3 = 0.8, each other one 0.3 / 3 = 0.1.
    logarithms = np.asarray(jax.nn.log_softmax(logits))
    targets = np.where(np.arange(3) == labels[0][:, None], 0.8, 0.1)
    _, metrics = compiled.train(state, images, labels, compiled.scalar(RATE))
    np.testing.assert_allclose(metrics.loss, -(targets * logarithms).sum(), rtol=1e-5)
    assert metrics.correct == np.sum(logarithms.argmax(-1) == labels[0])


def test_padding_images_add_nothing_to_an_evaluation(tiny):
    state = started(tiny)
    images, labels = random_batch(TINY, 1, 4, seed=3)
    valid = np.array([[True, True, True, False]])
    whole = tiny.evaluate(state.params, state.batch_stats, images, labels, valid)

    # Another image and another label in the last place change nothing.
    images[0, 3], labels[0, 3] = 255 - images[0, 3], (labels[0, 3] + 1) % 3
    other = tiny.evaluate(state.params, state.batch_stats, images, labels, valid)
    assert whole.images == other.images == 3 and whole.images.dtype == np.int32
    assert float(whole.loss) == float(other.loss) and whole.correct == other.correct

    # The three valid ones, one by one, sum to the same.
    single = [
        tiny.evaluate(state.params, state.batch_stats, images, labels, np.arange(4)[None] == i)
        for i in range(3)
    ]
    assert sum(int(m.correct) for m in single) == whole.correct
    np.testing.assert_allclose(sum(float(m.loss) for m in single), float(whole.loss), rtol=1e-6)


def test_the_validation_loss_is_the_plain_cross_entropy(tiny):
    state = started(tiny)
    images, labels = random_batch(TINY, 1, 4, seed=5)
    inputs = (images[0] / np.float32(255) - np.float32(0.5)) / np.float32(0.25)
    logits = network(resnet50(TINY)).apply(tiny.variables(state), inputs, train=False)
    metrics = tiny.evaluate(state.params, state.batch_stats, images, labels, np.ones((1, 4), bool))
    expected = -np.asarray(jax.nn.log_softmax(logits))[np.arange(4), labels[0]].sum()
    np.testing.assert_allclose(metrics.loss, expected, rtol=1e-5)


def test_augmentation_repeats_from_the_seed_and_differs_between_steps():
    compiled = compiled_tiny(augmentation="cifar")
    images, labels = random_batch(TINY, 1, 4, seed=2)

    def losses(seed: int) -> list[float]:
        state, measured = started(compiled, seed=0), []
        state = state._replace(key=compiled.start(compiled.variables(state), np.random.default_rng(seed)).key)
        for _ in range(3):
            state, metrics = compiled.train(state, images, labels, compiled.scalar(0.0))
            measured.append(float(metrics.loss))
        return measured

    # The rate is 0, so only other crops of the same images change the loss.
    first = losses(1)
    assert first == losses(1)
    assert len(set(first)) == 3
    assert first != losses(2)


def test_the_same_seed_trains_to_the_same_bits():
    compiled = compiled_chain(0)
    images, labels = random_batch(SHALLOW, 1, 8)
    ends = []
    for _ in range(2):
        state = started(compiled, seed=4)
        for _ in range(3):
            state, _ = compiled.train(state, images, labels, compiled.scalar(RATE))
        ends.append(jax.tree.leaves(compiled.variables(state)))
    assert all(np.array_equal(a, b) for a, b in zip(*ends, strict=True))


# -- float16 ---------------------------------------------------------------------------------------


def test_float16_scales_its_loss_and_skips_overflowing_steps(tiny):
    compiled, exact = compiled_tiny(precision="float16"), tiny
    images, labels = random_batch(TINY, 1, 4, seed=6)
    state, other = started(compiled), started(exact)
    assert float(state.scale.factor[0]) == FIRST_SCALE
    start = compiled.variables(state)["params"]
    few = LossScale(np.full(1, 8.0, np.float32), np.zeros(1, np.int32))
    state = state._replace(scale=few)
    other, expected = exact.train(other, images, labels, exact.scalar(0.25))
    state, metrics = compiled.train(state, images, labels, compiled.scalar(0.25))

    # The reported loss is that of float32, except for the 11 bits of float16 through 14 layers. So is the
    # step, except that norms over few values amplify rounding. A forgotten factor of 8 would show as 7 times.
    assert float(metrics.loss) == pytest.approx(float(expected.loss), rel=2e-2)
    begin, reached, wanted = (
        np.concatenate([x.reshape(-1) for x in jax.tree.leaves(tree)])
        for tree in (start, compiled.variables(state)["params"], exact.variables(other)["params"])
    )
    assert np.linalg.norm(reached - wanted) < 0.3 * np.linalg.norm(wanted - begin)
    assert float(state.scale.factor[0]) == 8 and int(state.scale.steps[0]) == 1

    # A scale of 2^120 overflows in float16: only the scale, half of it then, and the count of steps change.
    before = compiled.variables(state)
    huge = LossScale(np.full(1, 2.0**120, np.float32), np.array([7], np.int32))
    state, metrics = compiled.train(state._replace(scale=huge), images, labels, compiled.scalar(0.25))
    assert np.isfinite(metrics.loss) and int(metrics.images) == 4
    assert (
        float(state.scale.factor[0]) == 2.0**119
        and int(state.scale.steps[0]) == 0
        and int(state.step[0]) == 2
    )
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(compiled.variables(state)), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)

    # After enough steps without an overflow it doubles.
    late = LossScale(np.full(1, 2.0, np.float32), np.array([SCALE_STEPS - 1], np.int32))
    state, _ = compiled.train(state._replace(scale=late), images, labels, compiled.scalar(0.25))
    assert float(state.scale.factor[0]) == 4.0 and int(state.scale.steps[0]) == 0
