# SPDX-License-Identifier: Apache-2.0
"""Make small sources of pictures in each form that `pack` reads, all from the same samples."""

from __future__ import annotations

import io
import os
import socket
import struct
import tarfile
import tracemalloc
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.io import savemat

from aiperf_mpi.config import ConfigError
from aiperf_mpi.packing.sources import crc32c

#: Synsets of ILSVRC2012, and ids that the devkit might give them: not in their order.
SYNSETS = ("n01440764", "n01443537", "n02119789", "n15075141")
IDS = {"n01440764": 449, "n01443537": 450, "n02119789": 1, "n15075141": 1000}


class Sample(NamedTuple):
    """A picture of a source: its split, class, file name and bytes."""

    split: str
    label: str
    file: str
    data: bytes

    @property
    def name(self) -> str:
        """The name under which every form gives it."""
        return f"{self.label}/{self.file}"


def jpeg(seed: int, width: int = 24, height: int = 20, **options: object) -> bytes:
    """Return the bytes of a small JPEG picture that differs for each seed."""
    low = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    picture = Image.fromarray(low).resize((width, height), Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=85, **options)
    return stream.getvalue()


def samples(
    train: int = 3, val: int = 2, classes: Sequence[str] = SYNSETS, make: Callable[[int], bytes] = jpeg
) -> list[Sample]:
    """Return samples named as those of ILSVRC2012: `train` and `val` pictures of each class.

    The validation pictures of a class do not follow one another.
    """
    made = []
    for position, label in enumerate(classes):
        for number in range(train):
            # The numbers in the names of training pictures have no fixed width.
            made.append(
                Sample("train", label, f"{label}_{number * 7 + 5}.JPEG", make(1000 * position + number))
            )
    for number in range(val * len(classes)):
        label = classes[(number * 3 + number // len(classes)) % len(classes)]
        made.append(Sample("val", label, f"ILSVRC2012_val_{number + 1:08d}.JPEG", make(1_000_000 + number)))
    return made


def of_split(made: Iterable[Sample], split: str) -> list[Sample]:
    """Return the samples of a split, in the order of their files' names."""
    return sorted((one for one in made if one.split == split), key=lambda one: one.file)


def write(path: Path, data: bytes) -> None:
    """Write a file, and make its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def as_folders(root: Path, made: Sequence[Sample], train: str = "train", val: str = "val") -> Path:
    """Write a folder for each class, in train/ and val/."""
    for one in made:
        write(root / {"train": train, "val": val}[one.split] / one.label / one.file, one.data)
    return root


def as_cls_loc(root: Path, made: Sequence[Sample]) -> Path:
    """Write the layout CLS-LOC: classes in train/, val/ without folders, and their labels in a table."""
    place = root / "ILSVRC" / "Data" / "CLS-LOC"
    for one in made:
        write(place / one.split / (one.label if one.split == "train" else "") / one.file, one.data)
    lines = [f"{Path(one.file).stem},{one.label} 10 20 30 40 " for one in of_split(made, "val")]
    (root / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *lines[::-1], ""]))
    mapping = sorted({one.label for one in made})
    (root / "LOC_synset_mapping.txt").write_text("".join(f"{label} a, b\n" for label in mapping))
    return root


def tar_of(members: Iterable[tuple[str, bytes]]) -> bytes:
    """Return a tar archive of files."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def devkit_files(labels: Sequence[str], ids: dict[str, int]) -> dict[str, bytes]:
    """Return meta.mat and the ground truth of the devkit, for the classes of the validation pictures."""
    kinds = [("ILSVRC2012_ID", object), ("WNID", object), ("words", object), ("num_children", object)]
    # A synset with children comes last, as in the published file; its id is over 1000.
    rows = [(ids[label], label, "a, b", 0) for label in sorted(ids, key=lambda label: ids[label])]
    table = np.array([*rows, (1001, "n00001740", "entity", 2)], dtype=kinds)
    stream = io.BytesIO()
    savemat(stream, {"synsets": table.reshape(-1, 1)})
    truth = "".join(f"{ids[label]}\n" for label in labels).encode()
    return {"meta.mat": stream.getvalue(), "ILSVRC2012_validation_ground_truth.txt": truth}


def devkit(labels: Sequence[str], ids: dict[str, int] | None = None) -> bytes:
    """Return the archive of the devkit, compressed."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, data in devkit_files(labels, ids or IDS).items():
            info = tarfile.TarInfo(f"ILSVRC2012_devkit_t12/data/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def as_archives(root: Path, made: Sequence[Sample], ids: dict[str, int] | None = None) -> Path:
    """Write the archives of ILSVRC2012, and its devkit."""
    train = of_split(made, "train")
    inner = [
        (f"{label}.tar", tar_of((one.file, one.data) for one in train if one.label == label))
        for label in sorted({one.label for one in train})
    ]
    val = of_split(made, "val")
    write(root / "ILSVRC2012_img_train.tar", tar_of(inner))
    write(root / "ILSVRC2012_img_val.tar", tar_of((one.file, one.data) for one in val))
    write(root / "ILSVRC2012_devkit_t12.tar.gz", devkit([one.label for one in val], ids))
    return root


def varint(value: int) -> bytes:
    """Return a whole number as a protocol buffer has it."""
    value &= (1 << 64) - 1
    parts = []
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def sized(number: int, data: bytes) -> bytes:
    """Return a field with a length."""
    return varint(number << 3 | 2) + varint(len(data)) + data


def feature(name: str, value: bytes | int, packed: bool = True) -> bytes:
    """Return an entry of the map of an Example."""
    if isinstance(value, bytes):
        content = sized(1, sized(1, value))
    else:
        content = sized(3, sized(1, varint(value)) if packed else varint(1 << 3) + varint(value))
    return sized(1, sized(1, name.encode()) + sized(2, content))


def example(features: dict[str, bytes | int], packed: bool = True) -> bytes:
    """Return a serialized Example."""
    return sized(1, b"".join(feature(name, value, packed) for name, value in features.items()))


def record(data: bytes) -> bytes:
    """Return a record with its length and both checksums."""
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", crc32c.masked(length)) + data + struct.pack("<I", crc32c.masked(data))


def example_of(one: Sample, label: int) -> bytes:
    """Return the Example of a sample with the features of TensorFlow's script."""
    return example(
        {
            "image/height": 20,
            "image/colorspace": b"RGB",
            "image/class/label": label,
            "image/class/synset": one.label.encode(),
            "image/class/text": b"red fox, Vulpes vulpes",
            "image/encoded": one.data,
            "image/filename": one.file.encode("utf-8", "surrogateescape"),
        }
    )


def as_tfrecords(root: Path, made: Sequence[Sample], train: int = 3, val: int = 2) -> Path:
    """Write TFRecords in some files for each split, in an order that is not that of the names."""
    root.mkdir(parents=True, exist_ok=True)
    labels = sorted({one.label for one in made})
    for split, name, files in (("train", "train", train), ("val", "validation", val)):
        records = [
            record(example_of(one, 1 + labels.index(one.label))) for one in of_split(made, split)[::-1]
        ]
        for number in range(files):
            path = root / f"{name}-{number:05d}-of-{files:05d}"
            path.write_bytes(b"".join(records[number::files]))
    return root


#: Writes the samples in a form, below a folder.
FORMS: dict[str, Callable[[Path, Sequence[Sample]], Path]] = {
    "archives": as_archives,
    "folders": as_folders,
    "cls-loc": as_cls_loc,
    "tfrecords": as_tfrecords,
}


#: What `hostile_members` adds to a class of training pictures, and a part of the reason for its rejection.
HOSTILE = {
    "loop.JPEG": "loop",
    "dangling.JPEG": "no such file",
    "fifo.JPEG": "FIFO",
    "socket.JPEG": "socket",
    "folder.JPEG": "folder with the name of a picture",
    "above": "a folder above it",
    "Thumbs.db": "not a picture",
    "notes.txt": "not a picture",
}


def hostile_members(folder: Path) -> None:
    """Add members to the folder of a class that cannot be pictures, and two hidden ones."""
    (folder / "loop.JPEG").symlink_to("loop.JPEG")
    (folder / "dangling.JPEG").symlink_to("nowhere.JPEG")
    os.mkfifo(folder / "fifo.JPEG")
    with socket.socket(socket.AF_UNIX) as one:
        # The path of a socket has at most 107 bytes.
        here = os.open(folder, os.O_RDONLY)
        one.bind(f"/proc/self/fd/{here}/socket.JPEG")
        os.close(here)
    write(folder / "folder.JPEG" / "inside.JPEG", jpeg(1))
    (folder / "above").symlink_to("..", target_is_directory=True)
    write(folder / "Thumbs.db", b"\xd0\xcf\x11\xe0" + bytes(100))
    write(folder / "notes.txt", b"these are pictures of fish\n")
    write(folder / ".DS_Store", b"\0\0\0\1Bud1")
    write(folder / "._hidden.JPEG", jpeg(2))


def refusal_within_bounds(action: Callable[[], object], most: int = 32 << 20) -> str:
    """Return the refusal of an action, "" if it is not refused; it may take `most` bytes of memory."""
    refusal = ""
    tracemalloc.start()
    try:
        action()
    except ConfigError as refused:
        refusal = str(refused)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < most, f"{peak >> 20} MiB"
    assert refusal.isprintable()
    return refusal
