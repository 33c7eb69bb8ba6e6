# SPDX-License-Identifier: Apache-2.0
"""The work between a trainer's steps: its thread, and the errors of background work."""

from __future__ import annotations

import gc
import sys
import threading
import time
import weakref

import pytest

from aiperf_mpi.parallel.replica.errors import GenerationError
from aiperf_mpi.parallel.trainer.worker import SWITCH_SECONDS, Worker, take_turns
from tests.helpers.parallel.contexts import fake_context
from tests.helpers.parallel.trainers import fake_trainer


def test_a_closed_worker_is_busy_while_work_runs() -> None:
    worker, begun, gate = Worker("test"), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        gate.wait(30)

    running, waiting = worker.submit(work), worker.submit(lambda: None)
    assert begun.wait(30)
    worker.close()
    assert waiting.cancelled() and not running.done() and worker.busy
    gate.set()
    running.result(30)
    assert not worker.busy


def test_a_worker_keeps_no_result() -> None:
    class Result:
        pass

    worker = Worker("test")
    future = worker.submit(Result)
    there = weakref.ref(future.result(30))
    assert not worker.busy
    del future
    limit = time.monotonic() + 10
    while there() is not None and time.monotonic() < limit:
        # The thread itself drops the result a moment after it is done.
        gc.collect()
        time.sleep(0.001)
    assert there() is None
    worker.close()


def test_no_worker_sets_the_interval_back_for_another() -> None:
    usual = sys.getswitchinterval()
    try:
        take_turns()
        first, second = Worker("a"), Worker("b")
        seen = [worker.submit(sys.getswitchinterval).result(30) for worker in (first, second, first)]
        assert [*seen, sys.getswitchinterval()] == pytest.approx([SWITCH_SECONDS] * 4)
    finally:
        sys.setswitchinterval(usual)
    first.close()
    second.close()


class Broken:
    """Work between steps that raises."""

    def advance(self) -> None:
        raise KeyError("oops")


def test_an_error_between_steps_names_its_work() -> None:
    replica = fake_trainer(fake_context(), background=[Broken()])
    with pytest.raises(GenerationError, match="^Broken between steps: KeyError: 'oops'"):
        replica.poll()
    replica.worker.close()
