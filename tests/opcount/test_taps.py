# SPDX-License-Identifier: Apache-2.0
"""Products without taps in the padding."""

from __future__ import annotations

import pytest

from aiperf_mpi.network.architecture import Layer
from aiperf_mpi.opcount.taps import valid_products, valid_taps


@pytest.mark.parametrize(
    ("size", "kernel", "taps"), [(7, 3, 19), (56, 3, 166), (7, 1, 7), (7, 5, 29), (5, 4, 16)]
)
def test_taps_that_are_not_padding(size: int, kernel: int, taps: int) -> None:
    # 3 taps, 1 before: all 7 places have 3, but the first and the last 2: 19. 5 taps: 5 * 7 - 2 * (2 + 1) =
    # 29. 4 taps, 1 before and 2 after: 4 * 5 - 1 - (1 + 2) = 16.
    before = (kernel - 1) // 2
    assert valid_taps(size, kernel, before=before, after=kernel - 1 - before) == taps


def test_products_of_a_step_without_padding() -> None:
    # 7x7, 3x3, 2 -> 4 channels: 19^2 taps, 2 operations each, forward and both gradients. The first one on
    # 8x8 with stride 2 has no gradient of its input: 4 places in a row have 2, 3, 3, 3 taps. A dense layer
    # has three products.
    first = Layer("conv", "first", ("input",), (8, 8, 1), (4, 4, 2), 3, 2)
    conv = Layer("conv", "conv", ("first",), (7, 7, 2), (7, 7, 4), 3)
    dense = Layer("dense", "dense", ("conv",), (1, 1, 4), (1, 1, 10))
    relu = Layer("relu", "relu", ("conv",), (7, 7, 4), (7, 7, 4))
    assert valid_products([first]) == 2 * 2 * 11**2 * 2
    assert valid_products([conv, relu]) == 3 * 2 * 19**2 * 2 * 4
    assert valid_products([dense]) == 3 * 2 * 40
