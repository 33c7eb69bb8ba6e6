# SPDX-License-Identifier: Apache-2.0
"""The contents of result files by the version of their schema: today's, and those of older programs.

A file is read with the schema of its own version. What came later gets the value that it would have had.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from aiperf_mpi.results.file.schema import (
    ATTRIBUTES,
    DOCUMENTS,
    DTYPES,
    SCHEMA_VERSION,
    TABLES,
    Column,
    Columns,
    Table,
)

#: What version 1.1 added, by table and column, by attribute and by document, with the value in files of
#: version 1.0. No run of that version had a packed data set, or recorded what chose a candidate.
_COLUMNS: Mapping[tuple[str, str], Any] = {
    ("ranks", "bytes_read"): 0,
    ("trials", "chosen_by"): "",
    ("trials", "tuned_by"): "",
    ("trials", "expected_error"): math.nan,
    ("trials", "expected_deviation"): math.nan,
}
_ATTRIBUTES: Mapping[str, Any] = {"staging_seconds": 0.0, "staged_bytes": 0, "hash_seconds": 0.0}
_DOCUMENTS: Mapping[str, str] = {"data/manifest_json": "{}"}


@dataclass(frozen=True, slots=True)
class Schema:
    """The tables, root attributes and documents of a file of one version."""

    tables: Mapping[str, Table]
    attributes: tuple[Column, ...]
    documents: Mapping[str, str]


NEWEST = Schema(TABLES, ATTRIBUTES, DOCUMENTS)

#: The schemas that this program reads and judges, by version.
SCHEMAS: Mapping[str, Schema] = {
    "1.0": Schema(
        {
            name: replace(
                table,
                columns=tuple(column for column in table.columns if (name, column.name) not in _COLUMNS),
            )
            for name, table in TABLES.items()
        },
        tuple(attribute for attribute in ATTRIBUTES if attribute.name not in _ATTRIBUTES),
        {path: about for path, about in DOCUMENTS.items() if path not in _DOCUMENTS},
    ),
    SCHEMA_VERSION: NEWEST,
}


def schema_of(version: object) -> Schema:
    """Return the schema of a version; the newest one if the version is not known."""
    return SCHEMAS.get(version, NEWEST) if isinstance(version, str) else NEWEST


def complete(
    schema: Schema, tables: Mapping[str, Columns], attributes: dict[str, Any], documents: dict[str, str]
) -> None:
    """Add what `schema` does not have yet to the content of a file that was read with it."""
    for (name, column), value in _COLUMNS.items():
        lengths = [len(values) for values in tables[name].values()]
        if column not in schema.tables[name].names and lengths:
            kind = {known.name: known.dtype for known in TABLES[name].columns}[column]
            dtype = object if kind == "str" else DTYPES[kind]
            tables[name][column] = np.full(lengths[0], value, dtype)
    known = [attribute.name for attribute in schema.attributes]
    attributes |= {name: value for name, value in _ATTRIBUTES.items() if name not in known}
    documents |= {path: text for path, text in _DOCUMENTS.items() if path not in schema.documents}
