# SPDX-License-Identifier: Apache-2.0
"""The architecture: ResNet-50's published numbers, each morph, and the kernels that hyperparameters set."""

from __future__ import annotations

import pytest

from aiperf_mpi.network.architecture import MAX_UNIT_ID, Architecture, Base, Edge, Morph, MorphError, resnet50
from tests.helpers.network.layer_lists import SMALL, TINY, by_name, order, well_formed

# -- the base network ------------------------------------------------------------------------------


def test_resnet50_has_its_published_size() -> None:
    # 1 stem + 16 blocks of 3 convolutions + 4 projections = 53; a ReLU after each except the projections =
    # 49; 16 ADDs. 25,557,032 parameters is the number that every framework reports for ResNet-50 with 1000
    # classes (its convolutions without bias): the stride's place does not change it.
    architecture = resnet50()
    kinds = [layer.kind for layer in architecture.layers()]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "conv": 53,
        "batch_norm": 53,
        "relu": 49,
        "add": 16,
        "max_pool": 1,
        "global_pool": 1,
        "dense": 1,
        "softmax": 1,
    }
    assert architecture.parameters == 25_557_032
    well_formed(architecture)


def test_version_1_strides_in_the_first_convolution_of_a_stage() -> None:
    # Stage 2 begins with unit 10 (stem 0, blocks 1-3, 4-6, 7-9): its 1x1 halves 56 to 28, the 3x3 keeps 28.
    layers = by_name(resnet50())
    assert (layers["unit010.conv"].kernel, layers["unit010.conv"].stride) == (1, 2)
    assert layers["unit010.conv"].in_shape == (56, 56, 256)
    assert layers["unit011.conv"].in_shape == layers["unit011.conv"].out_shape == (28, 28, 128)
    assert layers["unit012.from009.conv"].stride == 2
    assert layers["pool"].out_shape == (56, 56, 64)
    assert layers["dense"].in_shape == (1, 1, 2048)


@pytest.mark.parametrize(
    "changes",
    [
        {"image_size": 0},
        {"width": 1 << 17},
        {"blocks": ()},
        {"blocks": (1, 0)},
        {"blocks": (1366,)},
        {"classes": -1},
        {"blocks": (1,) * 9},
    ],
)
def test_an_impossible_base_is_refused(changes: dict) -> None:
    with pytest.raises(ValueError, match="base network"):
        Base(**changes)


# -- the morphs ------------------------------------------------------------------------------------


def test_deeper_takes_over_all_consumers() -> None:
    # Unit 3 ends the first block, so the ADD of unit 6 takes its output; a skip from 3 to 9 is made first.
    before = resnet50().apply(Morph("skip", 3, 9))
    after = before.apply(Morph("deeper", 3, 0, 3))
    layers = by_name(after)
    assert order(after)[:6] == [0, 1, 2, 3, 49, 4]
    assert layers["unit004.conv"].inputs == ("unit049.relu",)
    assert layers["unit006.from049.add"].inputs[1] == "unit049.relu"
    assert layers["unit009.from049.norm"].inputs == ("unit049.relu",)
    assert all("unit003.relu" not in layer.inputs for layer in after.layers() if layer.name != "unit049.conv")
    assert layers["unit049.conv"].in_shape == layers["unit049.conv"].out_shape == (56, 56, 256)


def test_deeper_after_the_stem_takes_over_the_pooling() -> None:
    # At the full 112x112 of the stem, before the pooling, as in the authors' graph.
    layers = by_name(resnet50().apply(Morph("deeper", 0, 0, 3)))
    assert layers["unit049.conv"].in_shape == (112, 112, 64)
    assert layers["pool"].inputs == ("unit049.relu",)
    assert layers["unit001.conv"].inputs == ("pool",)
    assert layers["unit003.frompool.conv"].inputs == ("pool",)


