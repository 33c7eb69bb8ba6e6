# SPDX-License-Identifier: Apache-2.0
"""Tables 3 and A1 as they are printed."""

from __future__ import annotations

import pytest

from aiperf_mpi.network.architecture import Architecture, Base, Morph, resnet50
from aiperf_mpi.opcount.table import as_counts, describe, footnotes, ratio, scientific, table_3, table_a1

IMAGENET = (1_281_167, 50_000)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (7_711_850_496, "7.71e9"), (1908, "1.91e3"), (9.996e6, "1.00e7"), (5, "5.00e0")],
)
def test_three_digits(value: float, text: str) -> None:
    assert scientific(value) == text


def test_ratios() -> None:
    # 15,234,582,912 / 7,711,850,496 and 1908 / 74,109,952, as the paper prints them.
    assert ratio(15_234_582_912, 7_711_850_496) == "1.9755"
    assert ratio(1908, 74_109_952) == "0.00003"
    assert ratio(0, 5) == ratio(5, 0) == "0"


def test_table_3_is_the_papers_except_two_contradictory_rows() -> None:
    rows = {row.title: row for row in table_3(resnet50())}
    assert list(rows) == [
        "Convolutional",
        "Dense",
        "Batch normalization",
        "ReLU",
        "Max-pooling",
        "Average-pooling",
        "Add",
        "Softmax",
        "Total",
    ]
    assert {title for title, row in rows.items() if row.contradicted} == {"Average-pooling", "Softmax"}
    # Ours: the authors' profiler, 48 * 2048 + 4 * 2048 = 106,496 and 8000 + 999 + 4000 = 12,999.
    assert rows["Average-pooling"].cells == ("1.06e5", "0", "0", "1.06e5")
    assert rows["Softmax"].cells == ("1.30e4", "0", "0", "1.30e4")
    assert rows["Total"].cells == ("7.81e9", "1.52e10", "1.9531", "2.31e10")


def test_table_a1_is_the_papers_except_the_ratio() -> None:
    rows = table_a1(resnet50(), IMAGENET)
    assert [row.cells[0] for row in rows] == ["1.00e16", "1.95e16", "1.9531", "2.95e16", "3.90e14", "2.99e16"]
    # Table A1 prints 1.9533 where Table 3 prints 1.9531, of the same network.
    assert [row.title for row in rows if row.contradicted] == ["BP/FP (training)"]


def test_footnotes_have_all_values() -> None:
    text = "\n".join(footnotes(resnet50()))
    for value in (
        "108,544",
        "106,496",
        "1.00e5",
        "100,352",
        "13,000",
        "12,999",
        "2.10e4",
        "1.9531",
        "1.9533",
    ):
        assert value in text


def test_another_network_has_no_values_of_the_paper() -> None:
    other = resnet50().apply(Morph("wider", 4))
    assert not any(row.paper for row in (*table_3(other), *table_a1(other, IMAGENET)))
    assert not any("prints" in note for note in footnotes(other))


def test_what_a_network_is_called() -> None:
    assert describe(resnet50()) == "ResNet-50, 224x224x3, 1000 classes: 175 layers, 25,557,032 parameters"
    assert describe(Architecture(Base(32, 3, 10))).startswith("ResNet-50, 32x32x3, 10 classes")
    small = Architecture(Base(32, 1, 10, 4, (1, 1))).apply(Morph("wider", 2))
    assert describe(small).startswith("ResNet of (1, 1), width 4 and 1 morphs, 32x32x1, 10 classes")


def test_the_json_form_adds_up() -> None:
    assert as_counts({"conv": (3, 6), "add": (1, 0)}) == {
        "conv": {"fp": 3, "bp": 6},
        "add": {"fp": 1, "bp": 0},
        "total": {"fp": 4, "bp": 6},
    }
