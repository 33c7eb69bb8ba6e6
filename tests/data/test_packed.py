# SPDX-License-Identifier: Apache-2.0
"""Packed pictures: each arrives with its label, from shards of both encodings, and each fault is named."""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiperf_mpi.config import Config, ConfigError, load
from aiperf_mpi.data.catalogue import check_dataset, open_dataset, resolved
from aiperf_mpi.data.dataset import Dataset
from aiperf_mpi.data.loader import Reader, train_batches, val_batches
from aiperf_mpi.data.manifest import FILE, JPEG, RAW, Manifest, read_manifest
from aiperf_mpi.data.packed import DataError, PackedImages
from aiperf_mpi.data.shard import open_shard
from aiperf_mpi.files import FileError
from tests.helpers.packed import number_of, numbered_set, rewrite

TRAIN, VAL, SIDE = 70, 30, 32


def sets_of(folder: Path, name: str = "images") -> list[str]:
    size = ["data.image_size=32", "train.batch_per_device=4", "hpo.enabled=false"]
    return [f"data.name={name}", f"data.path='{folder}'", *size]


def config(folder: Path, *sets: str, name: str = "images") -> Config:
    return load(None, sets=[*sets_of(folder, name), *sets])


@pytest.fixture(scope="module", params=[RAW, JPEG])
def packed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp(request.param)
    return folder, numbered_set(folder, TRAIN, VAL, SIDE, request.param)


def opened(folder: Path, *sets: str) -> Dataset:
    return open_dataset(resolved(config(folder, *sets)))


def close(dataset: Dataset) -> None:
    for images in (dataset.train, dataset.val):
        assert isinstance(images, PackedImages)
        images.close()


def test_the_manifest_decides_counts_classes_and_stored_size(packed: tuple[Path, Manifest]) -> None:
    folder, manifest = packed
    found = resolved(config(folder)).data
    assert (found.train_images, found.val_images, found.classes) == (TRAIN, VAL, TRAIN + VAL)
    assert found.stored_size == SIDE
    fewer = resolved(config(folder, "data.train_images=20", "data.val_images=7")).data
    assert (fewer.train_images, fewer.val_images) == (20, 7)
    assert read_manifest(folder) == manifest


def test_each_picture_arrives_with_its_label(packed: tuple[Path, Manifest]) -> None:
    dataset = opened(packed[0])
    assert dataset.sha256 == packed[1].sha256 and dataset.manifest == packed[1]
    for images, first in ((dataset.train, 0), (dataset.val, TRAIN)):
        assert (images.shape, images.dtype, len(images.labels)) == (
            (SIDE, SIDE, 3),
            np.uint8,
            len(images.labels),
        )
        out = np.empty((len(images.labels), *images.shape), np.uint8)
        # In another order than that of the shards.
        places = np.random.default_rng(1).permutation(len(images.labels))
        assert isinstance(images, PackedImages)
        sizes = [shard.size(place) for shard in images.shards for place in range(len(shard.labels))]
        assert images.read(places, out) == sum(sizes)
        assert images.read(places[:5], out[:5]) == sum(sizes[place] for place in places[:5])
        assert [number_of(picture) for picture in out] == (places + first).tolist()
        np.testing.assert_array_equal(images.labels, np.arange(first, first + len(images.labels)))
    close(dataset)


@settings(deadline=None, max_examples=25)
@given(
    train=st.integers(1, 70),
    val=st.integers(1, 30),
    devices=st.integers(1, 4),
    batch=st.integers(1, 9),
    trainers=st.integers(1, 4),
    workers=st.integers(1, 3),
    reuse=st.booleans(),
    seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 99),
)
def test_every_trainer_reads_its_part_and_each_picture_once(
    packed: tuple[Path, Manifest],
    train: int,
    val: int,
    devices: int,
    batch: int,
    trainers: int,
    workers: int,
    reuse: bool,
    seed: int,
    epoch: int,
) -> None:
    """The order is that of one trainer with all devices, however many share them."""
    total = devices * trainers
    if train < total * batch:
        return
    dataset = opened(
        packed[0], f"data.train_images={train}", f"data.val_images={val}", "train.batch_per_device=1"
    )
    steps, orders, seen = train // (total * batch), [], []
    with closing(Reader(workers, reuse)) as reader:
        for number in range(trainers):
            mine = slice(number * devices, (number + 1) * devices)
            parts = []
            for pictures, labels, valid in train_batches(dataset, seed, epoch, total, batch, mine, reader):
                assert valid.all() and pictures.shape == (devices, batch, SIDE, SIDE, 3)
                numbers = [number_of(picture) for picture in pictures.reshape(-1, SIDE, SIDE, 3)]
                assert numbers == labels.ravel().tolist()
                parts.append(labels)
            orders.append(np.stack(parts))
            for pictures, labels, valid in val_batches(dataset, total, batch, mine, reader):
                assert [number_of(picture) for picture in pictures[valid]] == labels[valid].tolist()
                assert not pictures[~valid].any()
                seen += labels[valid].tolist()
        whole = np.stack(
            [one.labels for one in train_batches(dataset, seed, epoch, total, batch, reader=reader)]
        )
    np.testing.assert_array_equal(np.concatenate(orders, axis=1), whole)
    assert whole.shape[0] == steps and len(set(whole.ravel().tolist())) == steps * total * batch
    assert sorted(seen) == list(range(TRAIN, TRAIN + val))
    close(dataset)


