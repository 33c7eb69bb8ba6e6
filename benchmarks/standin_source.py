# SPDX-License-Identifier: Apache-2.0
"""Make a source with the counts and the classes' form of ILSVRC2012 from generated pictures, as TFRecords.

A picture has 64 x 64 pixels and some 1.5 KB. Its low frequencies are its class, so that a network can learn
them; every class has some variants, and each file has its own name in a comment, so that no two are equal.
The file STANDIN, which is written first, marks the source: what is packed of it is a stand-in.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from aiperf_mpi.packing.source import STANDIN
from aiperf_mpi.packing.sources.crc32c import masked
from aiperf_mpi.packing.sources.ilsvrc import CLASSES, FIRST, LAST, OF_A_CLASS
from aiperf_mpi.paper import IMAGENET_IMAGES

#: Files of each split, as the authors' and TensorFlow's scripts make them; by the name in the files' names.
FILES = {"train": 1024, "validation": 128}

#: Of so many classes ILSVRC2012 has the most training pictures, 1300; the others have 732 and more.
_FULL = 895

SIDE, VARIANTS, QUALITY = 64, 4, 75

#: Pixels of the grid that a class is recognised by, and the deviation of the noise of a variant.
_GRID, _NOISE = 5, 10.0

_SEED = 12


class Member(NamedTuple):
    """A picture to write: its label from 0, its number, and the name of its file."""

    label: int
    number: int
    name: str


def class_names() -> list[str]:
    """Return 1000 names in the form of synsets, sorted; the first and the last are those of ILSVRC2012."""
    offsets = np.linspace(int(FIRST[1:]), int(LAST[1:]), CLASSES).astype(int)
    return [f"n{offset:08d}" for offset in offsets]


def class_counts(scale: float = 1.0) -> np.ndarray:
    """Return the number of training pictures of each class, int64 [1000]: in all 1,281,167 times `scale`."""
    least, most = OF_A_CLASS["train"]
    few = CLASSES - _FULL
    # A rising curve between the bounds; what its sum lacks or has too much is spread over its middle.
    mean = (IMAGENET_IMAGES[0] - _FULL * most) / few
    power = (most - least) / (mean - least) - 1
    curve = least + (most - least) * np.linspace(0, 1, few) ** power
    counts = np.full(CLASSES, most, np.int64)
    counts[:few] = np.rint(curve)
    counts[few // 2 :][: few // 4] += _spread(IMAGENET_IMAGES[0] - int(counts.sum()), few // 4)
    counts = np.random.default_rng(_SEED).permutation(counts)
    return counts if scale == 1 else np.maximum(1, np.rint(counts * scale).astype(np.int64))


def _spread(total: int, parts: int) -> np.ndarray:
    """Return `parts` whole numbers that differ by at most one and have the sum `total`."""
    return np.diff(np.linspace(0, total, parts + 1).astype(np.int64))


@lru_cache(maxsize=CLASSES * VARIANTS)
def picture(label: int, variant: int) -> bytes:
    """Return the JPEG file of a variant of a class, without its name."""
    grid = np.random.default_rng((_SEED, label)).integers(0, 256, (_GRID, _GRID, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(grid).resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float64)
    noise = np.random.default_rng((_SEED, label, variant)).normal(0, _NOISE, (SIDE, SIDE, 1))
    stream = io.BytesIO()
    Image.fromarray(np.clip(smooth + noise, 0, 255).astype(np.uint8)).save(stream, "JPEG", quality=QUALITY)
    return stream.getvalue()


def named_picture(member: Member) -> bytes:
    """Return the JPEG file of a member: that of its class and variant, with its name in a comment."""
    data, text = picture(member.label, member.number % VARIANTS), member.name.encode()
    # The comment follows the first two segments: the beginning of the file, and JFIF.
    place = 4 + struct.unpack(">H", data[4:6])[0]
    return data[:place] + b"\xff\xfe" + struct.pack(">H", 2 + len(text)) + text + data[place:]


def members(split: str, scale: float = 1.0) -> list[Member]:
    """Return the pictures of a split in the mixed order of the records."""
    names = class_names()
    if split == "train":
        counts = class_counts(scale)
        labels = np.repeat(np.arange(CLASSES), counts)
        numbers = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    else:
        each = max(1, round(IMAGENET_IMAGES[1] // CLASSES * scale))
        labels, numbers = np.tile(np.arange(CLASSES), each), np.arange(CLASSES * each) + 1
    order = np.random.default_rng(_SEED).permutation(len(labels))
    form = "{0}_{1}.JPEG" if split == "train" else "ILSVRC2012_val_{1:08d}.JPEG"
    return [
        Member(label, number, form.format(names[label], number))
        for label, number in zip(labels[order].tolist(), numbers[order].tolist(), strict=True)
    ]


# -- records ---------------------------------------------------------------------------------------


def record(member: Member, synset: str) -> bytes:
    """Return the record of a picture, with its length and both checksums."""
    data = _sized(
        1,
        b"".join(
            _sized(1, _sized(1, name) + _sized(2, value))
            for name, value in (
                (b"image/class/label", _sized(3, _sized(1, _varint(member.label + 1)))),
                (b"image/class/synset", _bytes_list(synset.encode())),
                (b"image/encoded", _bytes_list(named_picture(member))),
                (b"image/filename", _bytes_list(member.name.encode())),
            )
        ),
    )
    length = struct.pack("<Q", len(data))
    return b"".join((length, struct.pack("<I", masked(length)), data, struct.pack("<I", masked(data))))


def _varint(value: int) -> bytes:
    """Return a whole number, at least 0, as a protocol buffer has it."""
    parts = bytearray()
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def _sized(number: int, data: bytes) -> bytes:
    """Return a field with a length."""
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _bytes_list(value: bytes) -> bytes:
    """Return a feature of one text."""
    return _sized(1, _sized(1, value))


# -- writing ---------------------------------------------------------------------------------------


def write_source(folder: Path, scale: float, say: Callable[[str], None]) -> None:
    """Write the files that are not there yet. Raises ValueError where they are of another scale."""
    folder.mkdir(parents=True, exist_ok=True)
    mark, text = folder / STANDIN, f"made-up pictures, {scale:g} of the counts of ILSVRC2012\n"
    if not mark.exists():
        mark.write_text(text)
    if mark.read_text() != text:
        raise ValueError(f"{mark} says: {mark.read_text().strip()}; name another folder")
    names = class_names()
    for split, paths in files(folder).items():
        lacking = [number for number, path in enumerate(paths) if not path.exists()]
        its = members(split, scale) if lacking else []
        for number in lacking:
            _write(paths[number], (record(one, names[one.label]) for one in its[number :: len(paths)]))
        say(f"{split}: {len(paths)} files of records, {len(lacking)} of them written now")


def files(folder: Path) -> dict[str, list[Path]]:
    """Return the files of each split."""
    return {
        split: [folder / f"{split}-{number:05d}-of-{count:05d}" for number in range(count)]
        for split, count in FILES.items()
    }


def _write(path: Path, records: Iterator[bytes]) -> None:
    """Write a file under another name first, so that one that is there is whole."""
    unfinished = path.with_name(f".{path.name}")
    with unfinished.open("wb") as file:
        for one in records:
            file.write(one)
    unfinished.replace(path)
