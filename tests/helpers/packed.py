# SPDX-License-Identifier: Apache-2.0
"""Packed data sets for tests, written by h5py alone: what the packer must write too."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np

from aiperf_mpi.data.jpeg import encode
from aiperf_mpi.data.manifest import FILE, JPEG, RAW, SPLITS, Manifest, Shard


def numbered_pictures(first: int, count: int, side: int) -> np.ndarray:
    """Return pictures uint8 [count, side, side, 3] whose quarters show the four bytes of their number.

    The colours are far enough apart that JPEG keeps them: each quarter shows a byte as two of 16 greys, the
    upper half-byte in its upper half.
    """
    pictures = np.empty((count, side, side, 3), np.uint8)
    half, quarter = side // 2, side // 4
    for index in range(count):
        number = first + index
        for place in range(4):
            byte = (number >> (8 * place)) & 255
            y, x = half * (place // 2), half * (place % 2)
            pictures[index, y : y + quarter, x : x + half] = 8 + 16 * (byte >> 4)
            pictures[index, y + quarter : y + half, x : x + half] = 8 + 16 * (byte & 15)
    return pictures


def number_of(picture: np.ndarray) -> int:
    """Return the number that a picture of :func:`numbered_pictures` shows."""
    side, number = picture.shape[0], 0
    half, quarter = side // 2, side // 4
    for place in range(4):
        y, x = half * (place // 2), half * (place % 2)
        middle = slice(x + half // 4, x + half - half // 4)
        high = picture[y + quarter // 4 : y + quarter - quarter // 4, middle].mean() // 16
        low = picture[y + quarter + quarter // 4 : y + half - quarter // 4, middle].mean() // 16
        number |= (int(high) << 4 | int(low)) << (8 * place)
    return number


def write_shard(
    path: Path, encoding: str, images: np.ndarray, labels: np.ndarray, split: str, index: int
) -> Shard:
    """Write a shard, and return its line of the manifest."""
    with h5py.File(path, "w") as file:
        if encoding == RAW:
            file.create_dataset("images", data=images, track_times=False)
        else:
            files = [np.frombuffer(encode(image), np.uint8) for image in images]
            offsets = np.cumsum([0, *map(len, files)], dtype=np.uint64)
            file.create_dataset("jpeg", data=np.concatenate(files), track_times=False)
            file.create_dataset("offsets", data=offsets, track_times=False)
        file.create_dataset("labels", data=labels, dtype=np.int32, track_times=False)
        names = [f"{split}/{index}/{place}".encode() for place in range(len(labels))]
        file.create_dataset("names", data=names, dtype=h5py.string_dtype(), track_times=False)
        values = {"split": split, "index": index, "encoding": encoding, "side": images.shape[1], "version": 1}
        file.attrs.update(values)
    content = path.read_bytes()
    return Shard(path.name, len(labels), len(content), hashlib.sha256(content).hexdigest())


def write_packed(
    folder: Path,
    splits: Mapping[str, tuple[np.ndarray, np.ndarray]],
    classes: int,
    encoding: str = RAW,
    shard_images: int = 16,
) -> Manifest:
    """Write a packed set of pictures (uint8 [N, S, S, 3]) and labels; return its manifest."""
    shards: dict[str, list[Shard]] = {split: [] for split in SPLITS}
    for split, (images, labels) in splits.items():
        for index, start in enumerate(range(0, len(labels), shard_images)):
            part = slice(start, start + shard_images)
            path = folder / f"{split}-{index:05d}.h5"
            shards[split].append(write_shard(path, encoding, images[part], labels[part], split, index))
    manifest = Manifest(
        name="test",
        encoding=encoding,
        side=next(iter(splits.values()))[0].shape[1],
        classes=tuple(f"class {number:05d}" for number in range(classes)),
        splits={split: tuple(found) for split, found in shards.items()},
        mean=(0.5, 0.5, 0.5),
        deviation=(0.25, 0.25, 0.25),
    )
    (folder / FILE).write_text(manifest.to_json())
    return manifest


def numbered_set(
    folder: Path, train: int = 70, val: int = 30, side: int = 32, encoding: str = RAW, shard_images: int = 16
) -> Manifest:
    """Write a packed set whose pictures show their labels: training 0, 1, ..., validation after them."""
    splits = {
        "train": (numbered_pictures(0, train, side), np.arange(train, dtype=np.int32)),
        "val": (numbered_pictures(train, val, side), np.arange(train, train + val, dtype=np.int32)),
    }
    return write_packed(folder, splits, train + val, encoding, shard_images)


def rewrite(folder: Path, manifest: Manifest, **changes: object) -> Manifest:
    """Write the manifest again with other values, as a program that believes them would."""
    changed = replace(manifest, **changes)  # type: ignore[arg-type]
    (folder / FILE).write_text(changed.to_json())
    return changed


__all__ = ["JPEG", "RAW", "number_of", "numbered_pictures", "numbered_set", "rewrite", "write_packed"]
