# SPDX-License-Identifier: Apache-2.0
"""Pictures in TFRecords, as the authors' script and TensorFlow's make them: 1024 and 128 files.

A record is its length (8 bytes, little-endian), the checksum of the length, the data, the checksum of the
data. The data is an Example. Its label counts from 1, as 0 means background; here labels follow the sorted
synsets. The scripts convert the PNG and the CMYK files of ImageNet to RGB JPEG: these bytes differ from the
archives'.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from aiperf_mpi.config import ConfigError
from aiperf_mpi.config.paths import message, reading
from aiperf_mpi.data.manifest import TRAIN, VAL, Rejected
from aiperf_mpi.packing.sources import crc32c
from aiperf_mpi.packing.sources.example import Example, ExampleError
from aiperf_mpi.packing.sources.fileparts import FileParts
from aiperf_mpi.packing.sources.form import SETTING, Form, pool
from aiperf_mpi.packing.sources.pictures import (
    BEGINNING_BYTES,
    EMPTY,
    MOST_BYTES,
    NO_PICTURE,
    Found,
    Member,
    SourceError,
    is_hidden,
    may_be_picture,
    readable,
)

#: Name, number and count of a file.
_FILE = re.compile(r"(train|validation|val)-(\d{5})-of-(\d{5})")

#: Folders in which the files of a split may be, below the one that is named.
_FOLDERS = {TRAIN: ("", "train"), VAL: ("", "validation", "val")}
_SPLITS = {"train": TRAIN, "validation": VAL, "val": VAL}

_ENCODED, _LABEL = b"image/encoded", b"image/class/label"
_SYNSET, _FILENAME = b"image/class/synset", b"image/filename"
_WANTED = (_ENCODED, _LABEL, _SYNSET, _FILENAME)

_HEAD, _FOOT = struct.Struct("<QI"), struct.Struct("<I")

_DAMAGED = "copy or make the file again; files that were compressed must be unpacked"


class RecordReader:
    """Reads pictures in records.

    A place is file, offset and size of the record, and begin and size of the picture in it.
    """

    def __init__(self, files: FileParts) -> None:
        self.files = files

    def read(self, member: bytes, place: Sequence[int]) -> bytes:
        """Return a picture. Raises SourceError, with file and offset, if its record's checksum is wrong."""
        file, offset, size, begin, count = place
        if not count:
            raise SourceError(EMPTY)
        if not crc32c.FAST:
            return self.files.read(file, offset + begin, count)
        record = self.files.read(file, offset, size + _FOOT.size)
        if _FOOT.unpack(record[size:])[0] != crc32c.masked(record[:size]):
            name = self.files.path(file).name
            raise SourceError(f"has a wrong checksum: {name}, record at byte {offset - _HEAD.size}")
        return record[begin : begin + count]


@dataclass(slots=True)
class _Labels:
    """Label of each class in the records, and class of each label."""

    numbers: dict[bytes, int] = field(default_factory=dict)
    names: dict[int, bytes] = field(default_factory=dict)

    def agree(self, path: Path, name: bytes, number: int, where: str) -> None:
        """Raise ConfigError if a class has another label than before, or a label another class."""
        label, same = self.numbers.setdefault(name, number), self.names.setdefault(number, name)
        reason = ""
        if label != number:
            reason = f"{where}: {readable(name)} has the label {number}, but {label} before"
        elif same != name:
            reason = f"{where}: {readable(name)} has the label {number}, as {readable(same)} has"
        if reason:
            raise ConfigError(
                message(SETTING, path, reason, "make the files again, with one list of synsets")
            )


#: Label of a class in a file, and the record that first had it.
_Seen = dict[tuple[bytes, int], str]


def find(path: Path) -> Form | None:
    """Return the pictures of the TFRecords in a folder, or None. Raises ConfigError, OSError."""
    paths = {split: _files_of(split, path) for split in _FOLDERS}
    if not all(paths.values()):
        return None
    files = FileParts([file for split in _FOLDERS for file in paths[split]])
    first, splits = 0, {}
    labels = _Labels()
    for split, its in paths.items():
        splits[split] = _split(split, files, range(first, first + len(its)), labels)
        first += len(its)
    unchecked = "only the checksums of the records' lengths are checked: install google-crc32c to check all"
    description = {
        "files": ", ".join(f"{len(its)} for {split}" for split, its in paths.items()),
        "checksums": "of records and lengths" if crc32c.FAST else "of lengths",
    }
    return Form("tfrecords", splits, description, () if crc32c.FAST else (unchecked,))


