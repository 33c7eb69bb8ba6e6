# SPDX-License-Identifier: Apache-2.0
"""The manifest of a packed data set: what its folder holds, with a hash of each shard.

`python -m aiperf_mpi pack` writes it last, as `manifest.json`; a folder without one is not a data set.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from aiperf_mpi.files import FileError, read_text

FILE = "manifest.json"
FORMAT = "aiperf_mpi packed images"

#: Version of the manifest and of the shards; a reader takes this one and older ones.
VERSION = 1

RAW, JPEG = "raw", "jpeg"
ENCODINGS = (RAW, JPEG)

TRAIN, VAL = "train", "val"
SPLITS = (TRAIN, VAL)

#: Largest manifest that is read, in bytes. ImageNet's has 0.1 MB; a rejected picture takes some 100 bytes.
_MOST_BYTES = 256 << 20

#: Smallest deviation of a colour: that of one value in all of ImageNet is larger, and 32-bit arithmetic
#: divides by it.
LEAST_DEVIATION = 1e-9

#: Key of a result's record, and how many rejected pictures it lists at most.
REJECTED_COUNT, _RECORDED_REJECTED = "rejected_count", 20

#: Key of a result's record with the labels of a data set that has a reference.
LABELS = "labels"

_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of a packed set: its name in the folder, its number of images, its size in bytes, its hash."""

    file: str
    images: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """A member of the source that is not in the packed set, and why. `name` is printable."""

    split: str
    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class LabelFacts:
    """The labels of the pictures that a run uses, as its trainers find them in the shards.

    Attributes:
        train, val: number of pictures of each class.
        val_sha256: :func:`aiperf_mpi.config.ilsvrc.hash_of_labels` of the validation pictures.
    """

    train: tuple[int, ...]
    val: tuple[int, ...]
    val_sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of a packed data set.

    Attributes:
        name: name of the set, `ILSVRC2012` for ImageNet.
        encoding: `raw` pixels or `jpeg` files, see :mod:`aiperf_mpi.data.shard`.
        side: height and width in pixels of every picture as it leaves the loader.
        classes: name of each label, in the order of the labels.
        splits: shards of the training and of the validation pictures.
        mean, deviation: of each colour of the training pictures, scaled to 0..1.
        rejected: members of the source that are not in the set.
        source: form of the source, and its archives where they are known.
        versions: versions of the libraries that decoded and wrote.
        standin: whether the pictures are made up, with the counts of another set.
    """

    name: str
    encoding: str
    side: int
    classes: tuple[str, ...]
    splits: Mapping[str, tuple[Shard, ...]]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    rejected: tuple[Rejected, ...] = ()
    source: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    standin: bool = False

    def images(self, split: str) -> int:
        """Return the number of pictures of a split."""
        return sum(shard.images for shard in self.splits[split])

    @property
    def bytes(self) -> int:
        """Size of all shards together."""
        return sum(shard.bytes for shards in self.splits.values() for shard in shards)

    @property
    def sha256(self) -> str:
        """Hash of what a run sees: encoding, side, classes, moments, and the hashes of the shards, in order.

        Whether the set is a stand-in is in it as well: the hash is that of made-up pictures, or it is not.
        """
        content = {
            "standin": self.standin,
            "mean": list(self.mean),
            "deviation": list(self.deviation),
            "encoding": self.encoding,
            "side": self.side,
            "classes": list(self.classes),
            "shards": {split: [shard.sha256 for shard in self.splits[split]] for split in SPLITS},
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> str:
        """Return the text of the file; the same content gives the same bytes."""
        return json.dumps(self._document(), indent=1) + "\n"

    def to_record(self, labels: LabelFacts | None = None) -> str:
        """Return the manifest as a result stores it: on one line, with the number of rejected pictures.

        Only the first of these are in it, as there may be millions. `labels` are added where they are known.
        """
        document = self._document() | {REJECTED_COUNT: len(self.rejected)}
        document["rejected"] = document["rejected"][:_RECORDED_REJECTED]
        if labels is not None:
            document[LABELS] = asdict(labels)
        return json.dumps(document, separators=(",", ":"))

    def _document(self) -> dict[str, Any]:
        """Return the manifest as a JSON object, in the order of the file."""
        splits = {
            split: {"images": self.images(split), "shards": [asdict(shard) for shard in self.splits[split]]}
            for split in SPLITS
        }
        return {
            "format": FORMAT,
            "version": VERSION,
            "name": self.name,
            "standin": self.standin,
            "encoding": self.encoding,
            "side": self.side,
            "classes": list(self.classes),
            "splits": splits,
            "mean": list(self.mean),
            "deviation": list(self.deviation),
            "rejected": [asdict(one) for one in self.rejected],
            "source": dict(self.source),
            "versions": dict(self.versions),
            "content_sha256": self.sha256,
        }


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of the packed set in `folder`. Raises FileError with what is wrong."""
    path = folder / FILE
    try:
        document = json.loads(read_text(path, _MOST_BYTES))
    except (ValueError, RecursionError) as error:
        if isinstance(error, FileError):
            raise
        raise FileError(path, f"is not JSON ({str(error)[:100]}); pack the set again") from None
    try:
        return manifest_of(document)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        problem = f"lacks the key {error}" if isinstance(error, KeyError) else str(error)
        raise FileError(path, f"{problem[:200]}; pack the set again, or use the program that did") from None


