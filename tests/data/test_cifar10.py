# SPDX-License-Identifier: Apache-2.0
"""CIFAR-10's binary version: files of the published layout are read, everything else is refused by name."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from aiperf_mpi.config import Config, ConfigError, load
from aiperf_mpi.data import cifar10
from aiperf_mpi.data.catalogue import check_dataset, open_dataset
from tests.helpers.cifar import write_batches


def config(path: Path | str, *sets: str) -> Config:
    return load("cifar10", sets=[f"data.path='{path}'", *sets])


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """Files in the layout of https://www.cs.toronto.edu/~kriz/cifar.html, of random pixels; all of their
    records."""
    folder = tmp_path_factory.mktemp("cifar") / cifar10.FOLDER
    return folder, write_batches(folder)


def test_every_pixel_and_label_arrives(published: tuple[Path, np.ndarray]) -> None:
    folder, records = published
    dataset = open_dataset(config(folder))
    assert dataset.train.images.shape == (50_000, 32, 32, 3) and dataset.val.images.shape == (
        10_000,
        32,
        32,
        3,
    )
    np.testing.assert_array_equal(dataset.train.labels, records[:50_000, 0])
    np.testing.assert_array_equal(dataset.val.labels, records[50_000:, 0])

    # Byte 1 + 1024 c + 32 y + x of a record is the pixel at row y, column x, colour c.
    for image, y, x, c in ((0, 0, 0, 0), (0, 0, 1, 0), (0, 1, 0, 0), (49_999, 31, 30, 2), (20_000, 7, 9, 1)):
        assert dataset.train.images[image, y, x, c] == records[image, 1 + 1024 * c + 32 * y + x]
    assert dataset.val.images[5, 3, 4, 2] == records[50_005, 1 + 2048 + 96 + 4]


def test_the_folder_above_and_fewer_images_do_as_well(published: tuple[Path, np.ndarray]) -> None:
    folder, records = published
    dataset = open_dataset(config(folder.parent, "data.train_images=1000", "data.val_images=10"))
    np.testing.assert_array_equal(dataset.train.labels, records[:1000, 0])
    assert len(dataset.val.labels) == 10
    check_dataset(config(folder))


def test_missing_damaged_and_foreign_files_are_named(
    published: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    folder = tmp_path / cifar10.FOLDER
    cases = [("", "it is empty"), (tmp_path / "nowhere", f"data.path: {tmp_path}/nowhere: does not exist")]
    for path, part in cases:
        for act in (check_dataset, open_dataset):
            with pytest.raises(ConfigError) as caught:
                act(config(path))
            assert part in str(caught.value) and "cifar-10-binary.tar.gz" in str(caught.value)

    folder.mkdir()
    for name in [*cifar10.TRAIN_FILES, cifar10.VAL_FILE]:
        (folder / name).symlink_to(published[0] / name)
    check_dataset(config(folder))

    third = folder / "data_batch_3.bin"
    third.unlink()
    with pytest.raises(ConfigError, match=r"data_batch_3.bin: does not exist; download"):
        check_dataset(config(folder))
    third.write_bytes(b"\0" * 3073)
    with pytest.raises(ConfigError, match=r"data_batch_3.bin: has 3073 bytes instead of 30730000"):
        check_dataset(config(folder))

    # The right size, but label 10 in the last record.
    content = bytearray(30_730_000)
    content[-3073] = 10
    third.write_bytes(content)
    with pytest.raises(ConfigError, match=r"data_batch_3.bin: has the label 10"):
        open_dataset(config(folder))


def refusal(path: Path, act: Callable[[Config], object] = check_dataset) -> str:
    """Return the one line of the refusal of a folder."""
    with pytest.raises(ConfigError) as caught:
        act(config(path))
    assert str(caught.value).isprintable() and str(caught.value).startswith("data.path: ")
    return str(caught.value)


def test_places_that_are_not_a_readable_folder_of_files(
    published: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    """Each is refused before the run starts, by what it is; no FIFO is waited for."""
    for name in (*cifar10.TRAIN_FILES, cifar10.VAL_FILE):
        (tmp_path / name).symlink_to(published[0] / name)
    third = tmp_path / "data_batch_3.bin"
    for make, part in (
        (os.mkfifo, "a FIFO, not a file"),
        (os.mkdir, "a folder, not a file"),
        (lambda path: os.symlink("/dev/zero", path), "a device, not a file"),
        (lambda path: os.symlink("nowhere", path), "is a link to nowhere, which does not exist"),
        (lambda path: os.symlink(path, path), "its symbolic links form a loop"),
        (lambda path: path.touch(), "has 0 bytes instead of 30730000"),
        # A regular file of procfs without a size.
        (lambda path: os.symlink("/proc/self/mem", path), "has 0 bytes instead of"),
    ):
        third.unlink(missing_ok=True) if not third.is_dir() else third.rmdir()
        make(third)  # type: ignore[operator]
        assert part in refusal(tmp_path)
    assert "a file, but not an archive of CIFAR-10 (tar.gz)" in refusal(published[0] / "data_batch_1.bin")
    assert "a device, not a folder" in refusal(Path("/dev/zero"))
    assert "the variable $NOWHERE_1 in it is not set" in refusal(Path("$NOWHERE_1/cifar"))


def test_a_file_that_shrinks_while_it_is_read(
    published: tuple[Path, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program writes it anew after its size was checked."""
    for name in (*cifar10.TRAIN_FILES, cifar10.VAL_FILE):
        (tmp_path / name).symlink_to(published[0] / name)
    fifth = tmp_path / "data_batch_5.bin"
    fifth.unlink()
    fifth.write_bytes(published[1][:10_000].tobytes())
    find = cifar10.find_files

    def found_and_cut(path: str) -> list[Path]:
        files = find(path)
        os.truncate(fifth, 12345)
        return files

    monkeypatch.setattr(cifar10, "find_files", found_and_cut)
    assert f"{fifth}: has 12345 bytes instead of 30730000" in refusal(tmp_path, open_dataset)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system")
def test_a_disk_that_cannot_be_read(published: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    """A real input/output error: a disk image loses its second half after the files were written."""
    image, disk = tmp_path / "image", tmp_path / "disk"
    disk.mkdir()
    size = 220 << 20
    with open(image, "wb") as file:
        file.truncate(size)

    def run(*command: str | Path) -> bool:
        return not subprocess.run(command, capture_output=True, timeout=60).returncode

    if not run("mkfs.ext4", "-q", "-O", "^has_journal", image) or not run("mount", "-o", "loop", image, disk):
        pytest.skip("no disk image can be mounted here")
    try:
        for name in (*cifar10.TRAIN_FILES, cifar10.VAL_FILE):
            shutil.copy(published[0] / name, disk)
            # Drop the file from memory, so that it is read from the disk.
            with open(disk / name, "rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        check_dataset(config(disk))
        os.truncate(image, size // 3)
        said = refusal(disk, open_dataset)
        assert f"data.path: {disk}/" in said and "input/output error; check the storage" in said
    finally:
        run("umount", disk)
