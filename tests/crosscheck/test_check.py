# SPDX-License-Identifier: Apache-2.0
"""The traced steps against the tables: equal on ResNet-50, and different as soon as either is tampered
with."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aiperf_mpi.crosscheck.check import Difference, check_operations, compare, differences
from aiperf_mpi.crosscheck.jaxpr import MOMENTA, PARAMETERS
from aiperf_mpi.crosscheck.trace import trace_eval, trace_train, train_arguments
from aiperf_mpi.data.synthetic import MadeImages
from aiperf_mpi.network.architecture import Architecture, Base, Morph, resnet50
from aiperf_mpi.opcount.analytical import count, matrix_operations, operations, update_operations
from aiperf_mpi.opcount.forms import FORMS, executed_difference
from aiperf_mpi.opcount.tally import AUGMENTATION, MADE_IMAGES, STEP, UPDATE
from aiperf_mpi.search.cells import Choice
from aiperf_mpi.search.hpo import tune
from aiperf_mpi.search.nas import Proposal
from aiperf_mpi.training.model import resnet
from aiperf_mpi.training.model.resnet import build_shapes
from aiperf_mpi.training.steps import step as steps
from aiperf_mpi.training.steps.step import StepSettings
from aiperf_mpi.trials.candidate import Candidate
from aiperf_mpi.trials.record import CAUSE_BYTES
from tests.helpers.crosscheck.tampering import Step, with_product

SMALL = Architecture(Base(32, 3, 10, 4, (1, 1)))
SETTINGS = StepSettings(4)
FORM = "space_to_depth_stem"


def candidate(architecture: Architecture = SMALL, batch: int = 4, devices: int = 2) -> Candidate:
    return Candidate.new(
        architecture,
        architecture.morphs,
        parent_id=0,
        replica=0,
        generator=0,
        round=1,
        batch_per_device=batch,
        devices=devices,
        seed=1,
    )


# -- equal -----------------------------------------------------------------------------------------


def test_resnet50_by_hand() -> None:
    # The two gradients of the tables are 2 * 7,711,850,496 less the first convolution's input gradient, which
    # is as much as its forward pass: 2 * 49 * 3 * 64 * 112 * 112 = 236,027,904. Dense: 2 * 2048 * 1000 for
    # each product.
    expected = {
        ("conv", "forward"): 7_711_850_496,
        ("conv", "input gradient"): 7_711_850_496 - 236_027_904,
        ("conv", "weight gradient"): 7_711_850_496,
        ("dense", "forward"): 4_096_000,
        ("dense", "input gradient"): 4_096_000,
        ("dense", "weight gradient"): 4_096_000,
    }
    assert matrix_operations(resnet50().layers()) == expected
    assert trace_train(resnet50(), StepSettings(1), 8).count().matrix() == expected


def test_resnet50_on_eight_devices_with_a_batch_of_448() -> None:
    train = trace_train(
        resnet50(), StepSettings(448, "bfloat16", augmentation="resized_crop", stored_size=256), 8
    ).count()
    evaluate = trace_eval(resnet50(), StepSettings(448), 8).count()
    assert compare(resnet50(), 448, train, evaluate) == ()
    # Per step, not per image: momentum's MAC and the step's for each of 25,557,032 parameters; 4 *
    # 25,557,032.
    assert train[UPDATE, STEP] == update_operations(resnet50()) == 102_228_128
    # The replica's step is that of its devices: 8 * 448 images.
    expected = {key: 3584 * n for key, n in matrix_operations(resnet50().layers()).items()}
    assert (train * 8).matrix() == expected
    # Each gradient, and the metrics (loss, correct, images), go once through an all-reduce.
    assert train["all_reduce", "step"] == 25_557_032 + 3


@pytest.mark.parametrize(
    "settings",
    [
        StepSettings(12, accumulate=4),
        StepSettings(12, augmentation="cifar", accumulate=12),
        StepSettings(12, "float16", accumulate=2),
    ],
)
def test_accumulation_and_scaling_of_the_loss_add_no_operations(settings: StepSettings) -> None:
    # The loop's body counts as often as it runs: 4 times 3 images are 12, and the parameters are updated
    # once.
    child = SMALL.apply(Morph("skip", 1, 6))
    assert differences(child, settings, 2) == ()
    assert trace_train(child, settings, 2).count()["all_reduce", "step"] == child.parameters + 3


@pytest.mark.parametrize("form", ["resized_crop", "crop", "cifar", "none"])
def test_augmentation_is_counted_apart_and_has_no_matrix_products(form: str) -> None:
    plain = trace_train(SMALL, SETTINGS, 2).count()
    for stored in (32, 40):
        settings = StepSettings(4, augmentation=form, stored_size=stored)
        assert differences(SMALL, settings, 2) == ()

        # Nothing but the augmentation differs from the step without one. It depends on the size of the
        # result alone: a mirrored crop selects each pixel, an interpolation is 3 times 4 operations for each,
        # and one for the scale. Positions and random numbers take some hundred operations for each image.
        classes = dict(trace_train(SMALL, settings, 2).count().classes)
        own = classes.pop((AUGMENTATION, STEP), 0)
        pixels = {"none": 0, "crop": 1, "cifar": 1, "resized_crop": 13}[form] * 4 * 32 * 32 * 3
        more = 0 if form == "none" else 4 * 1500
        assert classes == plain.classes and pixels <= own <= pixels + more


def test_made_images_are_counted_apart_and_no_product_depends_on_labels() -> None:
    plain = trace_train(SMALL, SETTINGS, 2).count()
    settings = replace(SETTINGS, made=MadeImages(1), stored_size=40, augmentation="crop")
    assert differences(SMALL, settings, 2) == ()

    # Each pixel takes a sum, 8 steps of a hash, a shift and the sum with the pattern: 11. The places take a
    # product each, once for all images; the patterns have 64 cells of 3 channels.
    classes = dict(trace_train(SMALL, settings, 2).count().classes)
    own = classes.pop((MADE_IMAGES, STEP))
    pixels, places, patterns = 11 * 4 * 40 * 40 * 3, 40 * 40 * 3, 4 * 10 * 64 * 3 + 64 * 3
    assert pixels + places + patterns <= own <= pixels + places + patterns + 200
    assert classes.pop((AUGMENTATION, STEP)) > 0 and classes == plain.classes


@pytest.mark.parametrize("fused", [True, False])
def test_synchronised_statistics_cost_all_reduces_alone(fused: bool) -> None:
    settings = StepSettings(4, synchronised=True, fused=fused)
    assert differences(SMALL, settings, 2) == ()
    # In addition to gradients and metrics, two sums for each channel of each batch norm, forward and
    # backward.
    channels = sum(layer.out_shape[2] for layer in SMALL.layers() if layer.kind == "batch_norm")
    reduced = trace_train(SMALL, settings, 2).count()["all_reduce", "step"]
    assert reduced == SMALL.parameters + 3 + 4 * channels


@pytest.mark.parametrize("width", [4, 16])
@pytest.mark.parametrize("size", [32, 45, 224])
def test_reduced_width_and_odd_sizes(width: int, size: int) -> None:
    # From 45 pixels the strides leave 23, 12, 12, 6: sizes that they do not divide.
    assert differences(Architecture(Base(size, 1, 7, width, (1, 2))), StepSettings(2), 3) == ()


@pytest.mark.parametrize(
    "morph",
    [
        Morph("deeper", 3, 0, 4),
        Morph("wider", 2),
        Morph("skip", 1, 6),
        Morph("skip", 4, 6),
        Morph("kernel", 1, 0, 6),
    ],
    ids=str,
)
def test_each_morph(morph: Morph) -> None:
    child = SMALL.apply(morph)
    assert count(child.layers()).train > count(SMALL.layers()).train
    assert differences(child, SETTINGS, 2) == ()


def test_a_tuned_kernel_is_in_the_step_that_is_trained() -> None:
    # What hyperparameter optimisation chooses for the candidate's own `deeper`: unit 7 after unit 2, 4
    # filters, 8 x 8.
    own = (Morph("deeper", 2, 0, 3), Morph("wider", 5))
    proposal, counts = Proposal(0, own, SMALL.apply(*own)), {}
    for kernel in (3, 5, 7):
        tuned, taken = tune(proposal, Choice(kernel, 4))
        weights = build_shapes(tuned)[0]["params"]
        assert taken == kernel and weights["unit007_conv"]["kernel"] == (kernel, kernel, 4, 4)
        counted = trace_train(tuned, SETTINGS, 2).count().matrix()
        assert counted == {
            key: SETTINGS.batch_per_device * n for key, n in matrix_operations(tuned.layers()).items()
        }
        counts[kernel] = counted["conv", "forward"], operations(tuned)[0]
    # 4 images, 2 operations for each of the 16 (24 more) taps that are new, 4 x 4 channels, 8 x 8 places.
    assert (
        counts[5][0] - counts[3][0] == 4 * 2 * 16 * 16 * 64
        and counts[7][0] - counts[5][0] == 4 * 2 * 24 * 16 * 64
    )
    assert counts[3][1] < counts[5][1] < counts[7][1]


def test_a_sound_candidate_passes() -> None:
    assert check_operations(candidate(), SETTINGS, 2) == ""


def test_the_marks_are_those_of_the_steps_arguments() -> None:
    arguments = train_arguments(SMALL, SETTINGS)
    leaves = jax.tree.leaves(arguments.shapes)
    assert len(leaves) == len(arguments.marks)
    for mark in (PARAMETERS, MOMENTA):
        sizes = [
            np.prod(leaf.shape) for leaf, its in zip(leaves, arguments.marks, strict=True) if its == mark
        ]
        assert sum(sizes) == SMALL.parameters


# -- different -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["train_ops", "val_ops"])
def test_a_tampered_record_is_found(name: str) -> None:
    sound = candidate()
    stated = getattr(sound, name)
    tampered = replace(sound, **{name: stated + 1})
    assert check_operations(tampered, SETTINGS, 2) == f"{name}: {stated + 1} != {stated} by the tables"


def test_both_numbers_of_a_large_network_fit_into_a_record() -> None:
    # The longest name of a class, and counts a thousand times those of ResNet-50.
    difference = Difference(
        "train", ("conv", "weight gradient"), Fraction(7_711_850_496_001), 7_711_850_496_000
    )
    assert "7711850496001 != 7711850496000" in str(difference)[:CAUSE_BYTES]


def test_a_step_of_another_batch_is_found() -> None:
    assert "states 4 and 8, but its step takes 4 on each of 3" in check_operations(candidate(), SETTINGS, 3)
    assert "takes 5" in check_operations(candidate(), StepSettings(5), 2)


def test_one_more_matrix_product_in_the_trained_step_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "train_step", with_product(steps.train_step))
    # 4 x 4 results of 32 * 32 * 3 MACs, for 4 images: 2 * 16 * 3072 / 4 = 24,576 per image, in addition to
    # the dense layer's 2 * 32 * 10 = 640.
    cause = check_operations(candidate(), SETTINGS, 2)
    assert cause == "train dense forward: 25216 != 640 by the tables"


def test_one_more_product_in_the_evaluation_step_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    original = steps.eval_step

    def tampered(architecture: Architecture, settings: StepSettings) -> Step:
        step = original(architecture, settings)

        def more(params: Any, stats: Any, images: jax.Array, labels: jax.Array, valid: jax.Array) -> Any:
            return step(params, stats, images + (labels[:, None] @ labels[None, :])[0, 0], labels, valid)

        return more

    monkeypatch.setattr(steps, "eval_step", tampered)
    assert "eval dense forward: " in check_operations(candidate(), SETTINGS, 2)


def test_a_gradient_that_is_not_computed_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    # A network whose last convolution is frozen trains faster, and must not be credited as if it were not.
    compute = resnet.Network._compute

    def frozen(self: resnet.Network, layer: Any, inputs: list[jax.Array], train: bool) -> jax.Array:
        if layer.name == "unit006.conv":
            inputs = [jax.lax.stop_gradient(inputs[0])]
        return compute(self, layer, inputs, train)

    monkeypatch.setattr(resnet.Network, "_compute", frozen)
    cause = check_operations(candidate(), SETTINGS, 2)
    assert cause.startswith("train conv input gradient: ")


def test_an_update_without_momentum_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    import optax

    monkeypatch.setattr(steps, "_optimiser", lambda settings: optax.identity())
    # Only the rate's MAC is left for each parameter: 2 instead of 4 operations.
    expected = f"train update: {2 * SMALL.parameters} != {4 * SMALL.parameters} by the tables"
    assert check_operations(candidate(), SETTINGS, 2) == expected


def test_what_cannot_be_counted_is_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    original = steps.train_step

    def tampered(architecture: Architecture, settings: StepSettings) -> Step:
        step = original(architecture, settings)
        return lambda state, images, labels, rate: step(
            state, images, labels, rate + jnp.linalg.slogdet(jnp.eye(3) * rate)[1]
        )

    monkeypatch.setattr(steps, "train_step", tampered)
    assert "primitive 'lu' has no rule" in check_operations(candidate(), SETTINGS, 2)


# -- optimised forms ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [7, 8, 9, 11])
def test_a_space_to_depth_stem_is_checked_less_its_difference(
    kernel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = SMALL if kernel == 7 else SMALL.apply(Morph("kernel", 0, 0, kernel))
    blocks = replace(SETTINGS, stem="space_to_depth")
    assert check_operations(candidate(network), blocks, 2) == ""

    # The credit stays that of the plain form, whose count the step then exceeds.
    train, evaluate = trace_train(network, blocks, 2).count(), trace_eval(network, blocks, 2).count()
    assert [str(item).split(":")[0] for item in compare(network, 4, train, evaluate)] == [
        "train conv forward",
        "train conv weight gradient",
        "eval conv forward",
    ]

    # A setting that the step does not follow is detected.
    monkeypatch.setattr(resnet, "BlockConv", _plain)
    assert check_operations(candidate(network), blocks, 2).startswith("train conv forward: ")


def _plain(filters: int, kernel: int, dtype: Any, name: str) -> nn.Conv:
    before = (kernel - 1) // 2
    padding = ((before, kernel - 1 - before),) * 2
    return nn.Conv(filters, (kernel, kernel), 2, padding, use_bias=False, dtype=dtype, name=name)


def test_the_difference_of_the_form_by_hand() -> None:
    # The 7x7 kernel on 3 channels becomes 4x4 on 12: 192 products instead of 147 for each of 112 * 112 * 64
    # results, forward and for the weight gradient: 2 * 45 * 802,816 = 72,253,440.
    difference = executed_difference(resnet50().layers(), [FORM])
    assert difference == {("conv", "forward"): 72_253_440, ("conv", "weight gradient"): 72_253_440}
    assert executed_difference(resnet50().layers(), []) == {}


def test_invalid_forms_are_errors() -> None:
    with pytest.raises(ValueError, match=f"'winograd' is not one of {FORM}"):
        executed_difference(SMALL.layers(), ["winograd"])
    with pytest.raises(ValueError, match="no space-to-depth form with stride 2 on 33x33"):
        FORMS[FORM].difference(Architecture(Base(33, 3, 10, 4, (1,))).layers())