# -- faults ------------------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 100)


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def change(**values: object) -> Callable[[Path], None]:
    """Return what changes attributes or the label 1 of a shard, as a packer with a fault would."""

    def act(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            if "label" in values:
                file["labels"][1] = values["label"]
            else:
                file.attrs.update(values)

    return act


def compressed(path: Path) -> None:
    """Write the array in chunks, as h5py does with compression."""
    with h5py.File(path, "r+") as file:
        name = "images" if "images" in file else "jpeg"
        content = file[name][...]
        del file[name]
        file.create_dataset(name, data=content, chunks=True)


def external(path: Path) -> None:
    """Make the labels a link to a file that has no content yet."""
    os.mkfifo(path.with_name("fifo"))
    with h5py.File(path, "r+") as file:
        del file["labels"]
        file["labels"] = h5py.ExternalLink(str(path.with_name("fifo")), "/labels")


def from_elsewhere(path: Path) -> None:
    """Have the labels read from another file."""
    with h5py.File(path, "r+") as file:
        count = len(file["labels"])
        del file["labels"]
        file.create_dataset("labels", (count,), np.int32, external=[(os.devnull, 0, 4 * count)])


@pytest.mark.parametrize(
    ("act", "part"),
    [
        (Path.unlink, "does not exist"),
        (truncate, "but the manifest says"),
        (lambda path: path.write_bytes(b"x" * path.stat().st_size), "is not HDF5"),
        (change(label=TRAIN + VAL), f"picture 1 has the label {TRAIN + VAL}, but the labels are 0 to"),
        (change(label=-1), "picture 1 has the label -1, but"),
        (change(side=64), f"has side 64, but the manifest says {SIDE}"),
        (change(encoding="png"), "has encoding png, but the manifest says"),
        (change(version=2), "has version 2, but this program reads versions up to 1"),
        (compressed, "is stored in pieces or elsewhere"),
        (change(encoding="x\n\x1b[2J"), r"has encoding x\n\x1b[2J, but the manifest says"),
        (external, "/labels is not an object of this file"),
        (from_elsewhere, "/labels is stored in pieces or elsewhere"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "a FIFO"),
        (lambda path: (path.unlink(), path.mkdir()), "a folder"),
    ],
)
def test_a_broken_shard_is_named(
    packed: tuple[Path, Manifest], tmp_path: Path, act: Callable[[Path], object], part: str
) -> None:
    manifest = copied(packed, tmp_path)
    shard = tmp_path / "train-00002.h5"
    act(shard)
    if shard.is_file():
        # The packer that made the fault has stated its size.
        fitting = [
            replace(one, bytes=(tmp_path / one.file).stat().st_size) for one in manifest.splits["train"]
        ]
        if act is not truncate:
            rewrite(tmp_path, manifest, splits={**manifest.splits, "train": tuple(fitting)})
    with pytest.raises(ConfigError) as caught:
        open_dataset(resolved(config(tmp_path)))
    said = str(caught.value)
    assert said.startswith("data.path: ") and str(shard) in said and part in said and said.isprintable()


def test_offsets_that_rise_only_modulo_the_width_of_a_number(tmp_path: Path) -> None:
    manifest = numbered_set(tmp_path, TRAIN, VAL, SIDE, JPEG)
    with h5py.File(tmp_path / "train-00000.h5", "r+") as file:
        file["offsets"][1:4] = np.array([2**63 - 1, 2**63, 2**64 - 1], np.uint64)
        file["offsets"][4:-1] = np.arange(1, len(file["offsets"]) - 4, dtype=np.uint64)
    with pytest.raises(FileError, match="does not rise from 0"):
        open_shard(tmp_path, manifest.splits["train"][0], manifest)


def copied(packed: tuple[Path, Manifest], folder: Path) -> Manifest:
    for path in packed[0].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return packed[1]


def test_the_check_before_the_run_finds_what_lacks(packed: tuple[Path, Manifest], tmp_path: Path) -> None:
    copied(packed, tmp_path)
    wanted = resolved(config(tmp_path))
    check_dataset(wanted)
    truncate(tmp_path / "val-00001.h5")
    with pytest.raises(ConfigError, match=r"val-00001.h5: has \d+ bytes, but the manifest says"):
        check_dataset(wanted)
    (tmp_path / "val-00001.h5").unlink()
    with pytest.raises(ConfigError, match=r"val-00001.h5: .*does not exist"):
        check_dataset(wanted)


def test_more_shards_than_files_that_may_be_open_are_refused_before_staging(
    packed: tuple[Path, Manifest],
) -> None:
    # In a process of its own: this one has files of other tests open.
    script = (
        "import resource, sys\n"
        "from aiperf_mpi.config import ConfigError, load\n"
        "from aiperf_mpi.data.catalogue import check_dataset, resolved\n"
        "few, wanted = resolved(load(sets=sys.argv[1:])), resolved(load(sets=sys.argv[1:-2]))\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (66, 66))\n"
        "check_dataset(few)\n"
        "try: check_dataset(wanted)\n"
        "except ConfigError as error: print(error)\n"
    )
    words = [*sets_of(packed[0]), "data.train_images=16", "data.val_images=16"]
    done = subprocess.run(
        [sys.executable, "-c", script, *words], capture_output=True, text=True, timeout=60, check=True
    )
    assert re.search("keeps 7 shards open .* may open 66; .*: ulimit -n 71, or", done.stdout), done.stdout


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"version": 2}, "has version 2, but this program reads versions up to 1"),
        ({"format": "another"}, "is not the manifest of a packed data set"),
        ({"side": 64}, "content_sha256 is not the hash of the content"),
        ({"classes": ["a"]}, "1 classes"),
        ({"encoding": "png"}, "the encoding 'png' is not one of raw, jpeg"),
        ({"splits": {}}, "lacks the key 'train'"),
        ({"mean": [1]}, "mean and deviation are not three numbers"),
        ({"mean": [0.5, float("nan"), 0.5]}, "nan is not a number from 0 to 1"),
        ({"deviation": [0.5, float("nan"), 0.5]}, "nan is not a number from 0 to 1"),
        ({"deviation": [0.5, 0, 0.5]}, "mean and deviation are not three numbers"),
        ({"classes": ["a\nAIPERF_MPI status: VALID", "b"]}, "is not a printable text"),
        (
            {
                "splits": {
                    "train": {"shards": [{"file": "../x", "images": 1, "bytes": 9, "sha256": "0" * 64}]}
                }
            },
            "../x",
        ),
        ({"rejected": 7}, "pack the set again"),
        ({"side": math.inf}, "inf is not a whole number"),
        ({"side": 32.0}, "32.0 is not a whole number"),
        ({"version": True}, "True is not a whole number"),
        ({"version": "1\nAIPERF_MPI status: VALID"}, "is not a whole number"),
        ({"classes": "ab"}, "ab is not a list"),
        ({"mean": [10**400, 0, 0]}, "is not a number from 0 to 1"),
        ({"deviation": [math.inf] * 3}, "inf is not a number from 0 to 1"),
        ({"deviation": [1e-320] * 3}, "the deviation 1e-09 or more"),
        ({"splits": {"train": {"shards": [], "images": "0\n"}, "val": {"shards": []}}}, "train has no shard"),
    ],
)
def test_a_manifest_that_is_not_one(
    packed: tuple[Path, Manifest], tmp_path: Path, changes: dict[str, object], part: str
) -> None:
    document = json.loads((packed[0] / FILE).read_text()) | changes
    (tmp_path / FILE).write_text(json.dumps(document))
    with pytest.raises(ConfigError) as caught:
        resolved(config(tmp_path))
    said = str(caught.value)
    assert part in said and str(tmp_path / FILE) in said and said.isprintable() and "; " in said


