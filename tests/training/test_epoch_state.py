# SPDX-License-Identifier: Apache-2.0
"""A training that goes on from the file of an epoch is the unbroken one; a damaged file is refused."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from aiperf_mpi.training.checkpoint import digest
from aiperf_mpi.training.epoch_files import epoch_files, epoch_path, newest_epoch, remove_epochs, write_epoch
from aiperf_mpi.training.epoch_state import EpochState, load_epoch, save_epoch
from aiperf_mpi.training.steps.compile import Compiled
from tests.helpers.training.cases import MORPHED, compiled_tiny
from tests.helpers.training.trainings import KeptStates, continued, marks, training

#: Epochs of the trainings, and whole ones when the state is kept.
EPOCHS, DONE = 5, 3


@pytest.fixture(scope="module")
def tiny() -> Compiled:
    return compiled_tiny()


@pytest.fixture(scope="module")
def kept(tiny: Compiled) -> KeptStates:
    """The states of an unbroken training, taken while it trained on."""
    states = KeptStates()
    list(training(tiny, epochs=EPOCHS, rate=0.1, keeper=states))
    assert len(states.states) == EPOCHS - 1
    return states


def trial(epoch: EpochState) -> tuple[Any, ...]:
    return epoch.start.trial_id, epoch.start.seed, epoch.start.architecture


def same(a: Any, b: Any) -> bool:
    """Whether two trees are equal in structure, dtypes and bits."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    alike = all(np.asarray(x).dtype == np.asarray(y).dtype and np.array_equal(x, y) for x, y in pairs)
    return alike and jax.tree.structure(a) == jax.tree.structure(b)


