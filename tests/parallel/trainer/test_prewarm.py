# SPDX-License-Identifier: Apache-2.0
"""Convolutions that a replica's thread compiles while it is free."""

from __future__ import annotations

import time

import pytest

from aiperf_mpi.parallel.trainer.prewarm import Prewarm
from aiperf_mpi.training.steps.convolutions import Convolution
from tests.helpers.parallel.contexts import fake_context
from tests.helpers.parallel.past import small
from tests.helpers.parallel.rows import Noting
from tests.helpers.parallel.trainers import fake_trainer, one_device


@pytest.mark.parametrize(("tuned", "batches"), [("true", {32, 16, 64}), ("false", {32})])
def test_candidates_batches_are_compiled_while_a_trial_trains(tuned: str, batches: set[int]) -> None:
    config = small(
        "parallel.prewarm=true", f"hpo.enabled={tuned}", "hpo.batches=[16,64]", "search.morphs=['kernel']"
    )
    replica = fake_trainer(fake_context(config=config), resources=one_device())
    warm = Prewarm(replica)
    assert {batch for _, batch in warm.left} == batches and warm.left[0][1] == 32

    # Not before a trial trains, and one at a time.
    count = len(warm.left)
    warm.advance()
    assert len(warm.left) == count and not replica.worker.busy
    replica.training = True
    limit = time.monotonic() + 60
    while len(warm.left) > count - 2 and time.monotonic() < limit:
        warm.advance()
        time.sleep(0.001)
    assert len(warm.left) == count - 2
    replica.worker.close()


def test_a_convolution_that_fails_ends_its_batch_size_alone(capfd: pytest.CaptureFixture[str]) -> None:
    config = small("parallel.prewarm=true", "hpo.batches=[16,64]", "search.morphs=['kernel']")
    noting = Noting("prepare")
    context = fake_context(config=config, rank=3)
    replica = fake_trainer(context, resources=one_device(), training=True, worker=noting)
    warm = Prewarm(replica)

    # A negative number of filters fails; after it come one more of its batch, and two of others.
    good = Convolution(8, 2, 2, 3, 1)
    warm.left = [(Convolution(8, 2, -2, 3, 1), 32), (good, 16), (good, 32), (good, 64)]
    limit = time.monotonic() + 60
    while (warm.left or replica.worker.busy) and time.monotonic() < limit:
        warm.advance()
        time.sleep(0.001)
    assert [work.args[:2] for work in noting.submitted] == [
        (Convolution(8, 2, -2, 3, 1), 32),
        (good, 16),
        (good, 64),
    ]
    errors = [line for line in capfd.readouterr().err.splitlines() if "prewarm" in line]
    assert len(errors) == 1 and "rank 3 on here: parallel.prewarm leaves out batches of 32: " in errors[0]
    replica.worker.close()
