# SPDX-License-Identifier: Apache-2.0
"""How a trial ends on its trainer: what is recorded of it, and whose weights are kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from aiperf_mpi.parallel.best import Best
from aiperf_mpi.parallel.closing import Closing
from aiperf_mpi.parallel.preparation import Preparation
from aiperf_mpi.parallel.team import Team
from aiperf_mpi.parallel.trainer import run_trial
from aiperf_mpi.parallel.weights import Shelf
from aiperf_mpi.search.architecture import resnet50
from aiperf_mpi.search.record import DONE, FAILED, Candidate
from aiperf_mpi.system.phases import PhaseTimer
from aiperf_mpi.training.fault import Fault
from aiperf_mpi.training.fit import FitSettings, Training
from tests.parallel.past import small
from tests.training.cases import TINY, batches, compiled_tiny, random_batch, started

COMPILED = compiled_tiny()
IMAGES, LABELS = (x[0] for x in random_batch(TINY, 1, 12))


class Following(Team):
    """The second trainer of a replica, alone here."""

    leads = False  # type: ignore[assignment]


def trained(folder: Path, fault: Fault | None, team: Team) -> tuple[Best, list[Any]]:
    """The replica's best and what was recorded, behind a trial of two epochs that validates after each."""
    config = small()
    config = replace(config, run=replace(config.run, output=str(folder)))
    (folder / "checkpoints").mkdir()
    outcomes: list[Any] = []
    windows = SimpleNamespace(
        messages=SimpleNamespace(send=lambda kind, row: None, stop_requested=lambda: None),
        history=SimpleNamespace(append=outcomes.append),
    )
    timer = PhaseTimer()
    context: Any = SimpleNamespace(
        config=config, windows=windows, timer=timer, now=lambda: 1.0, over=lambda: False,
        pause=lambda seconds, phase: None, ranks=SimpleNamespace(rank=1, host="here", leads=team.leads, replica=0),
    )  # fmt: skip
    best = Best(Shelf(1, 0))
    closing = Closing(context, best)
    training = Training(
        COMPILED, started(COMPILED), lambda epoch: batches(IMAGES, LABELS, 1, 4), lambda: batches(IMAGES, LABELS, 1, 4),
        FitSettings(2, 5, lambda epoch: 0.01), timer=timer, poll=lambda: False, fault=fault,
    )  # fmt: skip
    replica: Any = SimpleNamespace(context=context, team=team, best=best, training=False, poll=lambda: False)
    record: Any = {"trial": 0}
    preparation = Preparation(replica, record)
    preparation.done, preparation.training, preparation.compiled = True, training, COMPILED
    trainer: Any = SimpleNamespace(replica=replica, closing=closing)
    candidate = Candidate.new(resnet50(TINY), (), parent_id=-1, replica=0, generator=0, round=1, batch_per_device=4,
                              devices=1, seed=0)  # fmt: skip
    run_trial(trainer, preparation, replace(candidate, trial_id=0))
    while closing.busy:
        closing.advance()
    closing.close()
    return best, outcomes


@pytest.mark.parametrize("team", [Team(None), Following(None)], ids=["leads", "follows"])
def test_weights_of_a_trial_that_fails_are_nobodys_best(tmp_path: Path, team: Team) -> None:
    (tmp_path / "done").mkdir()
    (tmp_path / "failed").mkdir()
    best, outcomes = trained(tmp_path / "done", None, team)
    assert best.trial_id == 0 and np.isfinite(best.error) and (best.path is not None) == team.leads
    assert [int(row["status"]) for row in outcomes] == [DONE] * team.leads

    # It has validated once, with an error lower than infinity, and raises in its second epoch.
    best, outcomes = trained(tmp_path / "failed", Fault(raise_at=(1, 1)), team)
    assert best.trial_id == -1 and best.error == np.inf and best.path is None
    assert [int(row["status"]) for row in outcomes] == [FAILED] * team.leads
    assert [path for path in (tmp_path / "failed").rglob("*") if path.is_file()] == []
