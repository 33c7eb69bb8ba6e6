# SPDX-License-Identifier: Apache-2.0
"""Start weights of trials, and weights that a replica keeps; tests/end_to_end shows both under MPI."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import jax
import numpy as np
import pytest

from aiperf_mpi.config import Config, load
from aiperf_mpi.data.catalogue import open_dataset
from aiperf_mpi.network.architecture import Architecture, Morph
from aiperf_mpi.parallel.replica import weights
from aiperf_mpi.parallel.replica.weights import (
    KeptWeights,
    checkpoint_path,
    load_parent,
    missing_weights,
    start_weights,
)
from aiperf_mpi.training.checkpoint import digest, load_checkpoint, save_checkpoint
from aiperf_mpi.training.model.initial import Variables
from aiperf_mpi.trials.candidate import Candidate
from tests.helpers.end_to_end.runs import TINY

OWN = (Morph("wider", 2), Morph("deeper", 4, 0, 5), Morph("skip", 1, 5))


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return load(sets=(*TINY, f"run.output='{tmp_path}'", "model.initial_weight='inherit'"))


def candidate(config: Config, *own: Morph, of: Candidate | None = None, **changes: object) -> Candidate:
    """A child of another candidate, or of none."""
    architecture = (of.architecture if of else Architecture(config.base)).apply(*own)
    made = Candidate.new(
        architecture,
        own,
        parent_id=of.trial_id if of else -1,
        replica=0,
        generator=0,
        round=1,
        batch_per_device=32,
        devices=1,
        seed=5,
    )
    return dataclasses.replace(made, **changes)


def same(one: Variables, other: Variables) -> bool:
    return digest(one) == digest(other)


@pytest.fixture
def root(config: Config) -> Candidate:
    return candidate(config, trial_id=0)


@pytest.fixture
def parent(config: Config, root: Candidate) -> Candidate:
    """A child of trial 0 whose weights are kept."""
    made = candidate(config, Morph("deeper", 1, 0, 3), of=root, trial_id=3)
    rng = np.random.default_rng(0)
    trained = weights.initial_weights(config, made.architecture, 1)
    trained = jax.tree.map(lambda x: x + rng.uniform(0.1, 0.5, x.shape).astype(np.float32), trained)
    save_checkpoint(checkpoint_path(config, 3), 3, made.architecture, trained)
    return made


# -- what a trial starts from ----------------------------------------------------------------------


def test_a_child_of_kept_weights(config: Config, parent: Candidate) -> None:
    child = candidate(config, *OWN, of=parent, trial_id=7, from_checkpoint=True)
    assert missing_weights(config, child) == ""
    loaded = load_parent(config, child, initial_seed=9)
    assert same(loaded, load_checkpoint(checkpoint_path(config, 3)).variables)
    beginning = start_weights(config, open_dataset(config), child, loaded)
    assert 0 < beginning.difference < 1e-5
    assert same(beginning.variables, start_weights(config, open_dataset(config), child, loaded).variables)


def test_a_child_of_the_initial_weights(config: Config, root: Candidate) -> None:
    """The initial weights are those that trial 0 itself starts from."""
    child = candidate(config, *OWN, of=root, trial_id=7)
    assert missing_weights(config, child) == ""
    loaded = load_parent(config, child, initial_seed=root.seed)
    beginning = start_weights(config, open_dataset(config), root, None)
    assert same(loaded, beginning.variables) and math.isnan(beginning.difference)
    assert start_weights(config, open_dataset(config), child, loaded).difference < 1e-5


def test_weights_that_compute_another_function_show(
    config: Config, parent: Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = candidate(config, *OWN, of=parent, trial_id=7, from_checkpoint=True)
    fresh = weights.initial_weights(config, child.architecture, child.seed)
    monkeypatch.setattr(weights, "inherited_variables", lambda *_: fresh)
    beginning = start_weights(config, open_dataset(config), child, load_parent(config, child, 9))
    assert beginning.difference > 0.01


def test_weights_that_cannot_be_inherited_give_a_reason(
    config: Config, root: Candidate, parent: Candidate
) -> None:
    assert missing_weights(config, root) == ""
    orphan = candidate(config, *OWN, of=parent, trial_id=7)
    assert missing_weights(config, orphan) == "no weights of its parent 3 are kept"
    child = dataclasses.replace(orphan, from_checkpoint=True)
    checkpoint_path(config, 3).unlink()
    assert missing_weights(config, child) == "the weights of its parent 3 are gone"
    with pytest.raises(FileNotFoundError):
        load_parent(config, child, 9)

    # With He-normal weights nothing is inherited.
    he = dataclasses.replace(config, model=dataclasses.replace(config.model, initial_weight="he"))
    assert missing_weights(he, child) == ""


def test_a_file_of_another_trial_is_refused(config: Config, root: Candidate, parent: Candidate) -> None:
    child = candidate(config, *OWN, of=parent, trial_id=7, from_checkpoint=True)
    path = checkpoint_path(config, 3)
    initial = weights.initial_weights(config, root.architecture, 1)
    save_checkpoint(path, 3, root.architecture, initial)
    with pytest.raises(ValueError, match=r"3\.h5: holds trial 3 and another network"):
        load_parent(config, child, 9)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(OSError):
        load_parent(config, child, 9)


# -- weights that are kept ----------------------------------------------------------------------------


def put(kept_weights: KeptWeights, folder: Path, trial_id: int, error: float, config: Config) -> int | None:
    """Put weights of this error; return the trial that they displace."""
    assert kept_weights.takes(error)
    architecture = Architecture(config.base)
    variables = weights.initial_weights(config, architecture, trial_id)
    out = kept_weights.put(folder / f"{trial_id}.h5", trial_id, error, architecture, variables)
    return out.trial_id if out else None


def files(folder: Path) -> list[int]:
    return sorted(int(path.stem) for path in folder.iterdir())


def test_the_best_stay_the_earlier_of_equals(config: Config, tmp_path: Path) -> None:
    kept_weights, folder = KeptWeights(room=2), tmp_path / "kept"
    assert put(kept_weights, folder, 1, 0.5, config) is None
    assert put(kept_weights, folder, 2, 0.75, config) is None
    assert not kept_weights.takes(0.75) and not kept_weights.takes(0.9) and not kept_weights.takes(math.nan)
    assert put(kept_weights, folder, 3, 0.5, config) == 2
    assert [kept.trial_id for kept in kept_weights.kept] == [1, 3] and files(folder) == [1, 3]
    assert put(kept_weights, folder, 4, 0.25, config) == 3
    assert [kept.trial_id for kept in kept_weights.kept] == [4, 1] and files(folder) == [1, 4]


def test_displaced_weights_stay_for_their_last_children(config: Config, tmp_path: Path) -> None:
    kept_weights, folder = KeptWeights(room=1, grace=2), tmp_path / "kept"
    out = [put(kept_weights, folder, number, 1 / number, config) for number in range(1, 6)]
    assert out == [None, 1, 2, 3, 4]
    assert files(folder) == [3, 4, 5]
    kept_weights.clear()
    assert files(folder) == [5]


def test_a_failed_write_keeps_what_was_there(config: Config, tmp_path: Path) -> None:
    kept_weights, folder = KeptWeights(room=1), tmp_path / "kept"
    put(kept_weights, folder, 1, 0.5, config)
    wrong = {"params": {"dense": {"bias": np.zeros(3)}}}
    with pytest.raises(ValueError, match="float64"):
        kept_weights.put(folder / "2.h5", 2, 0.25, Architecture(config.base), wrong)
    assert [kept.trial_id for kept in kept_weights.kept] == [1] and files(folder) == [1]
