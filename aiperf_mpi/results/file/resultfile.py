# SPDX-License-Identifier: Apache-2.0
"""The HDF5 file of a result: build it in memory, seal it, and read it back without trust.

A file is built in memory and written as plain bytes under a temporary name. So a full disk gives an OSError
of one write and leaves no half-written HDF5 structure. It is renamed last, so that a reader always gets a
whole file.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5a

from aiperf_mpi import hdf5
from aiperf_mpi.files import FileError, credible_size, open_regular
from aiperf_mpi.hdf5 import Allowance
from aiperf_mpi.printable import named
from aiperf_mpi.results.file import layout
from aiperf_mpi.results.file.schema import ATTRIBUTES, DOCUMENTS, DTYPES, TABLES, Column, Columns, Table
from aiperf_mpi.results.file.tables import Tables
from aiperf_mpi.results.file.versions import complete, schema_of

#: Attributes of the root group that the content hash leaves out: it covers all the rest.
UNHASHED = ("complete", "content_sha256")

#: Memory is added to a file under construction in steps of this many bytes.
_BLOCK = 1 << 20

_TEXT = h5py.string_dtype()


#: Most bytes of a result.
MOST_BYTES = 8 << 30


class NotAResult(ValueError):
    """A file is not a result; the message is one line with the file and the reason."""


@dataclass(frozen=True)
class Result:
    """A result as it was read: columns by table and name, attributes, documents by path.

    An item that is missing, or has another type or shape, is left out and named in `problems`.
    """

    tables: dict[str, Columns] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    documents: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    content_sha256: str = ""


# -- writing ---------------------------------------------------------------------------------------


def new_file(content: Tables) -> h5py.File:
    """Return an HDF5 file in memory with this content, not judged and not sealed; the caller closes it."""
    file = h5py.File("result", "w", driver="core", backing_store=False, block_size=_BLOCK, track_order=True)
    for name, table in TABLES.items():
        _write_table(file, table, content.tables[name])
    for path, about in DOCUMENTS.items():
        text = file.create_dataset(path, data=_storable(content.documents.get(path, "")), dtype=_TEXT)
        text.attrs["description"] = about
    set_attributes(file, content.attributes)
    return file


def _write_table(file: h5py.File, table: Table, columns: Columns) -> None:
    """Write a table with its dimension scale. Raises ValueError for columns of different lengths."""
    group = file.create_group(table.name, track_order=True)
    group.attrs["description"] = table.description
    length = len(columns[table.names[0]])

    # The scale is a key among the columns (ranks), or the number of the row.
    numbers: dict[str, np.ndarray] = {}
    if table.scale not in table.names:
        numbers[table.scale] = np.arange(length, dtype="<i8")
        group.create_dataset(table.scale, data=numbers[table.scale]).attrs["description"] = (
            "number of the row"
        )
    for column in table.columns:
        values = columns[column.name]
        if len(values) != length:
            raise ValueError(f"/{table.name}/{column.name} has {len(values)} rows, but the table {length}")
        kind = _TEXT if column.dtype == "str" else DTYPES[column.dtype]
        data = [_storable(text) for text in values] if column.dtype == "str" else values
        dataset = group.create_dataset(column.name, data=data, dtype=kind, shape=(length,))
        dataset.attrs["description"] = column.description
        if column.units:
            dataset.attrs["units"] = column.units

    scale = group[table.scale]
    scale.make_scale(table.scale)
    for name in table.names:
        if name != table.scale:
            group[name].dims[0].attach_scale(scale)


def _storable(text: str) -> str:
    """Return text without NUL and lone surrogates, which HDF5's strings cannot hold."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()


def set_attributes(file: h5py.File, values: Mapping[str, Any]) -> None:
    """Set root attributes of the schema. Raises KeyError for a name that is not in it."""
    kinds = {attribute.name: attribute.dtype for attribute in ATTRIBUTES}
    for name, value in values.items():
        if kinds[name] == "str":
            file.attrs.create(name, _storable(value), dtype=_TEXT)
        else:
            file.attrs.create(name, value, dtype=DTYPES[kinds[name]])


def seal(file: h5py.File, *, complete: bool) -> bytes:
    """Set the content hash and, last of all, `complete`; return the bytes of `file`."""
    set_attributes(file, {"content_sha256": content_hash(file)})
    set_attributes(file, {"complete": int(complete)})
    file.flush()
    return file.id.get_file_image()


# -- the content hash ------------------------------------------------------------------------------


