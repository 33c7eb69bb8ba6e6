# SPDX-License-Identifier: Apache-2.0
"""Make text of a result safe to print, so that a file cannot imitate the program's own output.

A line break in a cause or in the name of a run would begin a new line with any content, such as a score. An
escape sequence would wipe the verdict from the terminal.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from aiperf_mpi.results.file.resultfile import Result

#: Every line of the verdict on standard output begins with this; a site's tooling finds each key once.
PREFIX = "AIPERF_MPI"


def plain(text: str) -> str:
    """Return `text` on one line, with Python's escapes for unprintable characters and PREFIX in small
    letters."""
    if not text.isprintable():
        text = "".join(
            c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text
        )
    return text.replace(PREFIX, PREFIX.lower())


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
