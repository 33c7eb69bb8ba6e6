# SPDX-License-Identifier: Apache-2.0
"""The serial forms of an architecture, JSON and packed morphs, and forged ones."""

from __future__ import annotations

import json

import pytest

from aiperf_mpi.network.architecture import MAX_UNIT_ID, POOL, Architecture, Base, Morph, MorphError, resnet50

SMALL = Base(image_size=32, channels=1, classes=10, width=4)
GOOD = (
    Architecture(SMALL)
    .apply(Morph("deeper", 5, 0, 5), Morph("skip", 1, 9), Morph("wider", 8), Morph("kernel", 4, 0, 3))
    .to_dict()
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other/1"}, "format"),
        ({"extra": 1}, "extra"),
        ({"base": []}, "base must be an object"),
        ({"morphs": {}}, "morphs a list"),
        ({"base": {"width": "4"}}, "width is '4'"),
        ({"base": {"width": True}}, "width is True"),
        ({"base": {"width": 4.0}}, "width is 4.0"),
        ({"base": {"colour": 4}}, "colour"),
        ({"base": {"blocks": 3}}, "blocks is 3"),
        ({"base": {"blocks": [3, "4"]}}, "must be an integer"),
        ({"morphs": [7]}, "expected an object"),
        ({"morphs": [{"op": ["wider"]}]}, "expected an object with an op"),
        ({"morphs": [{"op": "thinner", "unit": 3}]}, "deeper, wider, skip, kernel"),
        ({"morphs": [{"op": "wider"}]}, "unit"),
        ({"morphs": [{"op": "wider", "unit": 3, "kernel": 3}]}, "unknown keys"),
        ({"morphs": [{"op": "wider", "unit": None}]}, "must be an integer"),
        ({"morphs": [{"op": "wider", "unit": 10**30}]}, "no unit"),
    ],
)
def test_a_forged_description_is_a_value_error(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Architecture.from_json(json.dumps(GOOD | change))


@pytest.mark.parametrize("text", ["", "null", "[]", "{", '"x"', "[" * 100_000, "1e999"])
def test_other_text_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        Architecture.from_json(text)


def test_the_json_form_is_plain_and_documented() -> None:
    assert GOOD["morphs"] == [
        {"op": "deeper", "after": 5, "kernel": 5},
        {"op": "skip", "source": 1, "target": 9},
        {"op": "wider", "unit": 8},
        {"op": "kernel", "unit": 4, "kernel": 3},
    ]
    assert Architecture.from_dict({}) == resnet50()
    assert Architecture.from_dict({"morphs": [{"op": "deeper", "after": 5}]}).morphs == (
        Morph("deeper", 5, 0, 3),
    )


@pytest.mark.parametrize("word", [4 << 29, 7 << 29, 1 << 29 | 1, 2 << 29 | 1 << 24, 0 << 29 | 3 << 24 | 9])
def test_values_that_pack_never_returns_are_refused(word: int) -> None:
    # Unknown operations; a `b` in wider, a kernel in skip, a `b` in deeper.
    with pytest.raises(MorphError, match="packed morph"):
        Morph.unpack(word)


def test_packed_fields_have_their_places() -> None:
    # op 2 (skip) in the top 3 bits, then kernel 0, a = 5, b = 20.
    assert Morph("skip", 5, 20).pack() == 2 << 29 | 5 << 12 | 20
    assert Morph("kernel", MAX_UNIT_ID, 0, 31).pack() == 3 << 29 | 31 << 24 | MAX_UNIT_ID << 12
    assert POOL == -1  # no morph can name the pooling
