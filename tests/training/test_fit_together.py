# SPDX-License-Identifier: Apache-2.0
"""A training on one of several processes of a replica: before every step they agree, and leave together."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import threading

import pytest

from aiperf_mpi.training.faults import TrainingFault
from aiperf_mpi.training.lockstep import BROKEN, GO, LATE, STOP, FailedElsewhere, Stranded
from aiperf_mpi.training.pipeline import Diverged
from aiperf_mpi.training.steps.compile import Compiled
from tests.helpers.training.cases import compiled_tiny
from tests.helpers.training.trainings import rows_until, train_images, training


@pytest.fixture(scope="module")
def tiny() -> Compiled:
    return compiled_tiny()


class Others:
    """The other processes: they agree with this one except for their `answer` to its agreement `number`,
    counted from 1."""

    def __init__(self, number: int = 0, answer: int = GO) -> None:
        self.values: list[int] = []
        self._number, self._answer = number, answer

    def agree(self, value: int) -> int:
        self.values.append(value)
        return max(value, self._answer) if len(self.values) == self._number else value


def test_processes_agree_before_every_step_and_after_the_last(tiny):
    others = Others()
    rows = list(training(tiny, agree=others.agree))
    # Three epochs of 10 steps and 4 batches of validation, and the end of each of both.
    assert len(rows) == 3 and others.values == [GO] * 3 * (10 + 1 + 4 + 1)


def test_a_stop_of_another_process_keeps_what_was_dispatched(tiny):
    others = Others(5, STOP)
    run = training(tiny, agree=others.agree)
    (row,) = run
    # They agree once more after the steps under way, which may fail or complete too late.
    assert run.end == "stopped" and row.steps == 4 and others.values == [GO] * 5 + [STOP]


def test_divergence_after_a_stop_is_reported(tiny):
    # The parameters are NaN after step 2, so the loss is in step 3, the last one under way when all are to
    # stop. It is under way still if the next batch is there, as it is when the loader is asked for the one
    # after it.
    others, ahead, steps = Others(5, STOP), threading.Event(), itertools.count()

    def loader(epoch: int):
        for number, batch in enumerate(train_images(epoch)):
            ahead.set() if number == 5 else None
            yield batch

    def train(*arguments):
        assert next(steps) < 3 or ahead.wait(30)
        return tiny.train(*arguments)

    changed = dataclasses.replace(tiny, train=train)
    run = training(changed, train_batches=loader, agree=others.agree, fault=TrainingFault(nan_at=(0, 2)))
    rows_until(run, Diverged, "nan in step 3")
    assert others.values == [GO] * 5 + [BROKEN]


@pytest.mark.parametrize("number", [5, 11, 13, 16])
def test_another_processs_failure_ends_the_training_at_the_same_step(tiny, number):
    # Before a step, after the training, before a batch of the validation, and after it.
    others = Others(number, BROKEN)
    rows_until(training(tiny, agree=others.agree), FailedElsewhere, "another process")
    assert others.values == [GO] * number


def test_a_failing_process_signals_it_once_before_the_step(tiny):
    others = Others()
    rows = rows_until(
        training(tiny, agree=others.agree, fault=TrainingFault(raise_at=(0, 3))),
        RuntimeError,
        "injected fault",
    )
    assert others.values == [GO] * 3 + [BROKEN] and [row.partial for row in rows] == [True]


def test_a_process_out_of_time_says_so_once(tiny):
    others, late = Others(), threading.Event()

    def train(*arguments):
        late.set() if len(others.values) == 4 else None
        return tiny.train(*arguments)

    changed = dataclasses.replace(tiny, train=train)
    run = training(changed, agree=others.agree, clock=lambda: float(late.is_set()), deadline=0.5)
    assert (
        [row.partial for row in run] == [True]
        and run.end == "deadline"
        and others.values == [GO] * 4 + [LATE]
    )


def test_a_step_that_fails_after_the_agreement_ends_the_run(tiny):
    def train(*arguments):
        raise ValueError("a device is gone")

    others = Others()
    changed = dataclasses.replace(tiny, train=train)
    rows_until(
        training(changed, agree=others.agree), Stranded, "step 0 failed on one process .* a device is gone"
    )
    assert others.values == [GO]


def test_a_step_that_fails_while_it_runs_cannot_be_survived(tiny):
    # A deleted result raises at the wait for it, as the result of a step that fails on the device does.
    steps = itertools.count()

    def train(*arguments):
        state, metrics = tiny.train(*arguments)
        if next(steps) == 3:
            metrics.loss.delete()
        return state, metrics

    others, changed = Others(), dataclasses.replace(tiny, train=train)
    (row,) = rows_until(training(changed, agree=others.agree), Stranded, "a step under way failed .* deleted")
    assert row.steps == 3 and BROKEN not in others.values
    steps = itertools.count()
    rows_until(training(changed), RuntimeError, "^Array has been deleted")


def test_an_average_that_fails_cannot_be_survived(tiny):
    def average(statistics):
        raise ValueError("a device is gone")

    others, changed = Others(), dataclasses.replace(tiny, average=average)
    rows_until(
        training(changed, agree=others.agree), Stranded, "the average of epoch 0 failed .* a device is gone"
    )
    assert others.values == [GO] * 11


def test_weights_not_fetched_on_one_process_fail_all(tiny):
    # Two processes, as threads, in the last epoch: neither may leave while the other waits for it.
    barrier, values, raised = threading.Barrier(2, timeout=30), [0, 0], [None, None]

    def agree(me: int, value: int) -> int:
        values[me] = value
        barrier.wait()
        highest = max(values)
        barrier.wait()
        return highest

    class Full(Compiled):
        def variables(self, state):
            raise MemoryError("no host memory")

    full = Full(**{field.name: getattr(tiny, field.name) for field in dataclasses.fields(tiny)})
    runs = [
        training(steps, epochs=1, agree=functools.partial(agree, me)) for me, steps in enumerate((tiny, full))
    ]

    def process(me: int) -> None:
        try:
            list(runs[me])
        except Exception as error:
            raised[me] = type(error)

    threads = [threading.Thread(target=process, args=(me,)) for me in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert raised == [FailedElsewhere, MemoryError]
    assert [run.best_variables for run in runs] == [None, None] and [run.end for run in runs] == ["", ""]
