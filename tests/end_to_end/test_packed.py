# SPDX-License-Identifier: Apache-2.0
"""Runs on packed pictures: they are read while training, and a damaged shard fails trials by its name."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import numpy as np
import pytest

from aiperf_mpi.data.manifest import JPEG, RAW, from_record, read_manifest
from aiperf_mpi.results.file.collector import Run
from aiperf_mpi.results.judge.judge import judge_file
from aiperf_mpi.trials.record import DONE, FAILED
from tests.helpers import launch
from tests.helpers.end_to_end import runs
from tests.helpers.packed import rewrite, write_packed
from tests.helpers.results.agreement import command

#: Pictures of four classes that are larger than the network's input, in shards of 64.
SIDE, TRAIN, VAL, CLASSES = 24, 256, 60, 4


def packed(folder: Path, encoding: str) -> list[str]:
    """Pack noise around a colour for each class; return the settings of a run on it."""
    rng = np.random.default_rng(3)
    folder.mkdir()

    def split(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = (np.arange(count) % CLASSES).astype(np.int32)
        noise = rng.integers(0, 64, (count, SIDE, SIDE, 3), dtype=np.uint8)
        return noise + (labels * 48).astype(np.uint8)[:, None, None, None], labels

    write_packed(folder, {"train": split(TRAIN), "val": split(VAL)}, CLASSES, encoding, shard_images=64)
    return [
        "data.name='images'",
        f"data.path='{folder}'",
        "data.channels=3",
        "data.augmentation=auto",
        "data.workers=2",
    ]


def finished(run: Run) -> int:
    """Return the number of trials that have ended as they should."""
    return int((run.trials["status"] == DONE).sum())


@pytest.mark.parametrize("encoding", [pytest.param(RAW, marks=pytest.mark.full), JPEG])
def test_a_run_trains_on_crops_of_packed_pictures(tmp_path: Path, encoding: str) -> None:
    sets = packed(tmp_path / "set", encoding)
    run = runs.run_until(lambda run: finished(run) >= 2, 3, tmp_path / "run", sets)
    assert run.code == 4 and run.lines["status"] == "VALID", run.text()

    # Each of the 256 images is in a whole batch of 32 or 16, and each of the 60 validated once.
    epochs = run.table("epochs")
    whole = epochs["partial"] == 0
    assert whole.any() and set(epochs["train_samples"][whole]) == {TRAIN}
    assert set(epochs["val_samples"][whole]) == {VAL}
    # Four brightnesses are learned in a few steps, from crops as well.
    assert float(run.lines["best_error"]) < 0.5, run.text()

    check_what_was_read(run, encoding)
    check_validated_again(run, tmp_path)


def check_what_was_read(run: runs.Ended, encoding: str) -> None:
    """The result has the manifest, and the bytes of the pictures that the trainer read."""
    result = judge_file(run.result)[0]
    manifest, rejected = from_record(result.documents["data/manifest_json"])
    assert (manifest.encoding, manifest.side, rejected) == (encoding, SIDE, 0)
    assert result.attributes["dataset_sha256"] == manifest.sha256
    ranks, epochs = result.tables["ranks"], result.tables["epochs"]
    trains = ranks["role"] == "trainer"
    assert set(ranks["bytes_read"][~trains]) == {0}
    images = int((epochs["train_samples"] + epochs["val_samples"]).sum())
    size = manifest.bytes / (TRAIN + VAL) if encoding == JPEG else SIDE * SIDE * 3
    # Batches are read ahead, at most one epoch of each trial.
    ahead = (TRAIN + VAL) * (len(result.tables["trials"]["trial_id"]) + 1)
    read = int(ranks["bytes_read"].sum())
    # A shard of JPEG files also has names and labels.
    assert (0.5 if encoding == JPEG else 1.0) * images * size <= read <= (images + ahead) * size
    assert "MB/s in the core time" in command("report", run.result).stdout


def check_validated_again(run: runs.Ended, folder: Path) -> None:
    """`verify --reevaluate` finds the set where --data says, and not one that has another picture."""
    (folder / "set").rename(folder / "elsewhere")
    done = command("verify", "--reevaluate", run.result)
    assert done.returncode == 2 and "--data" in done.stderr, done.stderr
    done = command("verify", "--reevaluate", run.result, "--data", folder / "elsewhere")
    assert done.returncode == 0 and "V03 repeated passed" in done.stderr, done.stderr

    # The hash of the content has the moments, by which the pictures are normalised.
    manifest = read_manifest(folder / "elsewhere")
    rewrite(folder / "elsewhere", manifest, mean=(0.25, 0.5, 0.5))
    done = command("verify", "--reevaluate", run.result, "--data", folder / "elsewhere")
    assert done.returncode == 2 and "the sets differ" in done.stderr, done.stderr
    rewrite(folder / "elsewhere", manifest)

    shard = folder / "elsewhere" / "val-00000.h5"
    content = bytearray(shard.read_bytes())
    # In the middle of the pictures.
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    done = command("verify", "--reevaluate", run.result, "--data", folder / "elsewhere")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert f"{shard}: has another content" in done.stderr


@pytest.mark.full
def test_a_shard_that_is_cut_fails_trials_by_its_name(tmp_path: Path) -> None:
    sets, shard = packed(tmp_path / "set", RAW), tmp_path / "set" / "train-00002.h5"

    def failed_after_the_cut(run: Run) -> bool:
        if len(run.epochs):
            os.truncate(shard, 5000)
        return bool((run.trials["status"] == FAILED).any())

    run = runs.run_until(failed_after_the_cut, 3, tmp_path / "run", sets)
    assert run.code == 4, run.text()
    trials = run.table("trials")
    failed = trials["status"] == "failed"
    where = f"host {socket.gethostname()}: {shard}: offset "
    assert failed.any() and all(where in text for text in trials["cause"][failed]), trials["cause"]
    assert set(trials["ops_credited"][failed]) == {"0"}


def test_a_set_that_is_missing_on_a_rank_is_refused_before_the_core_time(tmp_path: Path) -> None:
    sets = packed(tmp_path / "set", RAW)
    (tmp_path / "set" / "val-00000.h5").unlink()
    done = launch.mpirun(3, runs.arguments(tmp_path / "run", sets), timeout=90)
    assert done.returncode == 2 and "val-00000.h5: does not exist; copy it again" in done.stderr
    assert "rank 1 on host" in done.stderr and not (tmp_path / "run").exists()
