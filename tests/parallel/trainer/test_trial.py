# SPDX-License-Identifier: Apache-2.0
"""The rows that a trainer sends: each column comes from the field of its name."""

from __future__ import annotations

from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from aiperf_mpi.crosscheck.account import StepAccount
from aiperf_mpi.parallel.shared.context import Context
from aiperf_mpi.parallel.shared.messages import Kind
from aiperf_mpi.parallel.trainer.trial import Trial, record_end, send_epoch
from aiperf_mpi.results.file.rows import EPOCH_ROW
from aiperf_mpi.training.epoch import Sums, result_of
from aiperf_mpi.trials.budget import budget
from aiperf_mpi.trials.log import HistoryFull
from aiperf_mpi.trials.record import DONE
from tests.helpers.parallel.contexts import FakeMessages, fake_context
from tests.helpers.parallel.past import small
from tests.helpers.results.example_run import example_run

#: The fourth epoch of a trial: 22 steps of 64 images, and a validation with half of its answers right.
EPOCH = result_of(3, 0.05, (1.5, 2.5), Sums(22, 1408, 700, 2000.0, True), Sums(6, 360, 180, 500.0, True))


def context_of(append: Any = None) -> tuple[Context, list[Any]]:
    """Return a context whose history appends by `append`, and the rows that it sends, each with its kind."""
    messages = FakeMessages()
    history: Any = SimpleNamespace(append=append)
    return fake_context(config=small(), history=history, messages=messages), messages.rows


def trial_of_example(status: int) -> Trial:
    """A trial that has trained two epochs."""
    context, _ = context_of()
    trial = Trial(example_run().candidates[1], budget(1, context.config.train), 1.0, 4.0, status)
    trial.precision, trial.micro_batch, trial.accumulation = "float32", 16, 2
    trial.account = StepAccount(7, 8, 9)
    trial.add(EPOCH)
    trial.add(replace(EPOCH, val_error=0.25))
    return trial


def test_an_epochs_row_has_the_fields_of_its_result() -> None:
    context, rows = context_of()
    candidate = example_run().candidates[1]
    send_epoch(context, candidate, EPOCH)
    ((kind, row),) = rows
    assert kind == Kind.EPOCH and row["trial_id"] == candidate.trial_id
    for field in fields(EPOCH):
        assert row[field.name] == pytest.approx(float(getattr(EPOCH, field.name)), nan_ok=True), field.name
    assert {field.name for field in fields(EPOCH)} | {"trial_id"} == set(EPOCH_ROW.names or ())


def test_a_trials_row_has_its_sums_counts_and_budget() -> None:
    outcomes: list[np.void] = []
    context, rows = context_of(outcomes.append)
    trial = trial_of_example(DONE)
    record_end(context, trial)
    ((kind, row),) = rows
    assert kind == Kind.TRIAL and row["status"] == outcomes[0]["status"] == DONE
    assert (row["epochs"], row["train_samples"], row["val_samples"]) == (2, 2816, 720)
    assert (row["jaxpr_ops"], row["xla_ops"], row["xla_model_ops"]) == (7, 8, 9)
    assert (row["micro_batch"], row["accumulation"], row["precision"]) == (16, 2, b"float32")
    assert (row["epochs_max"], row["patience"]) == (trial.budget.epochs_max, trial.budget.patience)
    assert (row["lr"], row["best_error"], row["resumed"]) == (context.config.train.lr, 0.25, 0)
    assert np.isnan(row["t_first_step"]) and row["cause"] == b""


def test_a_full_history_is_the_cause_in_the_row() -> None:
    def full(outcome: np.void) -> None:
        raise HistoryFull

    context, rows = context_of(full)
    record_end(context, trial_of_example(DONE))
    assert rows[0][1]["cause"].decode().startswith("the history is full")


def test_an_unfinished_trial_leaves_no_outcome() -> None:
    def none(outcome: np.void) -> None:
        pytest.fail("an outcome was appended")

    context, rows = context_of(none)
    record_end(context, trial_of_example(0))
    assert rows[0][1]["status"] == 0
