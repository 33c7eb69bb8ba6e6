# SPDX-License-Identifier: Apache-2.0
"""HDF5 beyond h5py: check objects and strings before they are read, and write a file as a whole."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d

from aiperf_mpi.files import open_regular
from aiperf_mpi.printable import plain

#: Most bytes of an attribute whose length is fixed; those of the schema are shorter.
MOST_ATTRIBUTE = 1 << 16

#: How HDF5 stores a string of variable length: its length, and heap address and index of its bytes.
STRING = np.dtype([("length", "<u4"), ("address", "<u8"), ("index", "<u4")])


#: How HDF5 says that a file is shorter than it was when it was written.
_TRUNCATED = re.compile(r"truncated file: eof = (\d+), .*stored_eof = (\d+)")


def reason(error: BaseException) -> str:
    """Return in plain words, on one line, why HDF5 could not open or read a file."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if "file signature not found" in text:
        return "it is not an HDF5 file"
    if found := _TRUNCATED.search(text):
        return f"it is truncated: {found[1]} of {found[2]} bytes are there"
    if isinstance(error, OSError) and error.errno and error.strerror:
        return plain(error.strerror.splitlines()[0])
    # HDF5 begins with what it was about to do, and adds the reason in parentheses.
    inner = re.fullmatch(r"(?:Unable|Can't) to [^(]*\((.*)\)", text)
    return plain(f"HDF5 cannot read it ({inner[1] if inner else text})")


#: How an HDF5 file begins, after its user block if it has one.
SIGNATURE = b"\x89HDF\r\n\x1a\n"

#: Place of the address of the file's end in a superblock, by its version (HDF5 File Format Specification,
#: section II.A). Addresses have 8 bytes.
_END_AT = {0: 40, 1: 44, 2: 28, 3: 28}


def surplus(path: Path | str) -> Iterator[str]:
    """Yield what a file holds before or after its HDF5 content: it is in no object, so that no hash of the
    content sees it. Raises FileError for a file that cannot be read."""
    with open_regular(path) as raw:
        size, head = os.fstat(raw.fileno()).st_size, os.pread(raw.fileno(), 64, 0)
    if not head.startswith(SIGNATURE):
        yield "the file has bytes before its HDF5 content"
        return
    version = head[len(SIGNATURE)]
    if version not in _END_AT:
        yield f"the file's superblock has version {version}, which does not tell its end"
        return
    place = _END_AT[version]
    end = int.from_bytes(head[place : place + 8], "little")
    if size > end:
        yield f"the file has {size - end} bytes after its HDF5 content"


def own(group: h5py.Group, path: str) -> Any:
    """Return the object at `path` of a group. Raises KeyError if it does not exist or is a link elsewhere."""
    for place in (path.rpartition("/")[0], path):
        if place and not isinstance(group.get(place, getlink=True), h5py.HardLink):
            raise KeyError(f"{group.name.rstrip('/')}/{place} is not an object of this file")
    return group[path]


class Allowance:
    """The bytes that may still be read of a file: all datasets together are not larger than it.

    They can only be if several share their bytes, in a file that was made to fill the memory.
    """

    def __init__(self, size: float) -> None:
        self._size = self._left = size

    def take(self, amount: int) -> str:
        """Take an amount; return the problem if the file does not have so much, or ""."""
        self._left -= amount
        return "" if self._left >= 0 else f"makes the content more than the {self._size:g} bytes of the file"


def wrong_storage(dataset: h5py.Dataset, item_bytes: int, allowance: Allowance | None = None) -> str:
    """Return what is wrong with the storage of a dataset, or "".

    It must be in the file itself, in one piece and without a filter, with `item_bytes` bytes for each value,
    and within the `allowance` of its file if one is given.
    """
    created = dataset.id.get_create_plist()
    if created.get_layout() not in (h5d.CONTIGUOUS, h5d.COMPACT) or created.get_external_count():
        return "is stored in pieces or elsewhere, but must be in the file as a whole"
    if created.get_nfilters():
        return "is compressed, but must not be"
    if dataset.id.get_storage_size() != dataset.size * item_bytes:
        return f"has {dataset.id.get_storage_size()} bytes in the file for {dataset.size} values"
    if allowance is None:
        return ""
    if problem := allowance.take(dataset.size * item_bytes):
        return problem
    return _wrong_strings(dataset, allowance) if dataset.dtype.kind == "O" else ""


def _wrong_strings(dataset: h5py.Dataset, allowance: Allowance) -> str:
    """Return the problem of strings that together are longer than their file, or "".

    They can only be if many rows point to one string.
    """
    offset = dataset.id.get_offset()
    if dataset.file.driver == "core" or offset is None:
        return ""
    with open_regular(dataset.file.filename) as raw:
        references = os.pread(raw.fileno(), dataset.size * STRING.itemsize, offset)
    if len(references) != dataset.size * STRING.itemsize:
        return "ends after the end of the file"
    return allowance.take(int(np.frombuffer(references, STRING)["length"].sum(dtype=np.uint64)))


def attribute_value(attribute: h5a.AttrID) -> np.ndarray:
    """Return the value of an open attribute, strings as bytes.

    Reading it by name is far slower, as h5py then opens it three times.
    """
    if attribute.shape is None:
        return np.zeros(0, attribute.dtype)
    value = np.zeros(attribute.shape, attribute.dtype)
    attribute.read(value)
    return value


def is_small_attribute(file: h5py.File, name: str) -> bool:
    """Return whether an attribute of the root is one value, so that reading it cannot fill the memory."""
    attribute = h5a.open(file.id, name.encode())
    return attribute.shape == () and attribute.get_type().get_size() <= MOST_ATTRIBUTE


@contextmanager
def temporary_file(path: Path) -> Iterator[tuple[int, Path]]:
    """Create a file next to `path`, open for writing, for the `with` block, and remove what then is left.

    Its name has a random part, so that no file or link of another user or process is written to.
    """
    temporary = path.with_name(f".aiperf_mpi-{secrets.token_hex(4)}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(temporary, flags, 0o644)
    except OSError as error:
        # Its name says nothing to the user.
        raise OSError(error.errno, error.strerror, str(path)) from error
    try:
        yield descriptor, temporary
    finally:
        os.close(descriptor)
        temporary.unlink(missing_ok=True)


def write(path: Path, data: bytes) -> None:
    """Write `data` next to `path`, sync it, and rename it to `path`.

    Raises OSError, and then leaves `path` as it was.
    """
    with temporary_file(path) as (descriptor, temporary):
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
        os.replace(temporary, path)

    # The new name is safe only when the folder is synced as well.
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