def _files_of(split: str, path: Path) -> list[Path]:
    """Return the files of a split, in their order. Raises ConfigError if one of them is missing."""
    for folder in (path / name for name in _FOLDERS[split]):
        matches = [_FILE.fullmatch(name) for name in sorted(os.listdir(folder))] if folder.is_dir() else []
        its = [match for match in matches if match and _SPLITS[match[1]] == split]
        if not its:
            continue
        if len({(match[1], match[3]) for match in its}) > 1:
            reason = f"has files of several sets: {its[0][0]}, {its[-1][0]}"
            raise ConfigError(message(SETTING, folder, reason, "leave the files of one set there"))
        count = int(its[0][3])
        there = {int(match[2]) for match in its}
        if max(there) >= count:
            reason = f"has the file {its[-1][0]}, whose number is not below {count}"
            raise ConfigError(message(SETTING, folder, reason, "leave the files of one set there"))
        if lacking := sorted(set(range(count)) - there):
            reason = f"lacks {len(lacking)} of {count} files for {split}: number {lacking[0]} is the first"
            raise ConfigError(message(SETTING, folder, reason, "copy all files of the set"))
        return [folder / match[0] for match in its]
    return []


def _split(split: str, files: FileParts, numbers: Sequence[int], labels: _Labels) -> Found:
    """Return the pictures of some files. Raises ConfigError for damaged files and labels that differ."""
    found = Found(RecordReader(files))

    def of_file(file: int) -> tuple[Found, _Seen]:
        its, seen = Found(found.reader), _Seen()
        with reading(SETTING, files.path(file), _DAMAGED):
            for index, (offset, size) in enumerate(_records(files, file)):
                _note(split, files, file, index, offset, size, its, seen)
        return its, seen

    with pool() as threads:
        for file, (its, seen) in zip(numbers, threads.map(of_file, numbers), strict=True):
            found.members += its.members
            found.classes |= its.classes
            found.rejected += its.rejected
            found.hidden += its.hidden
            for (name, number), where in seen.items():
                labels.agree(files.path(file), name, number, where)
    return found


def _records(files: FileParts, file: int) -> Iterator[tuple[int, int]]:
    """Yield offset and size of the data of each record. Raises ConfigError, with the offset, for damage."""
    position, end = 0, files.size(file)
    while position < end:
        head = files.read(file, position, _HEAD.size)
        problem, size = "", 0
        if len(head) < _HEAD.size:
            problem = "the file is cut off"
        else:
            size, checksum = _HEAD.unpack(head)
            if checksum != crc32c.masked(head[:8]):
                problem = "the checksum of a record's length is wrong"
            elif size > end - position - _HEAD.size - _FOOT.size:
                problem = "the file is cut off"
            elif size > MOST_BYTES:
                problem = f"a record has {size} bytes, but {MOST_BYTES} is the most that is read"
        if problem:
            raise ConfigError(message(SETTING, files.path(file), f"byte {position}: {problem}", _DAMAGED))
        yield position + _HEAD.size, size
        position += _HEAD.size + size + _FOOT.size


def _note(
    split: str, files: FileParts, file: int, index: int, offset: int, size: int, found: Found, seen: _Seen
) -> None:
    """Put a record down as a picture, or as rejected; and the label of its class in `seen`."""
    where = f"record at byte {offset - _HEAD.size}"

    def reject(name: str, reason: str) -> None:
        found.rejected.append(Rejected(split, name, reason))

    nameless = f"{files.path(file).name}, {where}"
    try:
        example = Example(lambda begin, count: files.read(file, offset + begin, count), size, _WANTED)
        synset, base = example.text(_SYNSET), example.text(_FILENAME).rpartition(b"/")[2]
    except ExampleError as error:
        return reject(nameless, f"{error}: it is not an Example")
    number = example.numbers.get(_LABEL)
    if not synset and number is None:
        return reject(nameless, f"has neither {_SYNSET.decode()} nor {_LABEL.decode()}")
    # Classes without a synset are named after their numbers, in whose order they are sorted.
    synset = synset.replace(b"/", b"_") or b"%06d" % (number or 0)
    base = base or f"{files.path(file).name}-{index:06d}".encode()
    name = synset + b"/" + base
    if _ENCODED not in example.spans:
        return reject(readable(name), f"has no {_ENCODED.decode()}: {nameless}")
    begin, end = example.spans[_ENCODED]
    if is_hidden(base):
        found.hidden += 1
    elif not may_be_picture(
        base, lambda: files.read(file, offset + begin, min(end - begin, BEGINNING_BYTES))
    ):
        reject(readable(name), NO_PICTURE)
    else:
        found.members.append(Member(name, (file, offset, size, begin, end - begin)))
        if number is not None:
            seen.setdefault((synset, number), where)
        found.classes.add(readable(synset))