# -- equal to the bit ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "changes"),
    [
        # Random crops and mirrors depend on the key and the number of the step.
        ({"augmentation": "cifar"}, {}),
        pytest.param({"accumulate": 2}, {}, marks=pytest.mark.full),
        pytest.param({"precision": "bfloat16", "accumulate": 4}, {}, marks=pytest.mark.full),
        pytest.param({"precision": "float16"}, {}, marks=pytest.mark.full),
        # The losses of the epochs before decide the end: at rate 0 the loss settles.
        pytest.param({}, {"rate": 0.0, "epochs": 40, "patience": 6}, marks=pytest.mark.full),
    ],
    ids=["augmented", "parts", "bfloat16 in parts", "float16", "patience"],
)
def test_a_training_goes_on_in_another_process_as_if_unbroken(
    steps: dict[str, Any], changes: dict[str, Any], tmp_path: Path, root: Path
) -> None:
    compiled, states = compiled_tiny(**steps), KeptStates()
    changes = {"epochs": EPOCHS, "rate": 0.1} | changes
    unbroken = marks(training(compiled, keeper=states, **changes))
    write_epoch(tmp_path, states.after(DONE, compiled))

    command = [sys.executable, "-m", "tests.programs.training.continued", str(tmp_path), str(DONE)]
    done = subprocess.run(
        [*command, json.dumps(steps), json.dumps(changes)],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == unbroken[DONE:]


@pytest.mark.parametrize("done", [1, 2, 4])
def test_each_epoch_is_a_place_to_go_on_from(done: int, tiny: Compiled, tmp_path: Path) -> None:
    states = KeptStates()
    unbroken = marks(training(tiny, epochs=EPOCHS, rate=0.1, keeper=states))
    write_epoch(tmp_path, states.after(done, tiny))
    assert marks(continued(tiny, tmp_path, done, epochs=EPOCHS, rate=0.1)) == unbroken[done:]


def test_a_training_without_an_epoch_left_is_refused(
    tiny: Compiled, kept: KeptStates, tmp_path: Path
) -> None:
    write_epoch(tmp_path, kept.after(DONE, tiny))
    with pytest.raises(ValueError, match="3 epochs of 3 are done"):
        continued(tiny, tmp_path, DONE, epochs=DONE)


def test_no_state_is_kept_after_the_last_epoch_or_before_it_is_due(tiny: Compiled) -> None:
    states = KeptStates()
    # At rate 0 the training ends by its patience, after its last epoch nothing is kept.
    run = training(tiny, rate=0.0, epochs=40, patience=3, keeper=states)
    assert len(list(run)) == run.epochs == len(states.states) + 1 and run.end == "patience"

    states.due = lambda: len(states.states) < 1 and run.epochs >= 2  # type: ignore[method-assign]
    states.states.clear()
    run = training(tiny, epochs=4, keeper=states)
    list(run)
    assert [int(state.step) for state in states.states] == [20]


# -- the file --------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", pytest.param("float16", marks=pytest.mark.full)])
def test_what_is_written_is_read_to_the_bit(precision: str, tmp_path: Path) -> None:
    compiled, states = compiled_tiny(precision=precision), KeptStates()
    list(training(compiled, epochs=EPOCHS, rate=0.1, keeper=states))
    for epochs in (1, EPOCHS - 1):
        epoch = states.after(epochs, compiled)
        epoch = replace(epoch, start=replace(epoch.start, difference=2e-7))
        save_epoch(tmp_path / "x.h5", epoch)
        read = load_epoch(tmp_path / "x.h5", *trial(epoch))
        assert read.start == epoch.start and read.trained.epochs == epoch.trained.epochs
        assert same(read.state, epoch.state) and bool(read.state.scale) == (precision == "float16")
        assert same(read.trained.best_variables, epoch.trained.best_variables)
    assert [path.name for path in tmp_path.iterdir()] == ["x.h5"]


def test_the_newest_two_are_kept_and_removed_at_the_end(
    tiny: Compiled, kept: KeptStates, tmp_path: Path
) -> None:
    folder = tmp_path / "running"
    assert epoch_files(folder, 5) == [] and newest_epoch(folder, 5, 77, tiny.architecture, 9).state is None
    other = write_epoch(folder, kept.after(1, tiny, trial_id=55))
    for epochs in range(1, EPOCHS):
        assert write_epoch(folder, kept.after(epochs, tiny)) == epoch_path(folder, 5, epochs)
    assert [file.epochs for file in epoch_files(folder, 5)] == [4, 3]
    remove_epochs(folder, 5)
    assert list(folder.iterdir()) == [other]


def test_a_file_newer_than_the_kept_rows_is_left_out(
    tiny: Compiled, kept: KeptStates, tmp_path: Path
) -> None:
    for epochs in (2, 3):
        write_epoch(tmp_path, kept.after(epochs, tiny))
    found = newest_epoch(tmp_path, 5, 77, tiny.architecture, 2)
    assert found.state is not None and found.state.epochs == 2
    assert "has 3 epochs, but the rows of 2 are kept" in found.refused[0]


def test_a_damaged_file_gives_way_to_the_older_one_with_its_reason(
    tiny: Compiled, kept: KeptStates, tmp_path: Path
) -> None:
    paths = [write_epoch(tmp_path, kept.after(epochs, tiny)) for epochs in (2, 3)]
    whole = paths[1].read_bytes()
    paths[1].write_bytes(whole[: len(whole) // 2])
    found = newest_epoch(tmp_path, 5, 77, tiny.architecture, EPOCHS)
    assert found.state is not None and found.state.epochs == 2
    assert len(found.refused) == 1 and "5-epoch-3.h5: not a checkpoint: it is truncated" in found.refused[0]

    # The same file under the name of another epoch, and none at all.
    paths[1].write_bytes(whole)
    paths[1].replace(epoch_path(tmp_path, 5, 4))
    paths[0].write_bytes(b"")
    found = newest_epoch(tmp_path, 5, 77, tiny.architecture, EPOCHS)
    assert found.state is None and "holds 3 epochs, not those of its name" in found.refused[0]
    assert "5-epoch-2.h5: not a checkpoint: " in found.refused[1]


def test_a_file_of_another_trial_is_refused(tiny: Compiled, kept: KeptStates, tmp_path: Path) -> None:
    epoch = kept.after(DONE, tiny)
    save_epoch(tmp_path / "x.h5", epoch)
    trial_id, seed, architecture = trial(epoch)
    for other, problem in (
        ((6, seed, architecture), "its trial_id is 5, not 6 of the trial"),
        ((trial_id, 78, architecture), "its seed is 77, not 78 of the trial"),
        ((trial_id, seed, MORPHED), "it holds the network .* not .* of the trial"),
    ):
        with pytest.raises(ValueError, match=problem):
            load_epoch(tmp_path / "x.h5", *other)


@pytest.mark.parametrize("flips", [20, pytest.param(600, marks=pytest.mark.full)])
def test_no_flipped_byte_is_read_as_another_state(
    flips: int, tiny: Compiled, kept: KeptStates, tmp_path: Path
) -> None:
    epoch, path = kept.after(2, tiny), tmp_path / "x.h5"
    save_epoch(path, epoch)
    whole, rng, refused = path.read_bytes(), random.Random(15), 0
    for _ in range(flips):
        place = rng.randrange(len(whole))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << rng.randrange(8)]) + whole[place + 1 :])
        try:
            read = load_epoch(path, *trial(epoch))
        except (OSError, ValueError) as error:
            assert "\n" not in str(error) and str(path) in str(error)
            refused += 1
            continue
        # A byte that HDF5 does not use.
        assert read.trained.epochs == epoch.trained.epochs and same(read.state, epoch.state)
        assert digest(read.trained.best_variables) == digest(epoch.trained.best_variables)
    # Most bytes of a file of so small arrays hold nothing.
    assert refused > flips / 10, f"{refused} of {flips}"
