# SPDX-License-Identifier: Apache-2.0
"""Steps that would not fit run in parts; the memory they need is predicted from the compiled programs."""

from __future__ import annotations

from functools import lru_cache

import jax
import numpy as np
import pytest

from aiperf_mpi.network.architecture import Base, resnet50
from aiperf_mpi.training.steps.compile import Compiled, compile_steps
from aiperf_mpi.training.steps.memory import TooLarge, compile_fitting, memory_limit, needed_bytes
from aiperf_mpi.training.steps.step import StepSettings
from tests.helpers.training.cases import random_batch, started

#: Small, but large enough that a step needs more memory for its images than for its parameters.
BASE = Base(image_size=32, channels=1, classes=3, width=4, blocks=(1,))
SETTINGS = StepSettings(batch_per_device=16)


@lru_cache
def steps(settings: StepSettings) -> Compiled:
    """Compile the steps, once for all tests of this file."""
    return compile_steps(resnet50(BASE), settings, jax.devices()[:1])


@pytest.fixture(scope="module")
def whole() -> Compiled:
    return steps(SETTINGS)


def parts(made: Compiled) -> tuple[int, int]:
    return made.settings.micro_batch, made.settings.accumulate


def test_steps_run_in_as_few_parts_as_fit(whole: Compiled) -> None:
    tried: list[int] = []

    def compiled(settings: StepSettings) -> Compiled:
        tried.append(settings.accumulate)
        return steps(settings)

    def fitting(limit: int | None) -> Compiled:
        tried.clear()
        return compile_fitting(compiled, SETTINGS, limit)

    needed = needed_bytes(whole.train)
    assert needed.temporary > 4 * needed.fixed > 0
    assert parts(fitting(None)) == (16, 1) == parts(fitting(needed.total)) and tried == [1]

    # A byte less than the whole step needs: two parts, or more if half of the images needs more than half.
    half = fitting(needed.total - 1)
    assert half.settings.accumulate in (2, 4) and half.batch_global == 16 and tried[0] == 1
    assert needed_bytes(half.train).total < needed.total
    assert half.trace_seconds > whole.trace_seconds / 4 and half.compile_seconds > 0

    # A third: two parts cannot fit even in proportion, and are not compiled.
    fitting(needed.fixed + needed.temporary // 3)
    assert tried[:2] == [1, 4]


def test_parts_train_on_all_images_of_the_batch(whole: Compiled) -> None:
    limit = needed_bytes(whole.train).total - 1
    made = compile_fitting(steps, SETTINGS, limit)
    images, labels = random_batch(BASE, 1, 16)
    _, metrics = made.train(started(made), images, labels, made.scalar(0.1))
    assert int(metrics.images) == 16
    counted = made.evaluate(
        started(made).params, started(made).batch_stats, images, labels, np.ones((1, 16), bool)
    )
    assert int(counted.images) == 16


def test_steps_that_never_fit_are_refused_with_numbers() -> None:
    with pytest.raises(TooLarge, match="1 images at a time needs .* of the 1,000 bytes"):
        compile_fitting(steps, SETTINGS, 1000)


def test_only_out_of_memory_errors_of_xla_try_more_parts(whole: Compiled) -> None:
    def exhausted(settings):
        if settings.accumulate < 4:
            # XLA's own error: an array of a pebibyte.
            jax.block_until_ready(jax.numpy.zeros(1 << 50, np.uint8))
        return whole

    assert compile_fitting(exhausted, SETTINGS, None).train is whole.train

    def failing(settings):
        raise ValueError("failing")

    with pytest.raises(ValueError, match="failing"):
        compile_fitting(failing, SETTINGS, None)


def test_the_limit_is_configured_or_reported_by_devices() -> None:
    assert memory_limit(jax.devices(), 12345) == 12345
    # A CPU does not report its memory.
    assert memory_limit(jax.devices()) is None
