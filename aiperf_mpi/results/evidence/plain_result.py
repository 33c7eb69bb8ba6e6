# SPDX-License-Identifier: Apache-2.0
"""Make all text of a result safe to print, so that a file cannot imitate the program's own output."""

from __future__ import annotations

import dataclasses

import numpy as np

from aiperf_mpi.printable import plain
from aiperf_mpi.results.file.resultfile import Result


def plain_result(result: Result) -> Result:
    """Return a result with all text of its tables and attributes plain; documents stay as they are."""
    tables = {
        name: {column: _plain_column(values) for column, values in columns.items()}
        for name, columns in result.tables.items()
    }
    attributes = {
        name: plain(value) if isinstance(value, str) else value for name, value in result.attributes.items()
    }
    return dataclasses.replace(result, tables=tables, attributes=attributes)


def _plain_column(values: np.ndarray) -> np.ndarray:
    """Return a column with all of its text plain."""
    if values.dtype.kind != "O":
        return values
    texts = [plain(value) for value in values.tolist()]
    return np.array(texts, dtype=object)
