# SPDX-License-Identifier: Apache-2.0
"""Pictures in ImageNet's archives: a tar of one tar for each class, and a tar for validation.

Nothing is unpacked: the place of each member is noted, and a picture is one read at that place.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator, Sequence
from io import SEEK_CUR, SEEK_END, SEEK_SET, RawIOBase
from pathlib import Path
from typing import NamedTuple

from aiperf_mpi.config import ConfigError
from aiperf_mpi.config.paths import message, reading
from aiperf_mpi.data.manifest import TRAIN, VAL, Rejected
from aiperf_mpi.packing.sources import ilsvrc
from aiperf_mpi.packing.sources.fileparts import FileParts
from aiperf_mpi.packing.sources.form import SETTING, Form, pool
from aiperf_mpi.packing.sources.labels import find_labels
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

_TRAIN, _VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"

#: Most bytes of a header with its extensions; a longer one is damaged or hostile.
_MOST_HEADER = 1 << 20

_BLOCK = tarfile.BLOCKSIZE

_DAMAGED = "download the archive again, or unpack it and name the folder with train/ and val/"

#: What a member may be in place of a file.
_KINDS = {
    tarfile.SYMTYPE: "is a symbolic link in the archive",
    tarfile.LNKTYPE: "is a hard link in the archive",
    tarfile.FIFOTYPE: "is a FIFO in the archive",
    tarfile.CHRTYPE: "is a device in the archive",
    tarfile.BLKTYPE: "is a device in the archive",
    tarfile.DIRTYPE: "is a folder with the name of a picture",
}

_PICTURE = re.compile(rb".*\.(jpe?g|png)", re.IGNORECASE | re.DOTALL)


class ArchiveReader:
    """Reads members of archives at their places: number of the archive, offset and size in bytes."""

    def __init__(self, files: FileParts) -> None:
        self.files = files

    def read(self, member: bytes, place: Sequence[int]) -> bytes:
        """Return the bytes of a member. Raises SourceError, FileError, OSError."""
        file, offset, size = place
        if not size:
            raise SourceError(EMPTY)
        if size > MOST_BYTES:
            raise SourceError(f"has more than {MOST_BYTES} bytes, the most that is read")
        return self.files.read(file, offset, size)


class _Part(RawIOBase):
    """A part of a file, as tarfile reads it: never more than a header at a time."""

    def __init__(self, files: FileParts, file: int, begin: int, end: int) -> None:
        self._files, self._file, self._begin, self._end = files, file, begin, end
        self._position = 0

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        start = {SEEK_SET: 0, SEEK_CUR: self._position, SEEK_END: self._end - self._begin}[whence]
        if start + offset < 0:
            raise tarfile.ReadError("a size in a header is negative")
        self._position = start + offset
        return self._position

    def read(self, count: int = -1) -> bytes:
        if count < 0 or count > _MOST_HEADER:
            raise tarfile.ReadError("a header has more than 1 MiB")
        offset = self._begin + self._position
        content = self._files.read(self._file, offset, min(count, max(self._end - offset, 0)))
        self._position += len(content)
        return content


class _Entry(NamedTuple):
    """A member of an archive: its name, its type, and the place of its bytes in the file."""

    name: bytes
    type: bytes
    offset: int
    size: int


def find(path: Path) -> Form | None:
    """Return the pictures of the two archives of ILSVRC2012 in a folder, or None.

    Raises ConfigError and OSError.
    """
    if not all((path / name).exists() for name in (_TRAIN, _VAL)):
        return None
    files = FileParts([path / _TRAIN, path / _VAL])
    labels = find_labels([path])
    train = _train(files)
    members, val = _val(files)
    labels.applied(members, val)
    archives = [path / _TRAIN, path / _VAL]
    if labels.path.name in ilsvrc.MD5:
        archives.append(labels.path)
    description = {"train": _TRAIN, "val": _VAL, "labels of val": labels.file}
    description |= {f"published md5 of {one.name}": ilsvrc.MD5[one.name] for one in archives}
    return Form("archives", {TRAIN: train, VAL: val}, description, files=tuple(archives))


def _train(files: FileParts) -> Found:
    """Return the pictures of the archive of archives: one for each class, which it is named after."""
    found = Found(ArchiveReader(files))
    classes: list[tuple[bytes, _Entry]] = []
    for entry in _entries(files, 0, 0, files.size(0)):
        base = entry.name.rpartition(b"/")[2]
        if any(map(is_hidden, entry.name.split(b"/"))):
            found.hidden += 1
        elif entry.type in tarfile.REGULAR_TYPES and base.lower().endswith(b".tar"):
            classes.append((base[:-4], entry))
            found.classes.add(readable(base[:-4]))
        elif entry.type != tarfile.DIRTYPE:
            reason = _KINDS.get(entry.type, "is not the archive of a class")
            found.rejected.append(Rejected(TRAIN, readable(entry.name), reason))

    def of_class(one: tuple[bytes, _Entry]) -> Found:
        name, entry = one
        its = Found(found.reader)
        for member in _entries(files, 0, entry.offset, entry.offset + entry.size, readable(entry.name)):
            # An archive that was made anew may have the folder of the class in its names.
            spelled = _local(member.name).removeprefix(name + b"/")
            _note(TRAIN, files, 0, member, name + b"/" + spelled, its)
        return its

    with pool() as threads:
        for its in threads.map(of_class, classes):
            found.members += its.members
            found.rejected += its.rejected
            found.hidden += its.hidden
    return found


def _val(files: FileParts) -> tuple[list[Member], Found]:
    """Return the pictures of the archive for validation, without their classes, and what was rejected."""
    found = Found(ArchiveReader(files))
    for entry in _entries(files, 1, 0, files.size(1)):
        _note(VAL, files, 1, entry, _local(entry.name), found)
    members, found.members = found.members, []
    return members, found


def _note(split: str, files: FileParts, file: int, entry: _Entry, name: bytes, found: Found) -> None:
    """Put a member of an archive down as a picture, a hidden file, or as rejected."""
    base = name.rpartition(b"/")[2]
    if any(map(is_hidden, name.split(b"/"))):
        found.hidden += 1
        return
    if entry.type == tarfile.DIRTYPE and not _PICTURE.fullmatch(base):
        return
    reason = ""
    if entry.type not in tarfile.REGULAR_TYPES:
        reason = _KINDS.get(entry.type, "is not a file in the archive")
    elif entry.name.startswith(b"/") or b".." in entry.name.split(b"/"):
        reason = "has a name that leads out of the archive"
    elif not may_be_picture(base, lambda: files.read(file, entry.offset, min(entry.size, BEGINNING_BYTES))):
        reason = NO_PICTURE
    if reason:
        found.rejected.append(Rejected(split, readable(name), reason))
    else:
        found.members.append(Member(name, (file, entry.offset, entry.size)))


def _local(name: bytes) -> bytes:
    """Return the name of a member without what tar puts before it."""
    while name.startswith((b"./", b"/")):
        name = name.removeprefix(b".").lstrip(b"/")
    return name


def _entries(files: FileParts, file: int, begin: int, end: int, inner: str = "") -> Iterator[_Entry]:
    """Yield the members of the archive between two offsets of a file.

    Raises ConfigError, with the offset, for a damaged or shortened archive: what follows would be lost.
    """
    path = files.path(file)
    where = f"{inner}: " if inner else ""
    part = _Part(files, file, begin, end)

    def refusal(offset: int, reason: str) -> ConfigError:
        return ConfigError(message(SETTING, path, f"{where}byte {begin + offset}: {reason}", _DAMAGED))

    with reading(SETTING, path, _DAMAGED):
        try:
            tar = tarfile.open(fileobj=part, mode="r:", encoding="utf-8", errors="surrogateescape")
            last = -1
            while member := tar.next():
                # tarfile keeps all members, 1 kB each; and a damaged size would lead it in a circle.
                tar.members = []  # type: ignore[attr-defined]
                beyond = member.size < 0 or member.offset_data + member.size > end - begin
                if beyond or member.offset <= last:
                    raise refusal(member.offset, "a member goes on after the end: the archive is cut off")
                last = member.offset
                name = member.name.encode("utf-8", "surrogateescape")
                kind = tarfile.GNUTYPE_SPARSE if member.issparse() else member.type
                yield _Entry(name, kind, begin + member.offset_data, member.size)
        except (tarfile.TarError, ValueError, OverflowError) as error:
            if isinstance(error, ConfigError):
                raise
            raise refusal(part.tell(), f"is not a tar archive, or damaged ({error})") from None
        # tarfile takes a damaged header for the end.
        mark = files.read(file, begin + tar.offset, min(_BLOCK, max(end - begin - tar.offset, 0)))
        if mark != bytes(_BLOCK):
            reason = "the archive is cut off" if len(mark) < _BLOCK else "a header is damaged"
            raise refusal(tar.offset, reason)
