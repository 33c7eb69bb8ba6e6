# SPDX-License-Identifier: Apache-2.0
"""The benchmark of packing and loading: its photographs, its contenders, its table at a tiny scale."""

from __future__ import annotations

import io
import json
import tarfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from aiperf_mpi.data import jpeg
from aiperf_mpi.data.manifest import JPEG, RAW, read_manifest
from aiperf_mpi.data.packed import PackedImages
from aiperf_mpi.data.shard import open_shard
from benchmarks import loading
from benchmarks.bare import SIDE, Preadv, as_tar, decode_into, fancy
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
        images = dataset.train
        assert isinstance(images, PackedImages)
        whole = np.empty((20, *dataset.train.shape), np.uint8)
        dataset.train.read(np.arange(20), whole)
        for threads in (1, 2):
            bare = Preadv(images, 5, threads)
            assert bare.read_all(loading.places_of(dataset, 1)) == loading.load(dataset, reader, 1) == 20
            # What it read last is the last batch of the epoch.
            assert np.array_equal(bare._array, whole[batches[-1].places.ravel()])
        assert fancy(images, loading.places_of(dataset, 1)) == 20


def test_files_go_to_their_places_in_a_batch() -> None:
    files = [jpeg.encode(jpeg.fit(jpeg.decode(photograph(number)), SIDE)) for number in range(3)]
    array = np.zeros((2, SIDE, SIDE, 3), np.uint8)
    decode_into(array, list(enumerate(files)))
    # The third is at the place of the first.
    assert np.array_equal(array, [jpeg.decode(files[2]), jpeg.decode(files[1])])


def test_a_tar_has_the_packed_files_and_their_labels(sets: Path) -> None:
    manifest = read_manifest(sets / JPEG)
    with tarfile.open(as_tar(sets / JPEG)) as tar:
        names = [member.name for member in tar]
        content = {name: tar.extractfile(name).read() for name in names}  # type: ignore[union-attr]
    assert names == [f"{number:06d}.{ending}" for number in range(20) for ending in ("jpg", "cls")]
    shard = open_shard(sets / JPEG, manifest.splits["train"][0], manifest)
    assert [int(content[name]) for name in names[1::2]] == shard.labels.tolist()
    assert [len(content[name]) for name in names[::2]] == np.diff(shard.starts).tolist()
    shard.close()


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
