# SPDX-License-Identifier: Apache-2.0
"""The measured difference finds a transformation that is wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest

from aiperf_mpi.network.architecture import Morph
from aiperf_mpi.training.model import inheritance
from tests.helpers.training.families import (
    ONE,
    ROUNDING,
    TOLERANCE,
    TWO,
    difference,
    inherit,
    plain_difference,
)


def _break_shares(monkeypatch):
    def whole(tensors, rng):
        kernel = tensors["params", "kernel"]
        return tensors | {("params", "kernel"): np.concatenate([kernel, kernel], axis=-2)}

    monkeypatch.setattr(inheritance, "_divide_weights", whole)


def _break_norm(monkeypatch, **changes):
    right = inheritance._norm

    def broken(scale, bias, mean, variance):
        given = {"scale": scale, "bias": bias, "mean": mean, "variance": variance}
        return right(**{name: changes.get(name, lambda x: x)(value) for name, value in given.items()})

    monkeypatch.setattr(inheritance, "_norm", broken)


def _break(monkeypatch, op, change):
    """Make the transformation of `op` return its result altered by `change`."""
    right = inheritance._TRANSFORMATIONS[op]

    def broken(before, after, morph, modules, rng):
        return change(right(before, after, morph, modules, rng), morph)

    monkeypatch.setitem(inheritance._TRANSFORMATIONS, op, broken)


def _changed(modules, name, key, change):
    return modules | {name: modules[name] | {key: change(modules[name][key])}}


MEAN, VAR, KERNEL = ("batch_stats", "mean"), ("batch_stats", "var"), ("params", "kernel")

FAULTS = {
    "consumers not rescaled": (Morph("wider", 2), lambda m: _break_shares(m)),
    "channels of one tied norm in another order": (
        Morph("wider", 3),
        lambda m: _break(
            m, "wider", lambda x, _: _changed(x, "unit006_norm", MEAN, lambda a: np.repeat(a[:12], 2))
        ),
    ),
    "running variance of a projection's norm left out": (
        Morph("wider", 3),
        lambda m: _break(
            m,
            "wider",
            lambda x, _: _changed(
                x, "unit003_frompool_norm", VAR, lambda a: np.concatenate([a[:12], np.ones(12, np.float32)])
            ),
        ),
    ),
    "norm's epsilon scaled away": (
        Morph("deeper", 2, 0, 3),
        lambda m: _break_norm(m, scale=lambda x: 1.01 * x),
    ),
    "identity of a norm shifted": (
        Morph("deeper", 2, 0, 3),
        lambda m: _break_norm(m, bias=lambda x: x + 0.1),
    ),
    "an even kernel centred too late": (
        Morph("deeper", 2, 0, 4),
        lambda m: _break(
            m, "deeper", lambda x, _: _changed(x, "unit013_conv", KERNEL, lambda a: np.roll(a, 1, (0, 1)))
        ),
    ),
    "a kernel padded on one side": (
        Morph("kernel", 2, 0, 5),
        lambda m: _break(
            m, "kernel", lambda x, _: _changed(x, "unit002_conv", KERNEL, lambda a: np.roll(a, 1, 0))
        ),
    ),
    "a strided kernel padded as if its stride moved it": (
        Morph("kernel", 7, 0, 2),
        lambda m: _break(
            m, "kernel", lambda x, _: _changed(x, "unit007_conv", KERNEL, lambda a: np.roll(a, 1, 1))
        ),
    ),
    "a skip that adds at once": (Morph("skip", 1, 5), lambda m: _break_norm(m, scale=lambda x: x + 1)),
    "a projected skip that adds at once": (
        Morph("skip", 2, 8),
        lambda m: _break_norm(m, scale=lambda x: x + 1),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_transformation_is_caught(fault, monkeypatch):
    morph, break_it = FAULTS[fault]
    variables, child, inherited = inherit(TWO, morph)
    assert plain_difference(TWO, variables, child, inherited) <= ROUNDING
    break_it(monkeypatch)
    variables, child, inherited = inherit(TWO, morph)
    assert plain_difference(TWO, variables, child, inherited) > 10 * TOLERANCE
    assert difference(TWO, variables, child, inherited) > 10 * TOLERANCE


def test_networks_with_nan_logits_differ_infinitely():
    variables, child, inherited = inherit(ONE, Morph("wider", 2))
    inherited["params"]["dense"]["bias"] = np.array([0, np.nan, 0, 0], np.float32)
    assert difference(ONE, variables, child, inherited) == math.inf
    assert difference(ONE, variables, ONE, variables) == 0