def content_hash(file: h5py.File) -> str:
    """Return the SHA-256 of every dataset and attribute by path and name, except `complete` and the hash
    itself.

    Each item enters as its path, type and shape, and its bytes; each string follows its length.
    """
    digest = hashlib.sha256()
    paths: list[str] = []
    file.visit(paths.append)
    for path in ["/", *sorted(paths)]:
        item = file[path]
        opened = [h5a.open(item.id, index=index) for index in range(h5a.get_num_attrs(item.id))]
        for name, attribute in sorted(((a.name.decode(), a) for a in opened), key=itemgetter(0)):
            if name not in layout.SCALE_ATTRIBUTES and not (path == "/" and name in UNHASHED):
                _digest(digest, f"{path}@{name}", hdf5.attribute_value(attribute))
        if isinstance(item, h5py.Dataset):
            _digest(digest, path, np.asarray(item[()]))
    return digest.hexdigest()


def _digest(digest: Any, name: str, value: np.ndarray) -> None:
    """Add a named value to the hash `digest`."""
    textual = value.dtype.kind in "OSU"
    digest.update(f"{name}\0{'str' if textual else value.dtype.str}\0{value.shape}\0".encode())
    if not textual:
        digest.update(np.ascontiguousarray(value).tobytes())
        return
    for entry in value.ravel().tolist():
        data = entry if isinstance(entry, bytes) else str(entry).encode("utf-8", "surrogateescape")
        digest.update(len(data).to_bytes(8, "little") + data)


# -- reading ---------------------------------------------------------------------------------------

#: What h5py raises for damaged content (collected by experiment): a problem of the item that is read.
_DAMAGE = (OSError, RuntimeError, ValueError, KeyError, TypeError, OverflowError, MemoryError, AttributeError)


#: What to do with a file that is not whole.
_COPY_AGAIN = (
    "copy it again when its run has ended; if the run's own file is so too, `verify --repair FOLDER` makes "
    "another"
)


def read(path: Path | str) -> Result:
    """Return the content of a result file, read in this process. Raises NotAResult (see `open_file`)."""
    with open_file(path) as file:
        result = load(file)
    try:
        result.problems.extend(hdf5.surplus(path))
    except FileError as error:
        raise NotAResult(str(error)) from None
    return result


def open_file(path: Path | str) -> h5py.File:
    """Open `path` for reading, without locks. Raises NotAResult unless it is an HDF5 file with a result's
    table.

    A file with the attribute `schema` alone is not a result: without a table there is nothing to judge.
    """
    _inspect(path)
    try:
        file = h5py.File(path, "r", locking=False)
    except (OSError, RuntimeError, ValueError, MemoryError) as error:
        reason = hdf5.reason(error)[:200]
        raise NotAResult(f"{named(path)}: not a result: {reason}; {_COPY_AGAIN}") from None
    try:
        rows = any(isinstance(file.get(name, getlink=True), h5py.HardLink) for name in TABLES)
    except _DAMAGE:
        rows = False
    if not rows:
        file.close()
        known = ", ".join(TABLES)
        raise NotAResult(f"{named(path)}: not a result: an HDF5 file, but it has none of the tables {known}")
    return file


def _inspect(path: Path | str) -> None:
    """Raise NotAResult unless a path names a regular file with the signature of HDF5 and a credible size.

    HDF5 itself would wait for a FIFO, and read sizes from the file.
    """
    try:
        with open_regular(path) as raw:
            size = credible_size(path, raw)
            signed = any(_signature_at(raw.fileno(), place) for place in _places(size))
    except FileError as error:
        if error.folder:
            name = named(Path(path) / "result.h5")
            raise NotAResult(f"{error.path}: a folder; name the result file in it, such as {name}") from None
        raise NotAResult(str(error)) from None
    if not size:
        raise NotAResult(f"{named(path)}: not a result: it is empty; {_COPY_AGAIN}")
    if not signed:
        raise NotAResult(f"{named(path)}: not a result: it does not have the signature of an HDF5 file")
    if size > MOST_BYTES:
        raise NotAResult(
            f"{named(path)}: not a result: it has {size} bytes, but a result at most {MOST_BYTES}"
        )


def _places(size: int) -> list[int]:
    """Return where the signature of an HDF5 file of a size may be: at 0, 512, and twice that again."""
    return [0, *(512 << power for power in range(40) if 512 << power < size)]