@pytest.mark.parametrize("key", ["images", "bytes"])
@pytest.mark.parametrize("value", [-1, 1.5, True, 2**63, math.inf, "1\x1b[2J"])
def test_a_number_of_a_manifest_that_is_none(
    packed: tuple[Path, Manifest], tmp_path: Path, key: str, value: object
) -> None:
    document = json.loads((packed[0] / FILE).read_text())
    document["splits"]["train"]["shards"][0][key] = value
    (tmp_path / FILE).write_text(json.dumps(document))
    with pytest.raises(ConfigError, match="is not a whole number from 0 to ") as caught:
        resolved(config(tmp_path))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("content", ["", "{", "[]", "7", "[" * 100_000, '{"format": NaN}'])
def test_a_manifest_of_another_form(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    with pytest.raises(ConfigError, match=FILE):
        resolved(config(tmp_path))


def test_settings_that_do_not_fit_the_set(packed: tuple[Path, Manifest]) -> None:
    folder = packed[0]
    fitting = resolved(config(folder))
    for wrong, part in (
        ({"classes": 5}, r"data.classes: it is 5, but the packed pictures in .* have 100; set data.classes"),
        ({"stored_size": 64}, r"data.stored_size: it is 64, but .* have 32"),
        ({"train_images": 71}, r"data.train_images: it is 71, but .* has 70 pictures of the split train"),
        ({"val_images": 31}, r"data.val_images: it is 31, but .* has 30 pictures of the split val"),
    ):
        with pytest.raises(ConfigError, match=part):
            check_dataset(replace(fitting, data=replace(fitting.data, **wrong)))
    with pytest.raises(ConfigError, match=r"data.stored_size: 32 is less than data.image_size = 64"):
        resolved(config(folder, "data.image_size=64"))


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="it is empty, but data.name = 'images' needs the folder"):
        check_dataset(load(None, sets=["data.name=images"]))
    for place, part in ((tmp_path, "manifest.json: does not exist"), (tmp_path / "no", "does not exist")):
        with pytest.raises(ConfigError, match=part) as caught:
            resolved(config(place))
        assert "python -m aiperf_mpi pack" in str(caught.value)


