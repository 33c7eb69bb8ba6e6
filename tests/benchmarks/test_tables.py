# SPDX-License-Identifier: Apache-2.0
"""The tables that every benchmark writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.tables import goals, markdown, write


def test_every_row_of_a_table_has_all_cells() -> None:
    # A bar in a cell would begin another cell.
    assert markdown(["a", "b"], [[1, "x|y"], ["", 2.5]]) == "\n".join(
        ["| a | b |", "| --- | ---: |", "| 1 | x/y |", "|  | 2.5 |"]
    )
    with pytest.raises(ValueError, match="a table of 2 columns: a row of 3"):
        markdown(["a", "b"], [[1, 2, 3]])


def test_what_is_written_is_what_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = f"# Name\n\n{goals({'one': True, 'two': False})}"
    write(tmp_path / "new", "name", text, {"rows": [1]})
    assert capsys.readouterr().out == f"{text}\n" == (tmp_path / "new" / "name.md").read_text()
    assert text.endswith("- one: met\n- two: MISSED")
    assert json.loads((tmp_path / "new" / "name.json").read_text()) == {"rows": [1]}
