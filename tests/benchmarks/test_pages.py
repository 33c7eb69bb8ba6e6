# SPDX-License-Identifier: Apache-2.0
"""The tables of the training benchmark: each shows its measured rows and its failed ones."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import pages
from benchmarks.tables import markdown, number

STEP = {
    "batch": 8,
    "precision": "float32",
    "seconds": [0.1, 0.2],
    "images_per_second": 80.0,
    "operations": 9 * 10**8,
    "ops_per_second": 7.2e10,
    "of_matrix": 0.5,
    "modelled_bytes": 10**8,
    "of_memory": 0.2,
    "of_memory_xla": None,
    "temporary_bytes": 2**30,
    "trace_s": 1.0,
    "compile_s": 2.0,
    "executed_more": 9 * 10**6,
    "parameters": 7,
    "losses": [2.3, 2.2],
}
PAIR = {"ratio": 1.5, "low": 1.4, "high": 1.6}

#: A good row of each page; a bad one is added to each.
ROWS: dict[str, dict[str, Any]] = {
    "throughput": {"name": "ResNet-50", **STEP},
    "morphs": {"name": "wider", **STEP},
    "mapped": {"name": "x", "pmap": [0.1], "jit": [0.1], **PAIR},
    "fed": {
        "name": "x",
        "fed": [0.1],
        "resident": [0.1],
        **PAIR,
        "loader_images_per_second": 9.0,
        "loader_to_demand": 2.0,
    },
    "compilation": {"name": "cold", "trace_s": 1.0, "lower_s": 1.0, "compile_s": 1.0},
    "beside": {"name": "x", "alone": [0.1], "beside": [0.2], "compile_s": 3.0},
    "peer": {
        "name": "PyTorch, eager",
        **STEP,
        **PAIR,
        "torch": "2",
        "device": "cpu",
        "cudnn": None,
        "start_s": 1.0,
        "ours_images_per_second": 3.0,
        "theirs_images_per_second": 2.0,
    },
    "levers": {
        "name": "x",
        **STEP,
        **PAIR,
        "default_images_per_second": 3.0,
        "changed_images_per_second": 2.0,
    },
    "flags": {"name": "default, before", **STEP},
    "profile": {
        "name": "profile",
        "steps": 3,
        "total_ms": 1.0,
        "kinds": [{"kind": "k", "ms": 1.0, "share": 1.0}],
        "operations": [{"operation": "o", "origin": "a|b", "times": 1, "ms": 1.0, "share": 1.0}],
    },
    "run": {
        "name": "run",
        "epochs": 3,
        "train_images": 120,
        "status": "VALID",
        "span_s": 3.0,
        "share": 0.98,
        "phases": "train 2.0 s",
        "trials": [
            {"trial": 0, "gap_s": None, "epochs": 3, "images_per_second": 5.0, "ops_per_second": 1e12}
        ],
    },
}


@pytest.mark.parametrize("name", pages.PAGES)
def test_a_page_shows_measured_and_failed_rows(name: str) -> None:
    text = pages.PAGES[name]([ROWS[name], {"name": "bad", "failed": "XlaRuntimeError: out of | memory"}])
    assert text.startswith("## ")
    assert "failed: XlaRuntimeError: out of" in text
    # Every row of a table has as many cells as its head.
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert blocks
    for lines in blocks:
        assert len({line.count("|") for line in lines}) == 1 and len(lines) > 2, lines


def test_numbers_are_rounded_and_tables_are_markdown() -> None:
    values = (None, 0.012345, 12.345, 4567.8, 0.0)
    assert [number(value) for value in values] == ["-", "0.0123", "12.3", "4,568", "0.00"]
    assert number(519.84, 4) == "519.8"
    assert markdown(["a", "b"], [["x|y", 1]]) == "| a | b |\n| --- | ---: |\n| x/y | 1 |"
