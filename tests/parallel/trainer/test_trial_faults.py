# SPDX-License-Identifier: Apache-2.0
"""Whatever goes wrong in a trial costs this trial alone: it fails with its cause, the next one is trained.

Lack of memory while a candidate is prepared, and compilations that fail, are in test_preparation.py; stuck
steps in test_retirement.py; a whole run with failing trials in tests/end_to_end/test_faults.py.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from aiperf_mpi.network.architecture import Architecture
from aiperf_mpi.parallel.replica.best import Best
from aiperf_mpi.parallel.replica.team import Team
from aiperf_mpi.parallel.replica.weights import KeptWeights, checkpoint_path, initial_weights
from aiperf_mpi.parallel.shared.messages import Kind
from aiperf_mpi.parallel.shared.queue import Taken
from aiperf_mpi.parallel.shared.slots import Slot
from aiperf_mpi.parallel.trainer.building import rebuild
from aiperf_mpi.parallel.trainer.lookahead import Lookahead
from aiperf_mpi.parallel.trainer.preparation import Preparation
from aiperf_mpi.parallel.trainer.recorder import TrialRecorder
from aiperf_mpi.parallel.trainer.trainer import run_trial
from aiperf_mpi.results.file.rows import DONE, FAILED, TRIAL_ROW
from aiperf_mpi.training.checkpoint import save_checkpoint
from aiperf_mpi.training.faults import TrainingFault
from aiperf_mpi.training.fit import FitSettings, Training
from aiperf_mpi.training.steps.compile import Compiled
from aiperf_mpi.trials.candidate import Candidate
from aiperf_mpi.trials.record import RecordError, seal
from aiperf_mpi.trials.view import ArchitectureCache
from tests.helpers.parallel.contexts import fake_context
from tests.helpers.parallel.resuming import child, prepare, settings, trainer_of
from tests.helpers.parallel.trainers import fake_trainer, tiny_candidate
from tests.helpers.training.cases import TINY, batches, compiled_tiny, random_batch, started
from tests.helpers.trials.twins import ArrayHistory

COMPILED = compiled_tiny()
IMAGES, LABELS = (x[0] for x in random_batch(TINY, 1, 12))


class OneTrainer:
    """A trainer whose trials are trained on a few images, with anything that goes wrong."""

    def __init__(self, folder: Path) -> None:
        config = settings(str(folder))
        self.history = ArrayHistory(16)
        self.context = fake_context(config=config, history=self.history)
        self.best = Best(KeptWeights(1))
        self.state = fake_trainer(self.context, team=Team(None), best=self.best)
        self.recorder = TrialRecorder(self.context, self.best)

    def train(self, trial_id: int, compiled: Compiled = COMPILED, **changes: Any) -> np.void:
        """Train a trial of two epochs of three steps, and return its row."""
        usual: dict[str, Any] = {
            "train_batches": lambda epoch: batches(IMAGES, LABELS, 1, 4),
            "val_batches": lambda: batches(IMAGES, LABELS, 1, 4),
        }
        training = Training(
            compiled,
            started(compiled),
            settings=FitSettings(2, 5, lambda epoch: 0.01),
            timer=self.context.timer,
            poll=self.state.poll,
            **(usual | changes),
        )
        taken: Any = SimpleNamespace(record=None)
        preparation = Preparation(self.state, taken)
        preparation.done, preparation.training, preparation.compiled = True, training, compiled
        preparation.candidate = tiny_candidate(trial_id, seed=trial_id)
        trainer: Any = SimpleNamespace(state=self.state, recorder=self.recorder)
        run_trial(trainer, preparation)
        while self.recorder.busy:
            self.recorder.advance()
        kind, row = self.context.windows.messages.rows[-1]  # type: ignore[attr-defined]
        assert kind is Kind.TRIAL and int(row["trial_id"]) == trial_id
        return np.frombuffer(row.tobytes(), TRIAL_ROW)[0]


def exhausted(*arguments: Any) -> Any:
    """Ask for a pebibyte: XLA's own error."""
    return jax.block_until_ready(jax.numpy.zeros(1 << 50, np.uint8))


def after(steps: int, usual: Callable[..., Any], instead: Callable[..., Any]) -> Callable[..., Any]:
    """Call one function so many times, and then another one."""
    calls = itertools.count()
    return lambda *arguments: (usual if next(calls) < steps else instead)(*arguments)


def no_kernel(*arguments: Any) -> Any:
    raise RuntimeError("INTERNAL: no kernel image is available for the device")


def cut_off(epoch: int) -> Any:
    """The images of an epoch; the second epoch's end is missing."""
    yield from itertools.islice(batches(IMAGES, LABELS, 1, 4), 3 if epoch == 0 else 1)
    if epoch:
        raise OSError(5, "Input/output error", "train-00012.h5")


