# SPDX-License-Identifier: Apache-2.0
"""Rows and names of the schema."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest

from aiperf_mpi.results.file import rows, schema
from aiperf_mpi.results.file.rows import EPOCH_ROW, RANK_ROW, TRIAL_ROW, RunHeader, new_row
from aiperf_mpi.trials import record
from tests.helpers.results.example_run import example_run


@pytest.mark.parametrize("dtype", [EPOCH_ROW, TRIAL_ROW, RANK_ROW, rows.FINAL_ROW, rows.SAMPLE_ROW])
def test_rows_are_the_same_bytes_on_every_machine(dtype: np.dtype) -> None:
    # Little-endian, every field at a multiple of its alignment, the row a multiple of 8.
    assert dtype.itemsize % 8 == 0
    assert dtype.fields is not None
    for kind, offset, *_ in dtype.fields.values():
        base = kind.base
        assert base.byteorder in "<|=" and offset % base.alignment == 0


def test_a_new_row_knows_nothing() -> None:
    row = new_row(EPOCH_ROW, trial_id=3)
    assert row.shape == (1,) and row["trial_id"][0] == 3 and row["train_samples"][0] == 0
    assert all(math.isnan(row[name][0]) for name in ("t_start", "lr", "train_loss", "val_error"))
    assert new_row(RANK_ROW)["phase_seconds"].tolist() == [[0.0] * 9]


def test_text_is_cut_between_characters() -> None:
    # 160 bytes: "é" has two, so the 81st of them does not fit.
    cause = new_row(TRIAL_ROW, cause="x" + "é" * 90)["cause"][0]
    assert cause.decode() == "x" + "é" * 79


def test_a_column_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="no column 'loss'"):
        new_row(EPOCH_ROW, loss=1.0)


@dataclass
class Final:
    """Fields of FINAL_ROW, and one that is not a column."""

    trial_id: int = 3
    error: float = 0.5
    other: str = "ignored"


def test_a_row_takes_the_fields_of_dataclasses() -> None:
    assert rows.row_of(rows.FINAL_ROW, Final()).tolist() == [(3, 0.5)]


@pytest.mark.parametrize(
    ("sources", "values"), [((), {"trial_id": 3}), ((Final(),), {"error": 0.1}), ((Final(), Final()), {})]
)
def test_a_row_needs_each_column_once(sources: tuple[Final, ...], values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="each column once"):
        rows.row_of(rows.FINAL_ROW, *sources, **values)


def test_status_codes_are_those_of_the_history() -> None:
    assert rows.STATUS[1:] == record.STATUS_NAMES[1:] and rows.STATUS[0] == "unfinished"
    assert [rows.STATUS[code] for code in (rows.DONE, rows.STOPPED, rows.FAILED, rows.REJECTED)] == [
        "done",
        "stopped",
        "failed",
        "rejected",
    ]


def test_a_header_survives_json_and_later_versions() -> None:
    header = example_run().header
    data = header.to_dict() | {"invented_later": 1}
    assert RunHeader.from_dict(data) == header
    del data["seed"]
    with pytest.raises(TypeError, match="seed"):
        RunHeader.from_dict(data)


def test_names_are_unique_and_types_known() -> None:
    for table in schema.TABLES.values():
        assert len(set(table.names)) == len(table.names)
        assert {column.dtype for column in table.columns} <= set(schema.DTYPES)
    names = [attribute.name for attribute in schema.ATTRIBUTES]
    assert len(set(names)) == len(names)
    assert [name for name in schema.RANKS.names if name.startswith("seconds_")] == [
        f"seconds_{phase}" for phase in rows.PHASES
    ]
