# SPDX-License-Identifier: Apache-2.0
"""A candidate that is made ready beside a trial that trains, whose memory it may lack."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from aiperf_mpi.data.catalogue import open_dataset
from aiperf_mpi.parallel import preparation as module
from aiperf_mpi.parallel.ahead import Ahead
from aiperf_mpi.parallel.exchange import Exchange
from aiperf_mpi.parallel.preparation import Preparation
from aiperf_mpi.parallel.prewarm import Prewarm
from aiperf_mpi.parallel.team import Team
from aiperf_mpi.search.architecture import Architecture
from aiperf_mpi.search.record import Candidate
from aiperf_mpi.system.phases import PhaseTimer
from aiperf_mpi.training.compile import Compiled, compile_steps
from aiperf_mpi.training.memory import TooLarge
from aiperf_mpi.training.prewarm import Convolution
from tests.parallel.past import small
from tests.parallel.rows import Noting

CONFIG = small("data.train_images=64", "data.val_images=16", "data.image_size=8", "model.blocks=[1]", "model.width=2",
               "train.batch_per_device=8", "train.precision='float32'", "hpo.enabled=false")  # fmt: skip

CANDIDATE = replace(
    Candidate.new(Architecture(CONFIG.base), (), parent_id=0, replica=0, generator=0, round=2, batch_per_device=8,
                  devices=1, seed=1), trial_id=5,
)  # fmt: skip


class Allocator:
    """What the compiler of steps asks for memory: while a trial is `resident`, or with fewer parts than `least`, there
    is none."""

    def __init__(self) -> None:
        self.resident, self.least, self.tried = False, 1, list[tuple[bool, int]]()

    def compile_steps(self, architecture: Architecture, settings: Any, **arguments: Any) -> Compiled:
        self.tried.append((self.resident, settings.accumulate))
        if self.resident or settings.accumulate < self.least:
            # XLA's own error: an array of a pebibyte.
            jax.block_until_ready(jax.numpy.zeros(1 << 50, np.uint8))
        return compile_steps(architecture, settings, **arguments)


@pytest.fixture
def allocator(monkeypatch: pytest.MonkeyPatch) -> Allocator:
    made = Allocator()
    monkeypatch.setattr(module, "compile_steps", made.compile_steps)
    monkeypatch.setattr(module, "rebuild", lambda replica, record: (CANDIDATE, ""))
    return made


@pytest.fixture
def replica() -> Iterator[Any]:
    context: Any = SimpleNamespace(config=CONFIG, timer=PhaseTimer(), limit=1e9, clock=SimpleNamespace(now=lambda: 0.0))
    workshop = SimpleNamespace(devices=tuple(jax.devices()[:1]), memory=None, mine=slice(0, 1),
                               dataset=open_dataset(CONFIG))  # fmt: skip
    made = SimpleNamespace(context=context, workshop=workshop, worker=Noting("prepare"), exchange=Exchange(),
                           team=Team(None), poll=lambda: False, training=False, preparing=False)  # fmt: skip
    yield made
    made.worker.close()


def advance(preparation: Preparation, phase: str = "") -> None:
    """Until it is done, or waits for this."""
    limit = time.monotonic() + 100
    while not preparation.advance() and preparation.phase != phase:
        assert time.monotonic() < limit, preparation.phase
        time.sleep(0.001)


def prepared(replica: Any) -> Preparation:
    taken: Any = SimpleNamespace(record=None)
    return Preparation(replica, taken)


def test_what_lacks_memory_beside_a_trial_is_made_again_whole_when_that_has_ended(
    allocator: Allocator, replica: Any
) -> None:
    preparation = prepared(replica)
    allocator.resident = preparation.beside = True
    advance(preparation, "idle")
    assert preparation.checked and not preparation.done and preparation.failure is None
    assert allocator.tried == [(True, 1)] and preparation.compiled is None is preparation.training

    # Its turn comes: the same batch in one part, as without the other trial.
    allocator.resident = preparation.beside = False
    advance(preparation)
    assert preparation.failure is None and preparation.compiled is not None and preparation.training is not None
    assert preparation.compiled.settings.accumulate == 1 and allocator.tried == [(True, 1), (False, 1)]
    preparation.drop()


@pytest.mark.full
def test_what_lacks_memory_alone_trains_in_parts(allocator: Allocator, replica: Any) -> None:
    allocator.least, allocator.resident = 4, True
    preparation = prepared(replica)
    preparation.beside = True
    advance(preparation, "idle")
    allocator.resident = preparation.beside = False
    advance(preparation)
    assert preparation.failure is None and preparation.compiled is not None
    assert preparation.compiled.settings.accumulate == 4
    assert allocator.tried == [(True, 1), (False, 1), (False, 2), (False, 4)]
    preparation.drop()


@pytest.mark.parametrize("error", [ValueError("wrong"), TooLarge("foreseen")])
def test_what_fails_for_another_reason_or_was_foreseen_fails_at_once(
    error: Exception, allocator: Allocator, replica: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compiled(*_: Any, **__: Any) -> Compiled:
        raise error

    monkeypatch.setattr(module, "compile_steps", compiled)
    preparation = prepared(replica)
    preparation.beside = True
    advance(preparation)
    assert preparation.failure is error and preparation.training is None


def test_no_convolution_comes_between_the_parts_of_a_preparation(allocator: Allocator, replica: Any) -> None:
    taken, waiting = SimpleNamespace(record=None), list[Any]()
    replica.queue = SimpleNamespace(take=lambda: waiting.pop() if waiting else None)
    replica.training = True
    ahead, warm = Ahead(replica, True), Prewarm(replica)
    warm.left = [(Convolution(8, 2, 2, 3, 1), batch) for batch in range(1, 100)]
    limit = time.monotonic() + 100

    # Between two looks for the candidate its thread is idle when a part has ended, and gets nothing else to do.
    waiting.append(taken)
    while "compile_convolution" not in (names := [work.func.__name__ for work in replica.worker.submitted]):
        assert time.monotonic() < limit, names
        ahead.advance()
        warm.advance()
        time.sleep(0.001)
    assert names == ["begin_with", "compile_fitting", "account", "begin", "compile_convolution"]

    # It waits ready for its turn, and meanwhile one convolution follows the other.
    while len(replica.worker.submitted) < 7:
        assert time.monotonic() < limit
        ahead.advance()
        warm.advance()
        time.sleep(0.001)
    preparation = ahead.next()
    assert preparation is not None and preparation.done and len(warm.left) == 96
    preparation.drop()
