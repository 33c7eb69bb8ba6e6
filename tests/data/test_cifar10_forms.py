# SPDX-License-Identifier: Apache-2.0
"""CIFAR-10 in each published form: the same images, labels and hash; nothing is unpickled freely."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import struct
import tarfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from aiperf_mpi.config import ConfigError, load
from aiperf_mpi.data import cifar10
from aiperf_mpi.data.catalogue import check_dataset, open_dataset
from aiperf_mpi.data.dataset import Dataset

#: Images that are compared; all are read.
SETS = ("data.train_images=50000", "data.val_images=10000")


class Python2Pickler(pickle._Pickler):  # type: ignore[name-defined]
    """Writes texts and bytes as Python 2 wrote its strings."""

    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_string(self, value: str | bytes) -> None:
        """Write a string with the length before it."""
        content = value.encode() if isinstance(value, str) else value
        short = len(content) < 256
        self.write((b"U%c" % len(content) if short else b"T" + struct.pack("<i", len(content))) + content)
        self.memoize(value)

    dispatch[bytes] = dispatch[str] = save_string


def pickled(value: object) -> bytes:
    """Return the pickle that Python 2 and the numpy of its time write."""
    file = io.BytesIO()
    Python2Pickler(file, 2).dump(value)
    return file.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def batch(records: np.ndarray, number: int, **other: object) -> bytes:
    """Return a batch of the Python version."""
    names = [f"picture_s_{place:06d}.png" for place in range(len(records))]
    content = {
        "batch_label": f"training batch {number} of 5",
        "labels": records[:, 0].tolist(),
        "data": np.ascontiguousarray(records[:, 1:]),
        "filenames": names,
    }
    return pickled(content | other)


@pytest.fixture(scope="module")
def records() -> np.ndarray:
    """Return 60,000 records of random pixels."""
    records = np.random.default_rng(0).integers(0, 256, (60_000, 3073), dtype=np.uint8)
    records[:, 0] %= 10
    return records


@pytest.fixture(scope="module")
def forms(records: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write the records in the four published forms."""
    top = tmp_path_factory.mktemp("cifar")
    parts = [records[place : place + 10_000] for place in range(0, 60_000, 10_000)]
    found = {}
    for folder, names, archive in (
        (cifar10.FOLDER, cifar10.BINARY, "cifar-10-binary.tar.gz"),
        (cifar10.PYTHON_FOLDER, cifar10.PYTHON, "cifar-10-python.tar.gz"),
    ):
        (top / folder).mkdir()
        for number, (name, part) in enumerate(zip(names, parts, strict=True), start=1):
            (top / folder / name).write_bytes(part.tobytes() if ".bin" in name else batch(part, number))
        with tarfile.open(top / archive, "w:gz", compresslevel=1) as file:
            # The published archives do not have the batches in order.
            for name in sorted(names, reverse=True):
                file.add(top / folder / name, f"{folder}/{name}")
        found |= {folder: top / folder, archive: top / archive}
    return found


