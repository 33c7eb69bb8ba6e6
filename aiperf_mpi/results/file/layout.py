# SPDX-License-Identifier: Apache-2.0
"""Check the form of a result's HDF5 file before its content is read.

HDF5 has features that no result needs. A column can be in another file (external links and storage, virtual
datasets), so that it changes without the content hash. A few bytes can represent terabytes (filters, columns
that were never written, one string that every row points to). A name can exist twice. All of these are
refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5ds, h5t

from aiperf_mpi.hdf5 import MOST_ATTRIBUTE, STRING, Allowance, attribute_value, own, wrong_storage
from aiperf_mpi.results.file.schema import DTYPES, Column, Table
from aiperf_mpi.results.file.versions import Schema

#: Attributes with which HDF5 attaches dimension scales; they hold object references, so their bytes may
#: differ.
SCALE_ATTRIBUTES = (
    "CLASS",
    "NAME",
    "DIMENSION_LIST",
    "REFERENCE_LIST",
    "_Netcdf4Dimid",
    "_Netcdf4Coordinates",
)


#: At most this many problems with names are listed.
_MAX_NAMES = 3

#: A group with more items, or an object with more attributes, is not looked through: HDF5 needs the square of
#: their number to list attributes.
_MOST_ITEMS, _MOST_ATTRIBUTES = 1000, 200


def foreign(file: h5py.File, schema: Schema) -> Iterator[str]:
    """Yield a problem for each item that is not in the file's schema, and for each link to another place."""
    if file.userblock_size:
        yield f"the file begins with {file.userblock_size} bytes that are not HDF5"
    for path, expected in _members(schema).items():
        if path and not isinstance(file.get(path, getlink=True), h5py.HardLink):
            continue
        group = file[path or "/"]
        if not isinstance(group, h5py.Group):
            yield f"/{path} is not a group"
            continue
        if len(group) > _MOST_ITEMS:
            yield f"/{path} has {len(group)} items"
            continue
        names = list(group)
        yield from _unknown(names, expected, f"/{path} has an item")
        for name in set(names) & set(expected):
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                yield f"{group.name.rstrip('/')}/{name} is a link to another place"
    if (count := h5a.get_num_attrs(file.id)) > _MOST_ATTRIBUTES:
        yield f"the root has {count} attributes"
        return
    yield from _unknown(
        _attribute_names(file), [a.name for a in schema.attributes], "the root has an attribute"
    )


def _members(schema: Schema) -> dict[str, list[str]]:
    """Return the names that each group must have, by its path."""
    members: dict[str, list[str]] = {"": [*schema.tables]}
    members |= {table.name: [*table.names, table.scale] for table in schema.tables.values()}
    for path in schema.documents:
        group, _, name = path.partition("/")
        members.setdefault(group, []).append(name)
        members[""].append(group)
    return members


def _attribute_names(item: Any) -> list[str]:
    """Return the names of an object's attributes; a name that exists twice is listed twice."""
    return [
        h5a.open(item.id, index=index).name.decode(errors="replace")
        for index in range(h5a.get_num_attrs(item.id))
    ]


def _unknown(names: list[str], expected: list[str], what: str) -> Iterator[str]:
    """Yield a problem for names that are not expected, and for names that exist twice."""
    unknown = sorted(set(names) - set(expected))
    for name in unknown[:_MAX_NAMES]:
        yield f"{what} that the schema does not know: {name[:60]!r}"
    if len(unknown) > _MAX_NAMES:
        yield f"{what} that the schema does not know, and {len(unknown) - 1} more"
    for name in sorted(name for name, count in Counter(names).items() if count > 1):
        yield f"{what} twice: {name[:60]!r}"


# -- datasets --------------------------------------------------------------------------------------


def wrong_column(dataset: Any, column: Column, allowance: Allowance) -> str:
    """Return the problem of type, shape or storage of a column's dataset, or ""."""
    return wrong_dataset(dataset, column.dtype, 1, allowance)


def wrong_dataset(dataset: Any, dtype: str, dimensions: int, allowance: Allowance) -> str:
    """Return the problem of a dataset that should have this type (of DTYPES) and so many dimensions, or "".

    `allowance` has the bytes of the file that may still be read.
    """
    if not isinstance(dataset, h5py.Dataset):
        return "is not a dataset"
    if dataset.ndim != dimensions or dataset.shape is None:
        return f"has {dataset.ndim} dimensions, but must have {dimensions or 'none'}"
    if dtype == "str":
        info = h5py.check_string_dtype(dataset.dtype)
        if not info or info.length is not None:
            return f"is {dataset.dtype}, but must be strings"
    elif dataset.dtype != np.dtype(DTYPES[dtype]):
        return f"is {dataset.dtype}, but must be {dtype}"
    return wrong_storage(dataset, STRING.itemsize if dtype == "str" else dataset.dtype.itemsize, allowance)


def wrong_scale(
    table: Table, group: h5py.Group, columns: Mapping[str, h5py.Dataset], allowance: Allowance
) -> Iterator[str]:
    """Yield the problems of a table's dimension scale, and of how its columns (opened) are attached to it."""
    path = f"{table.name}/{table.scale}"
    scale = columns[table.scale] if table.scale in columns else own(group, table.scale)
    if table.scale not in table.names:
        if problem := wrong_dataset(scale, "i8", 1, allowance):
            yield f"/{path} {problem}"
            return
        if not np.array_equal(scale[...], np.arange(len(columns[table.names[0]]))):
            yield f"/{path} does not number the rows"
    named = _attribute(scale, "NAME")
    if not scale.is_scale or named is None or _small_text(named) != table.scale.encode():
        yield f"/{path} is not a dimension scale of its name"
    for name, column in columns.items():
        if name != table.scale:
            alone = h5ds.get_num_scales(column.id, 0) == 1
            if not (alone and h5ds.is_attached(column.id, scale.id, 0)):
                yield f"/{table.name}/{name} is not attached to /{path} alone"


def wrong_description(item: Any, described: str, units: str) -> str:
    """Return the problem of the attributes that describe a table, a column or a document, or ""."""
    expected = {"description": described} | ({"units": units} if units else {})
    if (count := h5a.get_num_attrs(item.id)) > _MOST_ATTRIBUTES:
        return f"has {count} attributes"
    opened = (h5a.open(item.id, index=index) for index in range(count))
    named = [(attribute.name.decode(errors="replace"), attribute) for attribute in opened]
    own = [(name, attribute) for name, attribute in named if name not in SCALE_ATTRIBUTES]
    if sorted(name for name, _ in own) != sorted(expected):
        return (
            f"has the attributes {', '.join(name for name, _ in own)[:80]!r} instead of "
            f"{', '.join(expected)!r}"
        )
    for name, attribute in own:
        if _small_text(attribute) != expected[name].encode():
            return f"has another {name} than the schema"
    return ""


def _attribute(item: Any, name: str) -> h5a.AttrID | None:
    """Return an open attribute of an object, or None if it has none of this name."""
    return h5a.open(item.id, name.encode()) if h5a.exists(item.id, name.encode()) else None


def _small_text(attribute: h5a.AttrID) -> bytes | None:
    """Return the value of a string attribute, or None for any other attribute."""
    kind = attribute.get_type()
    if attribute.shape != () or not isinstance(kind, h5t.TypeStringID) or kind.get_size() > MOST_ATTRIBUTE:
        return None
    return attribute_value(attribute).item()
