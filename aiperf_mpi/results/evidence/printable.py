# SPDX-License-Identifier: Apache-2.0
"""Text of a result made safe to print: whoever wrote the file must not speak with the program's voice.

A line break in a cause or in the name of a run would begin a line of its own, on which anything could stand,
such as a score; an escape sequence would wipe the verdict from the terminal.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from aiperf_mpi.results.file.resultfile import Result

#: Every line of the verdict on standard output begins with this; a site's tooling finds each key once.
PREFIX = "AIPERF_MPI"


def plain(text: str) -> str:
    """`text` on one line: characters that cannot be seen as escapes (as in Python), the verdict's prefix in
    small letters."""
    if not text.isprintable():
        text = "".join(
            c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text
        )
    return text.replace(PREFIX, PREFIX.lower())


def plain_result(result: Result) -> Result:
    """The result to be shown: all text of its tables and attributes plain; documents stay as they are."""
    tables = {
        name: {column: _plain_column(values) for column, values in columns.items()}
        for name, columns in result.tables.items()
    }
    attributes = {
        name: plain(value) if isinstance(value, str) else value for name, value in result.attributes.items()
    }
    return dataclasses.replace(result, tables=tables, attributes=attributes)


def _plain_column(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind != "O":
        return values
    texts = [plain(value) for value in values.tolist()]
    return np.array(texts, dtype=object)