def test_deeper_after_a_deeper_is_inserted_between() -> None:
    assert order(resnet50().apply(Morph("deeper", 5, 0, 3), Morph("deeper", 5, 0, 3)))[4:9] == [
        4,
        5,
        50,
        49,
        6,
    ]


def test_wider_doubles_what_additions_tie() -> None:
    # The identity shortcuts of stage 1 tie the last units of its blocks, 3, 6 and 9; 3 gets a projection from
    # the pooling, and 12 one from 9, so neither the stem nor stage 2 is tied. Their neighbours change input
    # only.
    after = resnet50().apply(Morph("wider", 6))
    filters = {unit.id: unit.filters for unit in after.units}
    assert [filters[i] for i in (3, 6, 9)] == [512, 512, 512]
    assert [filters[i] for i in (0, 1, 2, 4, 5, 12)] == [64, 64, 64, 64, 64, 512]
    layers = by_name(after)
    assert layers["unit003.frompool.conv"].out_shape == (56, 56, 512)
    assert layers["unit012.from009.conv"].in_shape == (56, 56, 512)
    assert layers["unit004.conv"].in_shape == (56, 56, 512)


def test_wider_follows_skips_without_projection_only() -> None:
    # 4 -> 5 has equal shapes (56x56x64): tied. 1 -> 9 (64 -> 256 filters) is projected: not tied.
    tied = resnet50().apply(Morph("skip", 4, 5), Morph("wider", 4))
    assert {u.id: u.filters for u in tied.units}[5] == 128
    free = resnet50().apply(Morph("skip", 1, 9), Morph("wider", 1))
    filters = {u.id: u.filters for u in free.units}
    assert (filters[1], filters[9]) == (128, 256)
    well_formed(tied)
    well_formed(free)


def test_wider_reaches_the_last_unit_only_by_a_tie() -> None:
    after = resnet50().apply(Morph("wider", 45))
    assert by_name(after)["dense"].in_shape == (1, 1, 4096)
    with pytest.raises(MorphError, match="last convolution"):
        resnet50().apply(Morph("wider", 48))


def test_deeper_unties_the_unit_before_it() -> None:
    # The new unit takes over 3's shortcut to 6, so widening 3 now touches nothing else.
    after = resnet50().apply(Morph("deeper", 3, 0, 3), Morph("wider", 3))
    filters = {u.id: u.filters for u in after.units}
    assert (filters[3], filters[49], filters[6]) == (512, 256, 256)


@pytest.mark.parametrize(
    ("source", "target", "kind", "stride", "shape"),
    [
        (4, 5, "norm", 1, (56, 56, 64)),  # same shape: a batch norm alone
        (1, 9, "conv", 1, (56, 56, 256)),  # other filters
        (9, 10, "conv", 2, (28, 28, 128)),  # the downsampling of stage 2
        (1, 24, "conv", 4, (14, 14, 1024)),  # those of stages 2 and 3
        (1, 48, "conv", 8, (7, 7, 2048)),  # all three; the pooling is before unit 1
    ],
)
def test_skip_is_projected_over_the_units_between(
    source: int, target: int, kind: str, stride: int, shape: tuple[int, int, int]
) -> None:
    after = resnet50().apply(Morph("skip", source, target))
    assert {u.id: u for u in after.units}[target].edges[-1] == Edge(source, kind, stride)
    layers = by_name(after)
    tag = f"unit{target:03d}.from{source:03d}"
    assert layers[f"{tag}.norm"].out_shape == shape
    if kind == "conv":
        assert (layers[f"{tag}.conv"].kernel, layers[f"{tag}.conv"].stride) == (1, stride)
    well_formed(after)


def test_skip_over_the_pooling_has_its_stride() -> None:
    # A unit after the stem is before the pooling (112x112); stage 2 is at 28x28: 2 (pooling) * 2 (unit
    # 10) = 4.
    after = resnet50().apply(Morph("deeper", 0, 0, 3), Morph("skip", 49, 11))
    layer = by_name(after)["unit011.from049.conv"]
    assert (layer.stride, layer.in_shape, layer.out_shape) == (4, (112, 112, 64), (28, 28, 128))
    well_formed(after)


