# SPDX-License-Identifier: Apache-2.0
"""Convolutions that a replica's thread compiles while it has nothing else to do."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import jax
import pytest

from aiperf_mpi.parallel.prewarm import Prewarm
from aiperf_mpi.parallel.worker import Worker
from tests.parallel.past import small


@pytest.mark.parametrize(("tuned", "batches"), [("true", {32, 16, 64}), ("false", {32})])
def test_candidates_batches_are_compiled_while_a_trial_trains(tuned: str, batches: set[int]) -> None:
    config = small("parallel.prewarm=true", f"hpo.enabled={tuned}", "hpo.batches=[16,64]", "search.morphs=['kernel']")
    workshop = SimpleNamespace(devices=tuple(jax.devices()[:1]), mine=slice(0, 1))
    replica: Any = SimpleNamespace(context=SimpleNamespace(config=config), workshop=workshop, training=False,
                                   worker=Worker("prepare"))  # fmt: skip
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
