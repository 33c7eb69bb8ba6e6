# SPDX-License-Identifier: Apache-2.0
"""The paper's Tables 1, 2, 3 and A1, the authors' integers, and layers counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiperf_mpi.network.architecture import Architecture, Base, Layer, Morph, resnet50
from aiperf_mpi.network.morphism import random_chain
from aiperf_mpi.opcount.analytical import KINDS, RULES, Counts, count, count_layer, operations

PAPER = count(resnet50().layers())
EXECUTED = count(resnet50().layers(), "executed")


def digits(value: float) -> str:
    """Three significant digits as the paper prints them."""
    return f"{value:.2e}".replace("e+0", "e").replace("e+", "e")


# -- the authors' integers -------------------------------------------------------------------------


def test_the_authors_profiler_on_resnet50() -> None:
    # Their profiler, executed on their model file: 7,806,583,495 forward, 23,053,458,315 with backward.
    assert (PAPER.fp, PAPER.train) == (7_806_583_495, 23_053_458_315)
    assert operations(resnet50()) == (23_053_458_315, 7_806_583_495)
    assert PAPER.val == PAPER.fp and PAPER.update == 0


def test_table_1_verbatim_on_resnet50() -> None:
    # Global pooling: 7 * 7 * 2048 additions instead of (49 - 1) * 2048, + 2048. Softmax: 1000 additions
    # instead of 999, + 1. Together 7,806,583,495 + 2049.
    assert EXECUTED.fp == 7_806_585_544
    # The update, one MAC per weight of convolutions and dense, moves from each image to each step. Of
    # 25,557,032 parameters 53,120 belong to batch norms: 2 * (25,557,032 - 53,120) = 51,007,824.
    assert EXECUTED.update == 51_007_824
    assert EXECUTED.bp == PAPER.bp - 51_007_824


# -- Table 3 and Table A1 of the paper -------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "fp", "bp", "total"),
    [
        ("conv", "7.71e9", "1.52e10", "2.29e10"),
        ("dense", "4.10e6", "1.23e7", "1.64e7"),
        ("batch_norm", "7.41e7", "1.91e3", "7.41e7"),
        ("relu", "9.08e6", "0", "9.08e6"),
        ("max_pool", "1.81e6", "0", "1.81e6"),
        ("add", "5.52e6", "0", "5.52e6"),
    ],
)
def test_table_3(kind: str, fp: str, bp: str, total: str) -> None:
    forward, backward = PAPER.kinds[kind]
    assert (digits(forward), digits(forward + backward)) == (fp, total)
    assert digits(backward) == bp if backward else bp == "0"


def test_table_3_ratios_and_total() -> None:
    ratio = {kind: backward / forward for kind, (forward, backward) in PAPER.kinds.items()}
    assert f"{ratio['conv']:.4f}" == "1.9755"
    assert f"{ratio['dense']:.4f}" == "3.0005"
    assert f"{ratio['batch_norm']:.5f}" == "0.00003"
    assert f"{PAPER.bp / PAPER.fp:.4f}" == "1.9531"
    assert (digits(PAPER.fp), digits(PAPER.bp), digits(PAPER.train)) == ("7.81e9", "1.52e10", "2.31e10")


def test_the_two_rows_of_table_3_that_contradict_table_1() -> None:
    # The paper prints 1.00e5 and 2.10e4. Its Table 1 gives 7 * 7 * 2048 * 1 + 2048 * 4 = 108,544 and
    # 1000 * (8 + 1 + 4) = 13,000; the authors' profiler 48 * 2048 + 8192 = 106,496 and 8000 + 999 + 4000 =
    # 12,999.
    assert (PAPER.kinds["global_pool"], PAPER.kinds["softmax"]) == ((106_496, 0), (12_999, 0))
    assert (EXECUTED.kinds["global_pool"], EXECUTED.kinds["softmax"]) == ((108_544, 0), (13_000, 0))


def test_table_a1() -> None:
    # One epoch of ImageNet, 1,281,167 training and 50,000 validation images.
    training, validation = 1_281_167, 50_000
    assert digits(training * PAPER.fp) == "1.00e16"
    assert digits(training * PAPER.bp) == "1.95e16"
    assert digits(training * PAPER.train) == "2.95e16"
    assert digits(validation * PAPER.fp) == "3.90e14"
    assert digits(training * PAPER.train + validation * PAPER.fp) == "2.99e16"


def test_an_epoch_of_the_authors_score() -> None:
    # Their score takes 1,280,000 training images: 1.28e6 * 23,053,458,315 + 5e4 * 7,806,583,495.
    assert 1_280_000 * PAPER.train + 50_000 * PAPER.val == 29_898_755_817_950_000


# -- single layers by hand -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "paper", "executed"),
    [
        # Even kernel 4, 3 -> 5 channels, 9x7 in, 5x4 out (stride 2): 16*15*20 = 4800 MACs. Forward 9600.
        # Backward input and weight gradient 2 * 4800 MACs = 19200; update 240 weights = 480.
        (Layer("conv", "c", ("x",), (9, 7, 3), (5, 4, 5), 4, 2), (9600, 19680, 0), (9600, 19200, 480)),
        # The same as the first layer of a network: only the weight gradient, 9600.
        (Layer("conv", "c", ("input",), (9, 7, 3), (5, 4, 5), 4, 2), (9600, 10080, 0), (9600, 9600, 480)),
        # 6 -> 4: 24 MACs forward; 48 backward; update (6 + 1) * 4 = 28 MACs.
        (Layer("dense", "d", ("x",), (1, 1, 6), (1, 1, 4)), (48, 96 + 56, 0), (48, 96, 56)),
        # 2*3*4 = 24 elements: MAC 2 + add 1 + div 4 = 7 each; the profiler's 36 backward.
        (Layer("batch_norm", "n", ("x",), (2, 3, 4), (2, 3, 4)), (168, 36, 0), (168, 36, 0)),
        (Layer("relu", "r", ("x",), (2, 3, 4), (2, 3, 4)), (24, 0, 0), (24, 0, 0)),
        (Layer("add", "a", ("x", "y"), (2, 3, 4), (2, 3, 4)), (24, 0, 0), (24, 0, 0)),
        # 3x3 stride 2 on 5x5x2 gives 3x3x2 = 18 outputs of 9 comparisons.
        (Layer("max_pool", "p", ("x",), (5, 5, 2), (3, 3, 2), 3, 2), (162, 0, 0), (162, 0, 0)),
        # 5x5x2: 24 additions and a division (4) per channel; by Table 1 25 additions.
        (Layer("global_pool", "g", ("x",), (5, 5, 2), (1, 1, 2)), (56, 0, 0), (58, 0, 0)),
        # 10 classes: 80 for exp, 9 (by Table 1 10) additions, 40 for divisions.
        (Layer("softmax", "s", ("x",), (1, 1, 10), (1, 1, 10)), (129, 0, 0), (130, 0, 0)),
    ],
)
def test_one_layer_by_hand(layer: Layer, paper: tuple[int, int, int], executed: tuple[int, int, int]) -> None:
    assert count_layer(layer) == paper
    assert count_layer(layer, "executed") == executed


def test_what_a_morph_adds() -> None:
    # A deeper after unit 3 at 56x56x256: conv 2 * 9 * 256 * 256 * 3136 = 3,699,376,128 forward, 2 * that + 2
    # * 9 * 65536 = 1,179,648 backward; batch norm 7 * 802,816 and 36; ReLU 802,816.
    more = operations(resnet50().apply(Morph("deeper", 3, 0, 3)))
    forward = 3_699_376_128 + 8 * 802_816
    assert more[1] - PAPER.fp == forward
    assert more[0] - PAPER.train == forward + 2 * 3_699_376_128 + 1_179_648 + 36


# -- properties ------------------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_counts_of_any_chain_are_sums_of_layers_and_grow(seed: int) -> None:
    rng = np.random.default_rng(seed)
    parent = Architecture(Base(image_size=48, channels=3, classes=7, width=4, blocks=(2, 1, 2)))
    for morph in random_chain(parent, rng, 6)[1]:
        child = parent.apply(morph)
        for rules in RULES:
            counts = count(child.layers(), rules)
            single = [count_layer(layer, rules) for layer in child.layers()]
            assert (counts.fp, counts.bp, counts.update) == tuple(map(sum, zip(*single, strict=True)))
            assert all(type(n) is int for pair in counts.kinds.values() for n in pair)
            assert tuple(counts.kinds) == KINDS
        assert operations(child) > operations(parent)
        parent = child


def test_counts_add_up() -> None:
    layers = resnet50().layers()
    for rules in RULES:
        assert count(layers[:60], rules) + count(layers[60:], rules) == count(layers, rules)
    assert Counts() + PAPER == Counts(dict(PAPER.kinds), 0)


def test_unknown_rules_and_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match="not one of paper, executed"):
        count(resnet50().layers(), "official")
    with pytest.raises(ValueError, match="unknown kind 'pool'"):
        count_layer(Layer("pool", "p", ("x",), (2, 2, 1), (1, 1, 1)))