@pytest.fixture
def published(forms: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """State the checksums of these files as the published ones: CIFAR-10 itself is not here."""
    for name in cifar10.PYTHON:
        content = (forms[cifar10.PYTHON_FOLDER] / name).read_bytes()
        monkeypatch.setitem(cifar10.PYTHON_MD5, name, hashlib.md5(content).hexdigest())
    for name, batches in zip(cifar10.ARCHIVE_NAMES, (cifar10.BINARY, cifar10.PYTHON), strict=True):
        monkeypatch.setitem(cifar10.ARCHIVES, hashlib.md5(forms[name].read_bytes()).hexdigest(), batches)
    return forms


def opened(path: Path) -> Dataset:
    config = load("cifar10", sets=[f"data.path='{path}'", *SETS])
    check_dataset(config)
    return open_dataset(config)


def refusal(path: Path) -> str:
    """Return the one line of the refusal of a place."""
    with pytest.raises(ConfigError) as caught:
        opened(path)
    assert str(caught.value).isprintable() and str(caught.value).startswith("data.path: ")
    return str(caught.value)


def test_the_helper_writes_what_python_2_wrote(forms: dict[str, Path], records: np.ndarray) -> None:
    """The real reader, which the program does not use, reads it as the page of the data set says."""
    content = (forms[cifar10.PYTHON_FOLDER] / "data_batch_2").read_bytes()
    found = pickle.loads(content, encoding="bytes")
    assert set(found) == {b"batch_label", b"labels", b"data", b"filenames"}
    np.testing.assert_array_equal(found[b"data"], records[10_000:20_000, 1:])
    assert found[b"labels"] == records[10_000:20_000, 0].tolist() and found[b"data"].dtype == np.uint8


def test_all_forms_have_the_same_content(published: dict[str, Path], records: np.ndarray) -> None:
    # The hash of the data set is that of the binary version's files, one after the other.
    expected = hashlib.sha256(records).hexdigest()
    for path in published.values():
        dataset = opened(path)
        assert dataset.sha256 == expected, path
        np.testing.assert_array_equal(dataset.train.labels, records[:50_000, 0])
        np.testing.assert_array_equal(dataset.val.labels, records[50_000:, 0])
        pixels = np.empty((2, 32, 32, 3), np.uint8)
        dataset.train.read(np.array([3, 49_999]), pixels)
        np.testing.assert_array_equal(pixels.transpose(0, 3, 1, 2).reshape(2, 3072), records[[3, 49_999], 1:])


def test_the_folder_of_an_archive_or_of_torchvision(published: dict[str, Path], tmp_path: Path) -> None:
    """torchvision keeps the archive next to the folder that it unpacks."""
    name = "cifar-10-python.tar.gz"
    (tmp_path / name).symlink_to(published[name])
    assert cifar10.find_files(str(tmp_path)) == [tmp_path / name]
    (tmp_path / cifar10.PYTHON_FOLDER).symlink_to(published[cifar10.PYTHON_FOLDER])
    files = cifar10.find_files(str(tmp_path))
    assert files == [tmp_path / cifar10.PYTHON_FOLDER / name for name in cifar10.PYTHON]
    (tmp_path / "another.tgz").symlink_to(published[name])
    assert cifar10.find_files(str(tmp_path / "another.tgz")) == [tmp_path / "another.tgz"]


def test_what_is_not_published_is_refused_before_it_is_unpickled(
    forms: dict[str, Path], tmp_path: Path
) -> None:
    said = refusal(forms["cifar-10-python.tar.gz"])
    assert "cifar-10-python.tar.gz: its MD5 is " in said
    assert "c32a1d4ab5d03f1284b67883e8d87530 and c58f30108f718f92721af3b95e74349a" in said
    for name in cifar10.PYTHON:
        (tmp_path / name).symlink_to(forms[cifar10.PYTHON_FOLDER] / name)
    said = refusal(tmp_path)
    assert "data_batch_1: its MD5 is " in said and "c99cafc152244af753f735de768cd75f; download" in said
    (tmp_path / "test_batch").unlink()
    assert f"{tmp_path}/test_batch: does not exist; download" in refusal(tmp_path)
    (tmp_path / "test_batch").write_bytes(b"x")
    assert "test_batch: has 1 bytes, not 30730000 to" in refusal(tmp_path)


def test_damaged_archives_are_named(
    published: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their checksums are stated as published, so that the reader meets the damage."""
    whole, path = published["cifar-10-binary.tar.gz"].read_bytes(), tmp_path / "x.tar.gz"

    def changed(content: bytes) -> str:
        path.write_bytes(content)
        monkeypatch.setitem(cifar10.ARCHIVES, hashlib.md5(content).hexdigest(), cifar10.BINARY)
        return refusal(path)

    assert f"{path}: it is damaged, or of another format" in changed(whole[: len(whole) // 2])
    assert f"{path}: " in changed(whole[:1000] + bytes(1000) + whole[2000:])
    with tarfile.open(path, "w:gz") as file:
        file.add(published[cifar10.FOLDER] / "test_batch.bin", "cifar-10-batches-bin/test_batch.bin")
    assert "has no member data_batch_1.bin; download" in changed(path.read_bytes())
    with tarfile.open(path, "w:gz") as file:
        entry = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin")
        entry.size = 5
        file.addfile(entry, io.BytesIO(b"12345"))
    assert "x.tar.gz/data_batch_1.bin: has 5 bytes instead of 30730000" in changed(path.read_bytes())
    path.write_bytes(b"PK no gzip")
    assert "a file, but not an archive of CIFAR-10 (tar.gz); download" in refusal(path)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"cos\nsystem\n(S'touch made'\ntR.", "it names os.system, which is not allowed"),
        (b"cbuiltins\neval\n(S'1'\ntR.", "it names builtins.eval"),
        (b"cnumpy\nload\n(S'x'\ntR.", "it names numpy.load"),
        (b"c\x1b[2J\nx\n.", "it names \\x1b[2J.x"),
        (b"P1\n.", "refers to something outside"),
        (pickled([1, 2]), "it has no list of 10000 labels"),
        (pickled({"labels": [1], "data": 3}), "it has no list of 10000 labels"),
        (pickled({"labels": [1] * 9_999 + [-1], "data": 3}), "a label is not an integer"),
        (pickled({"labels": [1] * 9_999 + ["1"], "data": 3}), "a label is not an integer"),
        (pickled({"labels": [1] * 10_000, "data": 3}), "its data is not an array"),
        (pickled({"labels": [1] * 10_000, "data": np.zeros((3, 3), np.uint8)}), "not an array uint8"),
        (pickled({"labels": [1] * 10_000, "data": np.zeros((3, 3), np.int8)}), "not an array uint8"),
        (pickled({"labels": [1] * 10_000, "data": np.zeros(3, object)}), "not an array uint8"),
    ],
)
def test_no_pickle_does_anything(
    content: bytes, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(pickle.UnpicklingError) as caught:
        cifar10.unpickled(content)
    assert part in str(caught.value) and str(caught.value).isprintable() and not os.listdir(tmp_path)


def test_an_array_by_columns_and_one_of_python_3_are_read(records: np.ndarray) -> None:
    part = records[:10_000]
    by_columns = batch(part, 1, data=np.asfortranarray(part[:, 1:]))
    np.testing.assert_array_equal(cifar10.unpickled(by_columns), part)
    # Python 3 writes bytes for Python 2 by a codec.
    content = pickle.dumps({b"labels": part[:, 0].tolist(), b"data": part[:, 1:].copy()}, protocol=2)
    assert b"_codecs" in content
    np.testing.assert_array_equal(cifar10.unpickled(content), part)
