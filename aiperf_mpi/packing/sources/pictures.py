# SPDX-License-Identifier: Apache-2.0
"""The pictures of a source, whatever its form: their names, labels and bytes.

ImageNet has 1.3 million pictures. A :class:`Pictures` keeps some 80 bytes for each, and makes a Picture when
it is asked for one. It can be pickled: one rank looks at the source, the others receive what it found.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol, overload

import numpy as np

from aiperf_mpi.data.manifest import Rejected
from aiperf_mpi.files import FileError, read_bytes

#: Most bytes of one picture. The largest file of ImageNet has some 15 MB.
MOST_BYTES = 128 << 20

#: Endings of names that are taken for pictures without a look at the content.
SUFFIXES = b".jpeg .jpg .jpe .jfif .png .gif .bmp .tif .tiff .webp .ppm .pgm .pbm".split()

#: How the content of the same formats begins; a WebP file is a RIFF file.
_BEGINNINGS = (
    b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"RIFF", b"P4", b"P5", b"P6"
)  # fmt: skip
BEGINNING_BYTES = 8

#: Errors of the system that are the fault of the one file, not of the host or its file server.
_OF_THE_FILE = (errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO, errno.ENODEV)

EMPTY = "has no bytes"
NO_PICTURE = "is not a picture, by its name and its first bytes"
TWICE = "is the second member of this name"


class SourceError(ValueError):
    """A picture cannot be read, and it is its own fault: it is rejected. The text is the reason.

    An error of the host or of its file server is a FileError or an OSError: the picture may be read another
    time.
    """


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture of a source.

    Attributes:
        split: `train` or `val`.
        name: class and file, such as `n01440764/n01440764_10026.JPEG`; printable, unique in its split.
        label: position of its class in the classes of the source.
        read: return its bytes; any thread may call it. Raises SourceError, FileError or OSError.
    """

    split: str
    name: str
    label: int
    read: Callable[[], bytes]


class Reader(Protocol):
    """What reads the pictures of a split."""

    def read(self, member: bytes, place: Sequence[int]) -> bytes:
        """Return the bytes of a member; `place` is what the form keeps of it.

        Raises SourceError, FileError and OSError.
        """


class Member(NamedTuple):
    """A picture as it was found: `class/file` as the source spells it, and its place in the source."""

    name: bytes
    place: tuple[int, ...] = ()


@dataclass(slots=True)
class Found:
    """What a form found for one split.

    Attributes:
        members: the pictures, in any order.
        classes: names of the classes, also of those without a picture.
        rejected: members that cannot be pictures.
        hidden: number of hidden files and folders, which are left out.
        reader: reads the members.
    """

    reader: Reader
    members: list[Member] = field(default_factory=list)
    classes: set[str] = field(default_factory=set)
    rejected: list[Rejected] = field(default_factory=list)
    hidden: int = 0


def readable(name: bytes) -> str:
    """Return the name of a member in printable characters; two names never give the same text.

    What cannot be printed, what is not UTF-8 and the backslash are escaped as Python does.
    """
    text = name.decode("utf-8", "surrogateescape")
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(
        letter if letter.isprintable() and letter != "\\" else letter.encode("unicode_escape").decode()
        for letter in text
    )


def may_be_picture(name: bytes, beginning: Callable[[], bytes]) -> bool:
    """Whether a member is worth decoding: by its name, or else by its first bytes, which are read then."""
    return os.path.splitext(name)[1].lower() in SUFFIXES or beginning().startswith(_BEGINNINGS)


def is_hidden(name: bytes) -> bool:
    """Whether the name of a file or folder begins with a dot: macOS and editors leave such files.

    `.` and `..` are not names, but archives have them in their paths.
    """
    return name.startswith(b".") and name not in (b".", b"..")


def read_file(path: bytes | Path) -> bytes:
    """Return the bytes of a picture's file. Raises SourceError, or FileError where the host is at fault."""
    try:
        content = read_bytes(os.fsdecode(path), MOST_BYTES)
    except FileError as error:
        if error.errno and error.errno not in _OF_THE_FILE:
            raise
        raise SourceError(error.reason.partition(";")[0]) from None
    if not content:
        raise SourceError(EMPTY)
    return content


class _Reading:
    """Reads one picture when it is called; a closure could not be pickled."""

    __slots__ = ("_reader", "_member", "_place")

    def __init__(self, reader: Reader, member: bytes, place: tuple[int, ...]) -> None:
        self._reader, self._member, self._place = reader, member, place

    def __call__(self) -> bytes:
        return self._reader.read(self._member, self._place)


class Pictures(Sequence[Picture]):
    """The pictures of one split, in the order of their names."""

    def __init__(self, split: str, members: Sequence[Member], labels: Mapping[str, int], reader: Reader):
        """Keep `members`, whose names are in order and differ; `labels` are those of their classes."""
        self._split, self._reader = split, reader
        self._names = b"".join(member.name for member in members)
        self._ends = np.cumsum([0, *(len(member.name) for member in members)], dtype=np.int64)
        self._places = np.array([member.place for member in members], dtype=np.int64)
        self._labels = np.array([labels[class_of(member.name)] for member in members], dtype=np.int32)

    @property
    def labels(self) -> np.ndarray:
        """Label of each picture, int32 [n]."""
        return self._labels

    def __len__(self) -> int:
        return len(self._labels)

    @overload
    def __getitem__(self, index: int) -> Picture: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Picture]: ...
    def __getitem__(self, index: int | slice) -> Picture | Sequence[Picture]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"picture {index} of {len(self)}")
        index %= len(self)
        member = self._names[self._ends[index] : self._ends[index + 1]]
        read = _Reading(self._reader, member, tuple(self._places[index].tolist()))
        return Picture(self._split, readable(member), int(self._labels[index]), read)


def class_of(name: bytes) -> str:
    """Return the printable name of the class of the member `class/file`."""
    return readable(name.partition(b"/")[0])


def in_order(split: str, members: Iterable[Member]) -> tuple[list[Member], list[Rejected]]:
    """Return the members in the order of their printable names, and those rejected as they come twice."""
    kept: list[Member] = []
    rejected = []
    for member in sorted(members, key=lambda member: (readable(member.name), member.place)):
        if kept and kept[-1].name == member.name:
            rejected.append(Rejected(split, readable(member.name), TWICE))
        else:
            kept.append(member)
    return kept, rejected
