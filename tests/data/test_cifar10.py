# SPDX-License-Identifier: Apache-2.0
"""CIFAR-10's binary version: files of the published layout are read, everything else is refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from aiperf_mpi.config import Config, ConfigError, load
from aiperf_mpi.data import cifar10
from aiperf_mpi.data.catalogue import check_dataset, open_dataset


def config(path: Path | str, *sets: str) -> Config:
    return load("cifar10", sets=[f"data.path='{path}'", *sets])


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """Files in the layout of https://www.cs.toronto.edu/~kriz/cifar.html, of random pixels; all of their
    records."""
    folder = tmp_path_factory.mktemp("cifar") / cifar10.FOLDER
    folder.mkdir()
    records = np.random.default_rng(0).integers(0, 256, (60_000, 3073), dtype=np.uint8)
    records[:, 0] %= 10
    for number, name in enumerate([*cifar10.TRAIN_FILES, cifar10.VAL_FILE]):
        (folder / name).write_bytes(records[number * 10_000 : (number + 1) * 10_000].tobytes())
    return folder, records


def test_every_pixel_and_label_arrives(published: tuple[Path, np.ndarray]) -> None:
    folder, records = published
    dataset = open_dataset(config(folder))
    assert dataset.train_images.shape == (50_000, 32, 32, 3) and dataset.val_images.shape == (
        10_000,
        32,
        32,
        3,
    )
    np.testing.assert_array_equal(dataset.train_labels, records[:50_000, 0])
    np.testing.assert_array_equal(dataset.val_labels, records[50_000:, 0])

    # Byte 1 + 1024 c + 32 y + x of a record is the pixel at row y, column x, colour c.
    for image, y, x, c in ((0, 0, 0, 0), (0, 0, 1, 0), (0, 1, 0, 0), (49_999, 31, 30, 2), (20_000, 7, 9, 1)):
        assert dataset.train_images[image, y, x, c] == records[image, 1 + 1024 * c + 32 * y + x]
    assert dataset.val_images[5, 3, 4, 2] == records[50_005, 1 + 2048 + 96 + 4]


def test_the_folder_above_and_fewer_images_do_as_well(published: tuple[Path, np.ndarray]) -> None:
    folder, records = published
    dataset = open_dataset(config(folder.parent, "data.train_images=1000", "data.val_images=10"))
    np.testing.assert_array_equal(dataset.train_labels, records[:1000, 0])
    assert len(dataset.val_labels) == 10
    check_dataset(config(folder))


def test_missing_damaged_and_foreign_files_are_named(
    published: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    folder = tmp_path / cifar10.FOLDER
    cases = [("", "it is empty"), (tmp_path / "nowhere", f"{tmp_path}/nowhere is not a folder")]
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
    with pytest.raises(ConfigError, match=r"data_batch_3.bin is missing"):
        check_dataset(config(folder))
    third.write_bytes(b"\0" * 3073)
    with pytest.raises(ConfigError, match=r"data_batch_3.bin has 3073 bytes instead of 30730000"):
        check_dataset(config(folder))

    # The right size, but label 10 in the last record.
    content = bytearray(30_730_000)
    content[-3073] = 10
    third.write_bytes(content)
    with pytest.raises(ConfigError, match=r"data_batch_3.bin holds the label 10"):
        open_dataset(config(folder))


def test_imagenet_resolves_and_is_refused_with_what_to_do(tmp_path: Path) -> None:
    for sets, path in (([], ""), ([f"data.path='{tmp_path}'"], f" (data.path: {tmp_path})")):
        for act in (check_dataset, open_dataset):
            with pytest.raises(ConfigError, match="data.name = 'imagenet'") as caught:
                act(load("imagenet", sets=sets))
            assert f"cannot read ImageNet{path}; --preset imagenet-synthetic" in str(caught.value)
