# SPDX-License-Identifier: Apache-2.0
"""The extra operations of optimised forms, on layers that are counted by hand."""

from __future__ import annotations

import pytest

from aiperf_mpi.network.architecture import Layer, resnet50
from aiperf_mpi.opcount.analytical import FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT, matrix_operations
from aiperf_mpi.opcount.forms import (
    FORM_SETS,
    FORMS,
    difference_of_passes,
    evaluation_difference,
    executed_difference,
    expansions,
)


def convolution(
    channels: int, filters: int, kernel: int = 1, stride: int = 1, source: str = "before"
) -> Layer:
    side = 6 // stride
    shapes = (6, 6, channels), (side, side, filters)
    return Layer("conv", f"{channels}to{filters}", (source,), *shapes, kernel, stride)


def test_expanding_convolutions_are_those_with_twice_the_channels() -> None:
    layers = [
        convolution(4, 8),
        convolution(4, 16, stride=2),
        convolution(4, 7),
        convolution(4, 16, kernel=3),
        convolution(4, 16, source="input"),
    ]
    assert expansions(layers) == layers[:2]


def test_the_products_of_a_folded_convolution() -> None:
    # 9 positions, 4 channels to 16. Plain: 3 products of 9 x 4 x 16 multiply-adds, 2 operations each.
    layers = [convolution(4, 16, stride=2)]
    product, square = 2 * 9 * 4 * 16, 2 * 9 * 4 * 4
    assert executed_difference(layers, ["folded"]) == {
        ("conv", FORWARD): -product,
        ("conv", INPUT_GRADIENT): -product,
        ("conv", WEIGHT_GRADIENT): -product,
        ("dense", FORWARD): product + square,
        ("dense", WEIGHT_GRADIENT): 2 * product + square,
    }
    # The moments times the weights, and the weights times themselves: 4 x 4 x 16 multiply-adds each.
    of_weights = 2 * 4 * 4 * 16
    assert difference_of_passes(layers, ["folded"]) == {
        ("dense", FORWARD): of_weights,
        ("dense", WEIGHT_GRADIENT): of_weights,
    }
    assert evaluation_difference(layers, ["folded"]) == {}


def test_folding_takes_a_few_percent_more_products_of_resnet50() -> None:
    layers = resnet50().layers()
    more = sum(executed_difference(layers, FORM_SETS["folded"]).values())
    # The 16 blocks' last convolutions have C = 4 K, so 2 P K K is a quarter of one product: twice in three.
    assert 0.05 < more / sum(matrix_operations(layers).values()) < 0.10


@pytest.mark.parametrize("name", FORM_SETS["lean"])
def test_the_other_forms_multiply_the_same(name: str) -> None:
    layers = resnet50().layers()
    assert executed_difference(layers, [name]) == difference_of_passes(layers, [name]) == {}


def test_each_set_names_forms_and_an_unknown_one_is_refused() -> None:
    assert {name for names in FORM_SETS.values() for name in names} <= set(FORMS)
    with pytest.raises(ValueError, match="form 'flat' is not one of space_to_depth_stem, rounded"):
        executed_difference([], ["flat"])