@pytest.mark.parametrize(
    ("changes", "cause", "validated"),
    [
        (
            {"fault": TrainingFault(raise_at=(0, 2))},
            "RuntimeError: injected fault: epoch 0, step 2 raises",
            False,
        ),
        # A whole epoch and a step are done by then.
        (
            {"compiled": replace(COMPILED, train=after(4, COMPILED.train, no_kernel))},
            "RuntimeError: INTERNAL: no kernel image is available for the device",
            True,
        ),
        (
            {"compiled": replace(COMPILED, evaluate=after(4, COMPILED.evaluate, no_kernel))},
            "RuntimeError: INTERNAL: no kernel image",
            True,
        ),
        (
            {"compiled": replace(COMPILED, train=after(4, COMPILED.train, exhausted))},
            "JaxRuntimeError: RESOURCE_EXHAUSTED: ",
            True,
        ),
        (
            {"compiled": replace(COMPILED, evaluate=after(1, COMPILED.evaluate, exhausted))},
            "JaxRuntimeError: RESOURCE_EXHAUSTED: ",
            False,
        ),
        ({"fault": TrainingFault(nan_at=(1, 0))}, "Diverged: epoch 1, training: the loss is nan", True),
        ({"fault": TrainingFault(nan_at=(0, 2))}, "Diverged: epoch 0, validation: the loss is nan", False),
        ({"train_batches": cut_off}, "OSError: [Errno 5] Input/output error: 'train-00012.h5'", True),
    ],
    ids=[
        "step 3",
        "a step",
        "evaluation",
        "memory of a step",
        "memory of an evaluation",
        "nan",
        "nan at last",
        "data",
    ],
)
def test_a_fault_fails_its_trial_and_the_next_one_is_trained(
    changes: dict[str, Any], cause: str, validated: bool, tmp_path: Path
) -> None:
    one = OneTrainer(tmp_path)
    row = one.train(0, **changes)
    assert int(row["status"]) == FAILED and row["cause"].decode().startswith(cause[:100]), row["cause"]
    # What was complete by then is in its row; its weights are never the best.
    assert (one.best.trial_id, one.best.error) == (-1, math.inf)
    assert math.isfinite(row["best_error"]) == validated and int(row["epochs"]) >= 1
    assert (int(row["val_samples"]) >= 12) == validated
    one.history.refresh()
    outcome = one.history.record(len(one.history) - 1)
    assert int(outcome["status"]) == FAILED and outcome["cause"].decode().startswith(cause[:30])
    assert not one.state.retirement.why

    row = one.train(1)
    assert int(row["status"]) == DONE and one.best.trial_id == 1 and row["cause"] == b""
    one.recorder.close()


# -- before its first step -------------------------------------------------------------------------


def test_a_damaged_checkpoint_of_the_parent_fails_its_child(tmp_path: Path) -> None:
    config = settings(str(tmp_path), "model.initial_weight='inherit'")
    candidate, parent = child(config, 8), Architecture(config.base)
    candidate = replace(candidate, parent_id=3, from_checkpoint=True)
    path = checkpoint_path(config, 3)
    weights = initial_weights(config, parent, 1)
    save_checkpoint(path, 3, parent, weights)
    whole, kernel = path.read_bytes(), weights["params"]["dense"]["kernel"].tobytes()
    for data, problem in (
        (whole[: len(whole) // 2], "it is truncated"),
        (whole.replace(kernel, bytes(len(kernel))), "its weights have the digest"),
    ):
        path.write_bytes(data)
        history = ArrayHistory(4)
        history.append(candidate.to_record(0.0))
        history.refresh()
        state = trainer_of(config, history=history)
        preparation = prepare(state, candidate)
        assert isinstance(preparation.failure, OSError | ValueError) and problem in str(preparation.failure)
        # No other child of it is proposed: its weights are withdrawn.
        history.refresh()
        assert int(history.record(1)["trial"]) == 3
        state.worker.close()


def test_a_candidate_that_cannot_be_built_is_rejected(tmp_path: Path) -> None:
    config = settings(str(tmp_path))
    candidate, history = replace(child(config, 8), trial_id=1), ArrayHistory(4)
    root = Candidate.new(
        Architecture(config.base),
        (),
        parent_id=-1,
        replica=0,
        generator=0,
        round=1,
        batch_per_device=8,
        devices=1,
        seed=2021,
    )
    history.append(root.to_record(0.0))
    state = trainer_of(config, history=history)

    def told(record: np.void) -> str:
        record = record.copy()
        record["trial"] = 1
        found, problem = rebuild(state, seal(record))
        assert (found is None) == bool(problem)
        return problem

    assert told(candidate.to_record(1.0)) == ""
    counts = replace(candidate, train_ops=candidate.train_ops + 1)
    assert told(counts.to_record(1.0)).startswith("counts differ: ")
    assert "does not belong to its network and batch" in told(replace(candidate, key=5).to_record(1.0))
    unknown = told(replace(candidate, parent_id=2).to_record(1.0))
    assert unknown.startswith("it cannot be built: KeyError: "), unknown

    # A torn record of an ancestor in the history ends no run.
    history._storage.records[0]["seed"] ^= 1
    state.architectures = ArchitectureCache()
    assert "torn" in told(candidate.to_record(1.0))
    state.worker.close()


class TornQueue:
    """A queue whose first record is torn."""

    def __init__(self, record: np.void) -> None:
        self.records: list[np.void | None] = [None, record]

    def take(self) -> Taken | None:
        if not self.records:
            return None
        if (record := self.records.pop(0)) is None:
            raise RecordError("candidate queue: the record for ticket 7 is torn")
        return Taken(Slot(0, 0), record)


def test_a_torn_record_in_the_queue_is_dropped_and_the_next_one_taken(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = settings(str(tmp_path))
    queue: Any = TornQueue(child(config, 8).to_record(0.0))
    ahead = Lookahead(trainer_of(config, queue=queue), enabled=False)
    assert ahead._find() is None
    told = capfd.readouterr().err
    assert "a candidate of replica 0 is dropped: candidate queue: the record for ticket 7 is torn" in told
    assert ahead._find() is not None
