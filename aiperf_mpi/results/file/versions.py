# SPDX-License-Identifier: Apache-2.0
"""The contents of result files by the version of their schema: today's, and those of older programs.

A file is read with the schema of its own version. What came later gets the value that it would have had.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from aiperf_mpi.results.file.schema import (
    ATTRIBUTES,
    DOCUMENTS,
    DTYPES,
    SCHEMA_VERSION,
    SEGMENTS,
    TABLES,
    Column,
    Columns,
    Table,
)


@dataclass(frozen=True, slots=True)
class Added:
    """What a version added, with the values in files of earlier versions.

    Attributes:
        columns: by table and column.
        attributes: by name.
        documents: by path.
        tables: names of whole tables.
    """

    columns: Mapping[tuple[str, str], Any] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)
    documents: Mapping[str, str] = field(default_factory=dict)
    tables: tuple[str, ...] = ()


#: What each version added to the one before it. No run of version 1.0 had a packed data set, or recorded what
#: chose a candidate; none before 1.2 could be resumed.
ADDED: Mapping[str, Added] = {
    "1.0": Added(),
    "1.1": Added(
        {
            ("ranks", "bytes_read"): 0,
            ("trials", "chosen_by"): "",
            ("trials", "tuned_by"): "",
            ("trials", "expected_error"): math.nan,
            ("trials", "expected_deviation"): math.nan,
        },
        {"staging_seconds": 0.0, "staged_bytes": 0, "hash_seconds": 0.0},
        {"data/manifest_json": "{}"},
    ),
    SCHEMA_VERSION: Added(
        {(table, "segment"): 1 for table in ("ranks", "messages", "samples")}, tables=(SEGMENTS.name,)
    ),
}


@dataclass(frozen=True, slots=True)
class Schema:
    """The tables, root attributes and documents of a file of one version."""

    tables: Mapping[str, Table]
    attributes: tuple[Column, ...]
    documents: Mapping[str, str]


NEWEST = Schema(TABLES, ATTRIBUTES, DOCUMENTS)


def _without(schema: Schema, added: Added) -> Schema:
    """Return a schema without what a version added to it."""
    return Schema(
        {
            name: replace(
                table,
                columns=tuple(column for column in table.columns if (name, column.name) not in added.columns),
            )
            for name, table in schema.tables.items()
            if name not in added.tables
        },
        tuple(attribute for attribute in schema.attributes if attribute.name not in added.attributes),
        {path: about for path, about in schema.documents.items() if path not in added.documents},
    )


def _schemas() -> dict[str, Schema]:
    """Return the schema of each version: today's without what the versions after it have added."""
    schemas, schema = dict[str, Schema](), NEWEST
    for version, added in reversed(list(ADDED.items())):
        schemas[version] = schema
        schema = _without(schema, added)
    return dict(reversed(schemas.items()))


#: The schemas that this program reads and judges, by version.
SCHEMAS: Mapping[str, Schema] = _schemas()


def schema_of(version: object) -> Schema:
    """Return the schema of a version; the newest one if the version is not known."""
    return SCHEMAS.get(version, NEWEST) if isinstance(version, str) else NEWEST


def complete(
    schema: Schema, tables: dict[str, Columns], attributes: dict[str, Any], documents: dict[str, str]
) -> None:
    """Add what `schema` does not have yet to the content of a file that was read with it."""
    known = [attribute.name for attribute in schema.attributes]
    for added in ADDED.values():
        for (name, column), value in added.columns.items():
            lengths = [len(values) for values in tables[name].values()]
            if column not in schema.tables[name].names and lengths:
                tables[name][column] = _constant(TABLES[name], column, value, lengths[0])
        attributes |= {name: value for name, value in added.attributes.items() if name not in known}
        documents |= {path: text for path, text in added.documents.items() if path not in schema.documents}
    if SEGMENTS.name not in schema.tables:
        tables[SEGMENTS.name] = _one_segment(attributes)


def _one_segment(attributes: Mapping[str, Any]) -> Columns:
    """Return /segments of a run that could not be resumed, from its attributes as far as it has them."""
    values = {column.name: attributes.get(column.name) for column in SEGMENTS.columns}
    values |= {
        "segment": 1,
        "start_utc": attributes.get("core_start_utc"),
        "t_start": 0.0,
        "t_end": attributes.get("core_seconds"),
        "version": attributes.get("aiperf_mpi_version"),
    }
    empty = {"str": "", "f8": math.nan}
    return {
        column.name: _constant(
            SEGMENTS,
            column.name,
            empty.get(column.dtype, 0) if values[column.name] is None else values[column.name],
            1,
        )
        for column in SEGMENTS.columns
    }


def _constant(table: Table, column: str, value: Any, rows: int) -> np.ndarray:
    """Return a column of a table that has one value in all rows."""
    kind = {known.name: known.dtype for known in table.columns}[column]
    return np.full(rows, value, object if kind == "str" else DTYPES[kind])
