# SPDX-License-Identifier: Apache-2.0
"""Trials that would not fit into a device's memory run in parts of their batch, or fail alone."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

from aiperf_mpi.config import config
from aiperf_mpi.network.architecture import Architecture
from aiperf_mpi.training.steps.compile import compile_steps
from aiperf_mpi.training.steps.memory import needed_bytes
from aiperf_mpi.training.steps.step import StepSettings
from tests.helpers.end_to_end import runs

pytestmark = pytest.mark.mpi


@pytest.mark.full
@pytest.mark.timeout(700)
def test_a_trial_that_would_not_fit_accumulates(tmp_path: Path) -> None:
    """With three quarters of what the initial network needs whole, it trains in parts: the same batch, all
    credited."""
    base = config.load("demo", sets=runs.TINY).base
    needed = needed_bytes(compile_steps(Architecture(base), StepSettings(32), jax.devices()[:1]).train)
    limit = needed.fixed + needed.temporary * 3 // 4
    ended = runs.run_until(
        lambda run: len(runs.ended(run)) >= 1,
        4,
        tmp_path / "run",
        (f"parallel.memory_limit={limit}", "search.max_morphs=1"),
        timeout=500,
    )
    assert ended.code == 4 and ended.lines["status"] == "VALID", ended.text()
    trials = ended.table("trials")
    first = {
        name: trials[name][0] for name in ("micro_batch", "accumulation", "batch_per_device", "train_samples")
    }
    # 256 images in two epochs of eight steps.
    assert (
        first["accumulation"] > 1
        and first["micro_batch"] * first["accumulation"] == 32 == first["batch_per_device"]
    )
    assert first["train_samples"] == 512 and trials["ops_credited"][0] == trials["ops"][0] != "0"


@pytest.mark.full
@pytest.mark.timeout(700)
def test_what_never_fits_fails_alone_and_the_replica_goes_on(tmp_path: Path) -> None:
    ended = runs.run_until(
        lambda run: np.count_nonzero(run.trials["cause"] != b"") >= 2,
        4,
        tmp_path / "run",
        ("parallel.memory_limit=1000",),
        timeout=500,
    )
    assert ended.code == 4, ended.text()
    trials = ended.table("trials")
    failed = trials["status"] == "failed"
    assert np.count_nonzero(failed) >= 2 and not trials["train_samples"].any()
    assert all("TooLarge: it does not fit on a device" in cause for cause in trials["cause"][failed])
    assert len(set(trials["round"][failed].tolist())) == np.count_nonzero(failed)
