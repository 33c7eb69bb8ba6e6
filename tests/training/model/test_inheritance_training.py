# SPDX-License-Identifier: Apache-2.0
"""Children can learn: gradients of new branches and of copies, and the first training step."""

from __future__ import annotations

import math

import jax
import numpy as np
import optax

from aiperf_mpi.network.architecture import Architecture, Base, Morph, resnet50
from aiperf_mpi.training.model import inheritance
from aiperf_mpi.training.model.inheritance import inherited_variables
from aiperf_mpi.training.model.initial import Variables, initial_variables
from aiperf_mpi.training.model.resnet import network
from tests.helpers.training.families import TWO, inherit, random_images


def test_new_branches_add_nothing_but_can_learn():
    """Scale 0 hides a branch from the output, but not from its own gradient; its projection is He-normal."""
    own = (Morph("skip", 1, 5), Morph("skip", 2, 8))
    variables, child, inherited = inherit(TWO, *own)
    for module in ("unit005_from001_norm", "unit008_from002_norm"):
        assert (
            not inherited["params"][module]["scale"].any() and not inherited["params"][module]["bias"].any()
        )
    kernel = inherited["params"]["unit008_from002_conv"]["kernel"]
    assert kernel.shape == (1, 1, 3, 6)
    # 18 normal samples of variance 2/3: their standard deviation is within a factor of 2 with near certainty.
    assert 0.5 < kernel.std() / math.sqrt(2 / 3) < 2
    gradient = gradient_of(child, inherited)
    for module in ("unit005_from001_norm", "unit008_from002_norm"):
        assert np.abs(gradient[module]["scale"]).min() > 0


def test_copies_of_a_channel_learn_differently():
    """With equal shares of their consumers both copies would always have equal gradients."""
    variables, child, inherited = inherit(TWO, Morph("wider", 2))
    kernel = inherited["params"]["unit002_conv"]["kernel"]
    assert np.array_equal(kernel[..., :3], kernel[..., 3:])
    gradient = gradient_of(child, inherited)["unit002_conv"]["kernel"]
    one, other = gradient[..., :3], gradient[..., 3:]
    assert np.abs(one - other).max() > 0.01 * np.abs(one).max() > 0
    consumer = inherited["params"]["unit003_conv"]["kernel"]
    shares = consumer[:, :, :3] / variables["params"]["unit003_conv"]["kernel"]
    assert 0.25 <= shares.min() and shares.max() <= 0.75


def gradient_of(architecture: Architecture, variables: Variables) -> dict:
    """Return the gradient of the loss in training mode, on random images and labels."""
    images = random_images(architecture.base, count=8).astype(np.float32) / 255
    labels = np.arange(8) % architecture.base.classes

    def loss(params):
        logits, _ = network(architecture).apply(
            variables | {"params": params}, images, train=True, mutable=["batch_stats"]
        )
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return jax.tree.map(np.asarray, jax.grad(loss)(variables["params"]))


def test_a_training_step_computes_the_parents_function_too(monkeypatch):
    """The norm of a new identity has the moments of its input, estimated from the parent's norms.

    Otherwise a training step would standardise the input, and the ReLU would cut off values below the mean.
    """
    parent = resnet50(Base(16, 1, 4, 8, (2, 2)))
    rng = np.random.default_rng(5)
    variables = initial_variables(parent, rng)
    images = rng.normal(size=(32, 16, 16, 1)).astype(np.float32)
    own = tuple(Morph("deeper", unit, 0, 3) for unit in (2, 5, 10))

    def trained(architecture, weights):
        return np.asarray(
            network(architecture).apply(weights, images, train=True, mutable=["batch_stats"])[0]
        )

    def distance():
        child = inherited_variables(parent, variables, own, np.random.default_rng(0))
        return np.abs(trained(parent.apply(*own), child) - expected).mean() / np.abs(expected).mean()

    expected = trained(parent, variables)
    estimated = distance()
    monkeypatch.setattr(
        inheritance,
        "_output_moments",
        lambda architecture, modules: {
            unit.id: (np.zeros(unit.filters), np.ones(unit.filters)) for unit in architecture.units
        },
    )
    assert estimated < distance() / 2


def test_moments_after_a_relu():
    """Compare the closed form with a million samples, whose mean has a standard error of about 1e-3."""
    mean, deviation = np.array([-1.0, 0.0, 0.5, 3.0]), np.array([1.0, 2.0, 0.5, 1.0])
    samples = np.maximum(np.random.default_rng(0).normal(mean, deviation, (10**6, 4)), 0)
    first, variance = inheritance._rectified(mean, deviation**2)
    np.testing.assert_allclose(first, samples.mean(0), atol=0.01)
    np.testing.assert_allclose(variance, samples.var(0), atol=0.02)
    constant = inheritance._rectified(np.array([2.0, -2.0]), np.zeros(2))
    np.testing.assert_allclose(constant, [[2, 0], [0, 0]], atol=1e-5)