def test_skip_strides_round_as_the_chain_does_on_odd_sizes() -> None:
    # 50 pixels: stem 25, pooling 13, stages 13, 7, 4, 2. A stride of 8 from 13 must give 2 = ceil(13 / 8).
    architecture = Architecture(Base(image_size=50, channels=1, classes=10, width=4)).apply(
        Morph("skip", 1, 48)
    )
    assert by_name(architecture)["unit048.from001.conv"].out_shape[:2] == (2, 2)
    well_formed(architecture)


def test_kernel_grows_one_convolution() -> None:
    layers = by_name(resnet50().apply(Morph("kernel", 1, 0, 4), Morph("kernel", 2, 0, 31)))
    assert [layers[f"unit{i:03d}.conv"].kernel for i in (1, 2, 3)] == [4, 31, 1]
    assert layers["unit001.conv"].out_shape == (56, 56, 64)


@pytest.mark.parametrize(
    ("morph", "message"),
    [
        (Morph("deeper", 49, 0, 3), "no unit 49"),
        (Morph("deeper", 1, 0, 0), "kernel 0"),
        (Morph("deeper", 1, 0, 32), "kernel 32"),
        (Morph("wider", -1), "no unit -1"),
        (Morph("skip", 0, 5), "first unit"),
        (Morph("skip", 5, 5), "does not come before"),
        (Morph("skip", 6, 5), "does not come before"),
        (Morph("skip", 3, 6), "already added"),
        (Morph("kernel", 2, 0, 3), "kernel 3"),
        (Morph("kernel", 2, 0, 32), "kernel 32"),
    ],
)
def test_a_morph_that_does_not_fit_says_why(morph: Morph, message: str) -> None:
    with pytest.raises(MorphError, match=message):
        resnet50().apply(morph)


def test_ids_end_where_twelve_bits_do() -> None:
    architecture = Architecture(TINY)
    growth = [Morph("deeper", 0, 0, 1)] * (MAX_UNIT_ID + 1 - architecture.unit_count)
    full = architecture.apply(*growth)
    assert full.unit_count == MAX_UNIT_ID + 1
    with pytest.raises(MorphError, match="more than 4096 units"):
        full.apply(Morph("deeper", 0, 0, 1))


# -- kernels of hyperparameter optimisation --------------------------------------------------------


def test_own_kernels_are_those_of_own_deepers() -> None:
    parent = Architecture(SMALL).apply(Morph("deeper", 5, 0, 3))
    child = parent.apply(Morph("wider", 8), Morph("deeper", 5, 0, 3), Morph("deeper", 9, 0, 3))
    tuned = child.with_own_kernel(3, 7)
    kernels = {unit.id: unit.kernel for unit in tuned.units}
    assert [kernels[i] for i in (49, 50, 51)] == [3, 7, 7]
    assert child.own_kernel_morphs(3) == (2, 3)
    assert tuned.hash != child.hash
    assert tuned.group(3) == child.group(3) == child.hash


def test_a_kernel_morph_wins() -> None:
    child = Architecture(SMALL).apply(
        Morph("deeper", 5, 0, 3), Morph("deeper", 9, 0, 3), Morph("kernel", 49, 0, 5)
    )
    kernels = {unit.id: unit.kernel for unit in child.with_own_kernel(3, 7).units}
    assert (kernels[49], kernels[50]) == (5, 7)


def test_without_own_deeper_the_kernel_has_no_effect() -> None:
    child = Architecture(SMALL).apply(Morph("deeper", 5, 0, 5), Morph("wider", 8))
    assert child.own_kernel_morphs(1) == ()
    assert child.with_own_kernel(1, 7) is child
    with pytest.raises(ValueError, match="3 own morphs"):
        child.group(3)
