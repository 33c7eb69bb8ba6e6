# SPDX-License-Identifier: Apache-2.0
"""Preparations during a trial, which may leave too little memory for them."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from aiperf_mpi.data.catalogue import open_dataset
from aiperf_mpi.network.architecture import Architecture
from aiperf_mpi.parallel.replica.agreements import Agreements, PendingAgreement
from aiperf_mpi.parallel.replica.weights import StartWeights, start_weights
from aiperf_mpi.parallel.shared.clock import CoreClock
from aiperf_mpi.parallel.trainer import building
from aiperf_mpi.parallel.trainer import preparation as module
from aiperf_mpi.parallel.trainer.lookahead import Lookahead
from aiperf_mpi.parallel.trainer.preparation import Preparation
from aiperf_mpi.parallel.trainer.prewarm import Prewarm
from aiperf_mpi.training.lockstep import AGAIN, BROKEN, GO, FailedElsewhere, Stuck
from aiperf_mpi.training.steps.compile import Compiled, compile_steps
from aiperf_mpi.training.steps.convolutions import Convolution
from aiperf_mpi.training.steps.memory import TooLarge
from aiperf_mpi.trials.candidate import Candidate
from tests.helpers.parallel.contexts import fake_context
from tests.helpers.parallel.past import small
from tests.helpers.parallel.rows import Noting
from tests.helpers.parallel.trainers import fake_trainer, one_device

CONFIG = small(
    "data.train_images=64",
    "data.val_images=16",
    "data.image_size=8",
    "model.blocks=[1]",
    "model.width=2",
    "train.batch_per_device=8",
    "train.precision='float32'",
    "hpo.enabled=false",
)

CANDIDATE = replace(
    Candidate.new(
        Architecture(CONFIG.base),
        (),
        parent_id=0,
        replica=0,
        generator=0,
        round=2,
        batch_per_device=8,
        devices=1,
        seed=1,
    ),
    trial_id=5,
)


class Allocator:
    """A compiler of steps that lacks memory while a trial is `resident`, or with fewer parts than `least`."""

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
    monkeypatch.setattr(module, "rebuild", lambda state, record: (CANDIDATE, ""))
    return made


@pytest.fixture
def replica() -> Iterator[Any]:
    config = replace(CONFIG, run=replace(CONFIG.run, time_limit=1e9))
    context = fake_context(config=config, clock=CoreClock(lambda: 0.0, 0.0))
    made = fake_trainer(context, resources=one_device(open_dataset(CONFIG)))
    yield made
    made.worker.close()


def advance(preparation: Preparation, phase: str = "") -> None:
    """Advance until it is done, or waits in this phase."""
    limit = time.monotonic() + 100
    while not preparation.advance() and preparation.phase != phase:
        assert time.monotonic() < limit, preparation.phase
        time.sleep(0.001)


def prepared(replica: Any) -> Preparation:
    taken: Any = SimpleNamespace(record=None)
    return Preparation(replica, taken)


def test_a_lack_of_memory_during_a_trial_prepares_again_later(allocator: Allocator, replica: Any) -> None:
    preparation = prepared(replica)
    allocator.resident = preparation.during_trial = True
    advance(preparation, "idle")
    assert preparation.checked and not preparation.done and preparation.failure is None
    assert allocator.tried == [(True, 1)] and preparation.compiled is None is preparation.training

    # At its turn it has the same batch in one part, as without the other trial.
    allocator.resident = preparation.during_trial = False
    advance(preparation)
    assert (
        preparation.failure is None and preparation.compiled is not None and preparation.training is not None
    )
    assert preparation.compiled.settings.accumulate == 1 and allocator.tried == [(True, 1), (False, 1)]
    preparation.drop()


@pytest.mark.full
def test_a_lack_of_memory_without_a_trial_trains_in_parts(allocator: Allocator, replica: Any) -> None:
    allocator.least, allocator.resident = 4, True
    preparation = prepared(replica)
    preparation.during_trial = True
    advance(preparation, "idle")
    allocator.resident = preparation.during_trial = False
    advance(preparation)
    assert preparation.failure is None and preparation.compiled is not None
    assert preparation.compiled.settings.accumulate == 4
    assert allocator.tried == [(True, 1), (False, 1), (False, 2), (False, 4)]
    preparation.drop()


@pytest.mark.parametrize("error", [ValueError("wrong"), TooLarge("foreseen")])
def test_another_error_or_a_step_too_large_fails_at_once(
    error: Exception, allocator: Allocator, replica: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compiled(*_: Any, **__: Any) -> Compiled:
        raise error

    monkeypatch.setattr(module, "compile_steps", compiled)
    preparation = prepared(replica)
    preparation.during_trial = True
    advance(preparation)
    assert preparation.failure is error and preparation.training is None


def test_a_compilation_that_does_not_end_fails_its_trial(
    allocator: Allocator, replica: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    released, config = threading.Event(), replica.context.config
    # A preparation has six times as long as a step: 0.3 s.
    config = replace(config, run=replace(config.run, stuck_seconds=0.05))
    replica.context = replace(replica.context, config=config)
    monkeypatch.setattr(module, "compile_steps", lambda *_, **__: released.wait(100))
    preparation = prepared(replica)
    preparation.during_trial = True
    advance(preparation)
    assert isinstance(preparation.failure, Stuck) and replica.worker.busy
    assert str(preparation.failure).startswith("stuck: the preparation's compile has not ended for ")
    released.set()


def test_no_convolution_comes_between_the_parts_of_a_preparation(allocator: Allocator, replica: Any) -> None:
    taken, waiting = SimpleNamespace(record=None), list[Any]()
    replica.queue = SimpleNamespace(take=lambda: waiting.pop() if waiting else None)
    replica.worker.close()
    replica.worker, replica.training = Noting("prepare"), True
    ahead, warm = Lookahead(replica, True), Prewarm(replica)
    warm.left = [(Convolution(8, 2, 2, 3, 1), batch) for batch in range(1, 100)]
    limit = time.monotonic() + 100

    # Between two polls for the candidate the thread may be idle after a part, but gets no other work.
    waiting.append(taken)
    while "compile_convolution" not in (names := [work.func.__name__ for work in replica.worker.submitted]):
        assert time.monotonic() < limit, names
        ahead.advance()
        warm.advance()
        time.sleep(0.001)
    assert names == ["start_weights", "compile_fitting", "account", "build_training", "compile_convolution"]

    # It is ready and waits for its turn; meanwhile one convolution follows the other.
    while len(replica.worker.submitted) < 7:
        assert time.monotonic() < limit
        ahead.advance()
        warm.advance()
        time.sleep(0.001)
    preparation = ahead.next()
    assert preparation is not None and preparation.done and len(warm.left) == 96
    preparation.drop()


class Remains:
    """The objects that a preparation has made, and whether they are still alive, with the cyclic collector
    off."""

    def __init__(self, compiled: Compiled, monkeypatch: pytest.MonkeyPatch) -> None:
        self._compiled, self._build_training = compiled, building.build_training
        self.resident, self.fails = False, list[Exception | None]()
        self._before, self._made = list[jax.Array](), list[weakref.ref[Any]]()
        self.seen: list[tuple[int, list[Any]]] = []
        monkeypatch.setattr(module, "rebuild", lambda state, record: (CANDIDATE, ""))
        monkeypatch.setattr(module, "build_training", self.build_training)
        monkeypatch.setattr(module, "start_weights", self.start_weights)
        monkeypatch.setattr(module, "compile_steps", self.compile_steps)

    @contextmanager
    def watched(self) -> Iterator[None]:
        gc.collect()
        gc.disable()
        self._before = jax.live_arrays()
        try:
            yield
        finally:
            gc.enable()

    def left(self) -> list[Any]:
        """Return arrays on the devices, and weights, steps and trainings of earlier tries."""
        arrays = [a.shape for a in jax.live_arrays() if not any(a is other for other in self._before)]
        return arrays + [type(made()).__name__ for made in self._made if made() is not None]

    def wait(self, expected: list[Any]) -> None:
        """Wait until only this is left: threads drop references a moment after their work is done."""
        limit = time.monotonic() + 10
        while (left := self.left()) != expected:
            assert time.monotonic() < limit, left
            time.sleep(0.01)

    def start_weights(self, *arguments: Any) -> StartWeights:
        self.seen.append((len(self._made), self.left()))
        made = start_weights(*arguments)
        self._made.append(weakref.ref(made))
        return made

    def compile_steps(self, *_: Any, **__: Any) -> Compiled:
        # A copy, as compiling takes seconds.
        made = replace(self._compiled)
        self._made.append(weakref.ref(made))
        if self.resident:
            # XLA's own error: an array of a pebibyte.
            jax.block_until_ready(jax.numpy.zeros(1 << 50, np.uint8))
        return made

    def build_training(
        self, state: Any, candidate: Candidate, compiled: Compiled, weights: StartWeights
    ) -> Any:
        training = self._build_training(state, candidate, compiled, weights)
        self._made += [weakref.ref(compiled), weakref.ref(training)]
        assert jax.tree.leaves(training._state) and len(self.left()) > 3
        if (failure := self.fails.pop(0)) is not None:
            try:
                raise ValueError("an error during which another one is raised")
            except ValueError:
                raise failure  # noqa: B904
        return training


class Another(Agreements):
    """Agreements with another trainer of the replica, which posts these values."""

    def __init__(self, *values: int) -> None:
        super().__init__()
        self.values = list(values)

    def post(self, value: int, record: np.void | None = None) -> PendingAgreement:
        return super().post(max(value, self.values.pop(0)), record)


@pytest.fixture(scope="module")
def compiled() -> Compiled:
    settings = building.step_settings(CONFIG, CANDIDATE, open_dataset(CONFIG))
    return compile_steps(CANDIDATE.architecture, settings, jax.devices()[:1])


@pytest.mark.parametrize(
    ("where", "made"), [pytest.param("steps", 2, marks=pytest.mark.full), ("begin", 4), ("elsewhere", 4)]
)
def test_a_second_try_finds_nothing_left_of_the_first(
    where: str, made: int, compiled: Compiled, replica: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    remains = Remains(compiled, monkeypatch)
    remains.resident = where == "steps"
    remains.fails = [MemoryError("none"), None] if where == "begin" else [None, None]
    replica.agreements = Another(GO, GO, AGAIN if where == "elsewhere" else GO, GO, GO)
    preparation = prepared(replica)
    preparation.during_trial = True
    with remains.watched():
        advance(preparation, "idle")
        assert not preparation.done
        remains.wait([])
        remains.resident = preparation.during_trial = False
        advance(preparation)
    # Nothing was alive before the first try, and nothing of it before the second.
    assert remains.seen == [(0, []), (made, [])] and preparation.training is not None
    preparation.drop()


@pytest.mark.parametrize(
    ("own", "error"), [(True, MemoryError), pytest.param(False, FailedElsewhere, marks=pytest.mark.full)]
)
def test_a_failed_preparation_leaves_only_its_steps(
    own: bool, error: type[Exception], compiled: Compiled, replica: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    remains = Remains(compiled, monkeypatch)
    remains.fails = [MemoryError("none") if own else None]
    replica.agreements = Another(GO, GO, GO if own else BROKEN)
    preparation = prepared(replica)
    with remains.watched():
        advance(preparation)
        # The steps are there for the trial's row; they hold no arrays.
        remains.wait(["Compiled"])
    assert (
        isinstance(preparation.failure, error) and remains.seen == [(0, [])] and preparation.training is None
    )