def _signature_at(descriptor: int, place: int) -> bool:
    """Return whether a file has the signature of HDF5 at a place; not if it cannot be read there."""
    try:
        return os.pread(descriptor, len(hdf5.SIGNATURE), place) == hdf5.SIGNATURE
    except OSError:
        return False


def load(file: h5py.File) -> Result:
    """Return the content of an open file; an item that does not have its schema's form is not read."""
    result = Result()
    schema = schema_of(_version(file))
    in_memory = file.driver == "core"
    allowance = Allowance(math.inf if in_memory else os.stat(file.filename).st_size)
    try:
        result.problems.extend(layout.foreign(file, schema))
    except _DAMAGE as error:
        result.problems.append(f"the names in the file cannot be read: {_first_line(error)}")
    for name, table in schema.tables.items():
        result.tables[name] = _load_table(file, table, allowance, result.problems)
    for attribute in schema.attributes:
        _load_attribute(file, attribute, result)
    for path, about in schema.documents.items():
        try:
            document = hdf5.own(file, path)
            problem = layout.wrong_dataset(document, "str", 0, allowance)
            if problem or (problem := layout.wrong_description(document, about, "")):
                result.problems.append(f"/{path} {problem}")
                continue
            result.documents[path] = document.asstr()[()]
        except _DAMAGE as error:
            result.problems.append(f"/{path} cannot be read: {_first_line(error)}")
    # An item without the schema's form may be larger than the memory, so that the file is not hashed.
    digest = ""
    if not result.problems:
        try:
            digest = content_hash(file)
        except _DAMAGE as error:
            result.problems.append(f"content cannot be hashed: {_first_line(error)}")
    complete(schema, result.tables, result.attributes, result.documents)
    return Result(result.tables, result.attributes, result.documents, result.problems, digest)


def _version(file: h5py.File) -> object:
    """Return the version of a file's schema as it is stored; None if it cannot be read."""
    try:
        name = "schema_version"
        return file.attrs[name] if hdf5.is_small_attribute(file, name) else None
    except _DAMAGE:
        return None


def _load_table(file: h5py.File, table: Table, allowance: Allowance, problems: list[str]) -> Columns:
    """Return the columns of a table that have the schema's form, and add what is missing to `problems`."""
    columns: Columns = {}
    datasets: dict[str, h5py.Dataset] = {}
    try:
        group = hdf5.own(file, table.name)
    except _DAMAGE as error:
        problems.append(f"/{table.name} cannot be read: {_first_line(error)}")
        return columns
    for column in table.columns:
        path = f"{table.name}/{column.name}"
        try:
            dataset = hdf5.own(group, column.name)
            if problem := layout.wrong_column(dataset, column, allowance):
                problems.append(f"/{path} {problem}")
                continue
            if problem := layout.wrong_description(dataset, column.description, column.units):
                problems.append(f"/{path} {problem}")
            columns[column.name] = dataset.asstr()[...] if column.dtype == "str" else dataset[...]
            datasets[column.name] = dataset
        except _DAMAGE as error:
            problems.append(f"/{path} cannot be read: {_first_line(error)}")

    # Columns of different lengths are not a table: none of them can be used.
    lengths = {len(values) for values in columns.values()}
    if len(lengths) > 1:
        problems.append(f"/{table.name} has columns of different lengths: {sorted(lengths)}")
        return {}
    try:
        if problem := layout.wrong_description(group, table.description, ""):
            problems.append(f"/{table.name} {problem}")
        problems += layout.wrong_scale(table, group, datasets, allowance)
    except _DAMAGE as error:
        problems.append(f"/{table.name}: its dimension scale cannot be read: {_first_line(error)}")
    return columns


def _load_attribute(file: h5py.File, attribute: Column, result: Result) -> None:
    """Add a root attribute to the result, or the reason why it cannot be used to its problems."""
    name = attribute.name
    try:
        value: Any = file.attrs[name] if hdf5.is_small_attribute(file, name) else None
    except _DAMAGE as error:
        result.problems.append(f"attribute {name} cannot be read: {_first_line(error)}")
        return
    if attribute.dtype == "str":
        fits = isinstance(value, str)
    else:
        fits = np.ndim(value) == 0 and np.asarray(value).dtype == np.dtype(DTYPES[attribute.dtype])
    if not fits:
        result.problems.append(f"attribute {name} is {type(value).__name__}, but must be {attribute.dtype}")
        return
    result.attributes[name] = value if attribute.dtype == "str" else value.item()


def _first_line(error: BaseException) -> str:
    """Return type and first line of an exception."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
