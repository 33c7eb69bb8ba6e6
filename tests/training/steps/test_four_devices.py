# SPDX-License-Identifier: Apache-2.0
"""Several devices: a process of its own, as the number of host devices is fixed before JAX starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest


@pytest.fixture(scope="module")
def measured(root) -> dict:
    # Less optimised programs are compiled in two thirds of the time, and compute the same except for
    # rounding.
    env = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    run = subprocess.run(
        [sys.executable, "-m", "tests.programs.training.four_devices"],
        cwd=root,
        env=env,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout.splitlines()[-1])
    assert result["devices"] == 4
    return result


def test_four_devices_train_like_one_with_four_micro_batches(measured):
    # float32 and another order of additions: a relative 1e-5 per step of numbers near 1, over three steps.
    assert measured["parameter_distance"] < 1e-4
    assert measured["loss"] == pytest.approx(measured["expected_loss"], rel=1e-4)


@pytest.mark.parametrize("form", ["accumulated", "synchronised", "augmented"])
def test_one_device_trains_like_four(measured, form):
    """The one device has the images of the four as four micro-batches, each normalised by itself.

    Or it has them as one batch, over which the four devices synchronise their statistics. Random crops are
    the same however many devices share the batch.
    """
    runs = measured[form]
    # float32 and another order of additions, as above.
    assert runs["loss"][0] == pytest.approx(runs["loss"][1], rel=1e-4)
    assert runs["distance"] < 1e-4
    assert runs["correct"][0] == runs["correct"][1] and runs["images"] == [[32] * 3] * 2

    # Once the statistics are averaged, an evaluation cannot tell them apart either.
    (correct, images, loss), (other_correct, other_images, other_loss) = runs["evaluated"]
    assert correct == other_correct and images == other_images == 30
    assert loss == pytest.approx(other_loss, rel=1e-4)


def test_both_forms_of_dispatch_train_alike(measured):
    assert measured["forms"] == ["shard_map", "pmap"]
    runs = measured["shard_map"]
    # The same function of a device, and the same sums over the devices: only the compiler may order them
    # otherwise.
    assert runs["loss"][0] == pytest.approx(runs["loss"][1], rel=1e-5)
    assert runs["distance"] < 1e-5 and runs["correct"][0] == runs["correct"][1]
    assert runs["statistics_differ"][0] == pytest.approx(runs["statistics_differ"][1], rel=1e-4)
    assert runs["evaluated"][0][:2] == runs["evaluated"][1][:2]


def test_synchronised_statistics_are_equal_and_change_the_training(measured):
    assert measured["synchronised"]["statistics_differ"] == [0, 0]
    assert measured["synchronised"]["loss"][0] != pytest.approx(measured["loss"], rel=1e-3)


def test_counts_over_devices_are_exact(measured):
    assert measured["correct"] == measured["expected_correct"]
    assert measured["images"] == [32, 32, 32]


def test_statistics_are_local_until_they_are_averaged(measured):
    assert measured["local_statistics_distance"] < 1e-4
    assert measured["local_statistics_differ"] > 1e-3
    assert measured["average_distance"] < 1e-6


def test_all_devices_hold_the_same_bits_before_an_evaluation(measured):
    assert len(set(measured["digests"])) == 1


def test_an_evaluation_counts_alike_on_four_devices_and_one(measured):
    # Two of 32 images only fill up the batch; 40 evaluations in flight at once neither hang nor disagree.
    correct, images, loss = measured["one"]
    assert images == 30 and measured["one_device"] == "3"
    assert all(entry[:2] == [correct, images] for entry in measured["four"]) and len(measured["four"]) == 40
    assert all(entry[2] == pytest.approx(loss, rel=1e-5) for entry in measured["four"])


def test_a_device_that_differs_by_one_bit_fails_the_training(measured):
    # Undisturbed, two whole epochs of three steps; the comparison after the first step, or after an epoch's
    # training.
    whole, first, later = measured["disturbed"]
    assert whole == [[[0, 3, False], [1, 3, False]], ""]
    assert first[1].startswith("after the first step: the parameters differ between the 4 devices")
    assert [row[2] for row in first[0]] in ([], [True])
    assert later[0][0] == [0, 3, False] and later[0][1:] == [[1, 3, True]]
    assert later[1].startswith("epoch 1, after its training: the parameters differ between the 4 devices")