def test_imagenet_is_all_of_imagenet(packed: tuple[Path, Manifest]) -> None:
    with pytest.raises(
        ConfigError, match='has 70 and 30 pictures, but ImageNet has 1281167 and 50000; .*"images"'
    ):
        check_dataset(resolved(load("imagenet", sets=[f"data.path='{packed[0]}'", "data.image_size=32"])))


def test_shards_are_opened_without_locks(packed: tuple[Path, Manifest]) -> None:
    """File systems of clusters may have none, and thousands of trainers would ask for them at once."""
    with open(packed[0] / "train-00000.h5", "rb") as shard:
        fcntl.flock(shard, fcntl.LOCK_EX)
        close(opened(packed[0]))


# -- faults that show while a run reads ---------------------------------------------------------------


def test_a_shard_that_shrinks_while_it_is_used(packed: tuple[Path, Manifest], tmp_path: Path) -> None:
    copied(packed, tmp_path)
    dataset = opened(tmp_path)
    os.truncate(tmp_path / "val-00001.h5", 3000)
    with closing(Reader(2)) as reader, pytest.raises(DataError) as caught:
        list(val_batches(dataset, 1, 10, reader=reader))
    said = str(caught.value)
    assert os.uname().nodename in said and str(tmp_path / "val-00001.h5") in said and "offset" in said
    assert said.endswith("the file ends here, too early; copy it again")
    close(dataset)


def test_a_damaged_picture_is_named(packed: tuple[Path, Manifest], tmp_path: Path) -> None:
    """Raw pixels carry no redundancy: only the hash, checked before the run, tells."""
    manifest = copied(packed, tmp_path)
    if manifest.encoding == RAW:
        return
    path = tmp_path / "train-00001.h5"
    with h5py.File(path, "r+") as file:
        begin, end = (int(file["offsets"][place]) for place in (5, 6))
        file["jpeg"][begin + 2 : end] = 0
    dataset = opened(tmp_path)
    out = np.empty((1, SIDE, SIDE, 3), np.uint8)
    dataset.train.read(np.array([20]), out)
    assert number_of(out[0]) == 20
    with pytest.raises(DataError, match=r"train-00001.h5: picture 5 at offset \d+: "):
        dataset.train.read(np.array([21]), out)
    close(dataset)