def from_record(text: str) -> tuple[Manifest, int]:
    """Return the manifest that a result stores, and how many pictures were rejected.

    Raises ValueError, KeyError, TypeError, AttributeError, OverflowError or RecursionError for another text.
    """
    document = json.loads(text)
    manifest = manifest_of(document)
    count = document[REJECTED_COUNT]
    if not isinstance(count, int) or not 0 <= len(manifest.rejected) <= count:
        raise ValueError(f"{REJECTED_COUNT} is {str(count)[:40]}, fewer than are listed")
    return manifest, count


def labels_from_record(text: str) -> LabelFacts | None:
    """Return the labels that a result stores with its manifest, None without. Raises as `from_record`."""
    if (facts := json.loads(text).get(LABELS)) is None:
        return None
    train, val = (tuple(map(_whole, _list(facts[split]))) for split in SPLITS)
    return LabelFacts(train, val, _text(facts["val_sha256"]))


def manifest_of(document: Any) -> Manifest:
    """Return the manifest of a document. Raises what `from_record` does for another form."""
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError("is not the manifest of a packed data set")
    if (version := _whole(document["version"])) > VERSION:
        raise ValueError(f"has version {version}, but this program reads versions up to {VERSION}")
    manifest = Manifest(
        name=_text(document["name"]),
        encoding=_text(document["encoding"]),
        side=_whole(document["side"]),
        classes=tuple(_text(name) for name in _list(document["classes"])),
        splits={
            split: tuple(_shard(one) for one in _list(document["splits"][split]["shards"]))
            for split in SPLITS
        },
        mean=tuple(_real(value) for value in _list(document["mean"])),
        deviation=tuple(_real(value) for value in _list(document["deviation"])),
        rejected=tuple(
            Rejected(_text(one["split"]), _text(one["name"]), _text(one["reason"]))
            for one in document["rejected"]
        ),
        source={_text(key): _text(value) for key, value in document["source"].items()},
        versions={_text(key): _text(value) for key, value in document["versions"].items()},
        standin=document["standin"] is True,
    )
    if problem := _problem(manifest):
        raise ValueError(problem)
    for split in SPLITS:
        if (stated := _whole(document["splits"][split]["images"])) != (count := manifest.images(split)):
            raise ValueError(f"says {stated} pictures of {split}, but its shards have {count}")
    if document["content_sha256"] != manifest.sha256:
        raise ValueError("content_sha256 is not the hash of the content: the file was changed by hand")
    return manifest


def _text(value: Any) -> str:
    """Return a value that must be a printable text. Raises TypeError."""
    if not isinstance(value, str) or not value.isprintable():
        raise TypeError(f"{value!r} is not a printable text")
    return value


def _list(value: Any) -> list[Any]:
    """Return a value that must be a list. Raises TypeError."""
    if not isinstance(value, list):
        raise TypeError(f"{str(value)[:40]} is not a list")
    return value


def _whole(value: Any) -> int:
    """Return a value that must be a whole number of 63 bits, as counts and sizes are. Raises TypeError."""
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise TypeError(f"{str(value)[:40]} is not a whole number from 0 to {(1 << 63) - 1}")
    return value


def _real(value: Any) -> float:
    """Return a value that must be a number from 0 to 1, as the moments of colours are. Raises TypeError."""
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise TypeError(f"{str(value)[:40]} is not a number from 0 to 1")
    return float(value)


def _shard(document: Any) -> Shard:
    """Return a shard of the manifest. Raises ValueError, KeyError or TypeError."""
    shard = Shard(
        _text(document["file"]),
        _whole(document["images"]),
        _whole(document["bytes"]),
        _text(document["sha256"]),
    )
    if not _SHARD_NAME.fullmatch(shard.file):
        raise ValueError(f"{shard.file!r} is not the name of a shard in the folder")
    if not _SHA256.fullmatch(shard.sha256):
        raise ValueError(f"{shard.file}: sha256 is not a SHA-256")
    if shard.images < 1 or shard.bytes < shard.images:
        raise ValueError(f"{shard.file}: {shard.images} images in {shard.bytes} bytes")
    return shard


def _problem(manifest: Manifest) -> str:
    """Return what is wrong with the values of a manifest, or ""."""
    names = [shard.file for shards in manifest.splits.values() for shard in shards]
    if manifest.encoding not in ENCODINGS:
        return f"the encoding {manifest.encoding!r} is not one of {', '.join(ENCODINGS)}"
    if not 8 <= manifest.side <= 4096:
        return f"the side {manifest.side} is not within 8 and 4096"
    if len(manifest.classes) < 2 or len(set(manifest.classes)) != len(manifest.classes):
        return f"{len(manifest.classes)} classes: they must be two or more, each once"
    if len(manifest.mean) != 3 or len(manifest.deviation) != 3 or min(manifest.deviation) < LEAST_DEVIATION:
        return f"mean and deviation are not three numbers each, the deviation {LEAST_DEVIATION} or more"
    if len(set(names)) != len(names):
        return "a shard is named twice"
    return next((f"{split} has no shard" for split in SPLITS if not manifest.splits[split]), "")
