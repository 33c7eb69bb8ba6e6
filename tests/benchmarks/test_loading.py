# SPDX-License-Identifier: Apache-2.0
"""The benchmark of packing and loading: its photographs, its contenders, its table at a tiny scale."""

from __future__ import annotations

import io
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from aiperf_mpi.data.manifest import JPEG, RAW
from benchmarks import loading
from benchmarks.photographs import originals, photograph, write_tree


def test_photographs_have_imagenets_sizes() -> None:
    pictures = [Image.open(io.BytesIO(photograph(number))) for number in range(40)]
    widths, heights = zip(*(picture.size for picture in pictures), strict=True)
    # 40 uniform numbers within 400..600 and 300..450: their means are within 3 deviations, 28 and 21 pixels.
    assert abs(np.mean(widths) - 500) < 28 and abs(np.mean(heights) - 375) < 21
    assert len(originals()) >= 3 and photograph(3) == photograph(3) != photograph(4)


def test_ratios_are_of_the_same_round() -> None:
    # Every round of ours takes twice as long as that of the bare one, whatever the machine does.
    ours, bare = {"seconds": [2.0, 20.0, 6.0]}, {"seconds": [1.0, 10.0, 3.0]}
    assert loading.ratio(ours, bare) == 0.5


def test_contenders_take_turns_after_a_round_that_does_not_count() -> None:
    order: list[str] = []

    def contender(name: str) -> int:
        order.append(name)
        return 2

    rows = loading.in_turn({name: partial(contender, name) for name in "ab"}, 2)
    assert "".join(order) == "baabba"
    assert all(len(row["seconds"]) == len(row["cpu_seconds"]) == 2 for row in rows.values())


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tree of 24 photographs, packed in both encodings."""
    folder = tmp_path_factory.mktemp("loading")
    write_tree(folder / "tree", 20, 4, 2)
    for encoding in (RAW, JPEG):
        assert loading.pack(folder / "tree", folder / encoding, encoding, 2) == 24
    return folder


def test_contenders_read_the_same_pictures(sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "BATCH", 5)
    with loading.opened(sets / RAW, 2) as (dataset, reader):
        batches = list(loading.train_rows(dataset, 1, 0, 1, 5))
        whole = np.empty((20, *dataset.train.shape), np.uint8)
        dataset.train.read(np.arange(20), whole)
        for threads in (1, 2):
            bare = loading.Preadv(dataset.train, threads)  # type: ignore[arg-type]
            assert bare.epochs(dataset, 1) == loading.load(dataset, reader, 1) == 20
            # What it read last is the last batch of the epoch.
            assert np.array_equal(bare._array, whole[batches[-1].places.ravel()])
        assert loading.fancy(dataset, sets / RAW) == 5 * loading.FANCY_BATCHES


@pytest.mark.full
def test_table_says_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loading, "BATCH", 8)
    words = ["--pictures", "32", "--repeats", "1", "--out", str(tmp_path)]
    loading.main(words)
    text = capsys.readouterr().out
    stored: dict[str, Any] = json.loads((tmp_path / "loading.json").read_text())
    assert set(stored["rows"]) == {"packing", "raw", "jpeg", "peers"}
    assert all(ratio > 0 for ratio in stored["ratios"].values()) and text.count("at least") == 4
    # This Python may lack the peers: then the table says so, and is made all the same.
    for row in stored["rows"]["peers"].values():
        assert "failed" in row or row["seconds"]
    assert (tmp_path / "loading.md").read_text() == text
