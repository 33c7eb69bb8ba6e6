# SPDX-License-Identifier: Apache-2.0
"""Shards: what the writer writes is what the reader reads, and the same pictures give the same bytes."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiperf_mpi.data.manifest import ENCODINGS, JPEG, RAW, Manifest, Shard
from aiperf_mpi.data.shard import open_shard
from aiperf_mpi.packing.shard import Layout, ShardWriter

SIDE = 8


def write(path: Path, encoding: str, files: list[bytes], rejected: int = 0) -> Shard | None:
    """Write a shard of these pictures, labelled 0, 1, 2, 0, ..."""
    writer = ShardWriter(path, "train", 7, Layout(encoding, SIDE))
    for place, data in enumerate(files):
        writer.add(data, place % 3, f"class/ä-{place}.JPEG")
    return writer.finish(path.name)


def pictures(encoding: str, count: int) -> list[bytes]:
    """Return random pixels, or random bytes of several lengths in place of JPEG files."""
    random = np.random.default_rng(count)
    sizes = [3 * SIDE**2] * count if encoding == RAW else random.integers(1, 5000, count).tolist()
    return [random.bytes(size) for size in sizes]


def manifest(encoding: str, shard: Shard) -> Manifest:
    classes, moments = ("a", "b", "c"), (0.5, 0.5, 0.5)
    splits = {"train": (shard,), "val": ()}
    return Manifest("set", encoding, SIDE, classes, splits, moments, moments)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("count", [1, 2, 30, 700])
def test_reader_finds_what_was_written(tmp_path: Path, encoding: str, count: int) -> None:
    files = pictures(encoding, count)
    shard = write(tmp_path / "train-00007.h5", encoding, files)
    assert shard is not None and shard.images == count
    content = (tmp_path / shard.file).read_bytes()
    assert (len(content), hashlib.sha256(content).hexdigest()) == (shard.bytes, shard.sha256)

    opened = open_shard(tmp_path, shard, manifest(encoding, shard))
    for place in range(count):
        buffer = bytearray(opened.size(place))
        opened.read(place, memoryview(buffer))
        assert bytes(buffer) == files[place]
    assert opened.offset % 4096 == 0
    opened.close()

    with h5py.File(tmp_path / shard.file) as file:
        names = [name.decode() for name in file["names"][...]]
        assert names == [f"class/ä-{place}.JPEG" for place in range(count)]
        assert file["labels"][...].tolist() == [place % 3 for place in range(count)]
        assert dict(file.attrs) == {
            "split": "train", "index": 7, "encoding": encoding, "side": SIDE, "version": 1
        }  # fmt: skip
        array = file["images" if encoding == RAW else "jpeg"][...]
        assert array.tobytes() == b"".join(files)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_same_pictures_give_the_same_bytes_at_another_time_and_place(
    tmp_path: Path, encoding: str
) -> None:
    files = pictures(encoding, 50)
    first = write(tmp_path / "one.h5", encoding, files)
    time.sleep(1.1)
    (tmp_path / "folder").mkdir()
    second = write(tmp_path / "folder" / "other-name.h5", encoding, files)
    assert first is not None and second is not None and first.sha256 == second.sha256


def test_shard_without_a_picture_is_none(tmp_path: Path) -> None:
    assert write(tmp_path / "empty.h5", RAW, []) is None


def test_nothing_is_left_next_to_the_shard(tmp_path: Path) -> None:
    write(tmp_path / "shard.h5", JPEG, pictures(JPEG, 3))
    assert os.listdir(tmp_path) == ["shard.h5"]


@given(sizes=st.lists(st.integers(1, 9000), min_size=1, max_size=20), encoding=st.sampled_from(ENCODINGS))
def test_every_size_of_files_keeps_its_place(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], encoding: str
) -> None:
    folder = tmp_path_factory.mktemp("shard")
    sizes = [3 * SIDE**2] * len(sizes) if encoding == RAW else sizes
    files = [bytes([number % 251]) * size for number, size in enumerate(sizes)]
    shard = write(folder / "shard.h5", encoding, files)
    assert shard is not None
    opened = open_shard(folder, shard, manifest(encoding, shard))
    assert [opened.size(place) for place in range(len(sizes))] == sizes
    whole = bytearray(sum(sizes))
    os.preadv(opened.descriptor, [whole], opened.offset)
    opened.close()
    assert bytes(whole) == b"".join(files)
