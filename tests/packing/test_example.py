# SPDX-License-Identifier: Apache-2.0
"""Features of an Example: found wherever they are in the record, by few reads, and within a bound."""

from __future__ import annotations

import time

import pytest
from hypothesis import example as case
from hypothesis import given
from hypothesis import strategies as st

from aiperf_mpi.packing.sources.example import Example, ExampleError
from tests.helpers.sources import example, sized, varint

WANTED = (b"image/encoded", b"image/class/label", b"image/filename")


def parsed(data: bytes, reads: list[int] | None = None) -> Example:
    def read(begin: int, count: int) -> bytes:
        assert 0 <= begin and 0 <= count and begin + count <= len(data)
        if reads is not None:
            reads.append(count)
        return data[begin : begin + count]

    return Example(read, len(data), WANTED)


NAMES = st.sampled_from(["image/encoded", "image/class/label", "image/filename", "image/height", "x"])


@given(
    st.dictionaries(NAMES, st.binary(max_size=9000) | st.integers(-(1 << 63), (1 << 63) - 1)), st.booleans()
)
def test_wanted_features_are_found(features: dict[str, bytes | int], packed: bool) -> None:
    data = example(features, packed)
    found = parsed(data)
    wanted = {name: value for name, value in features.items() if name.encode() in WANTED}
    assert found.numbers == {name.encode(): value for name, value in wanted.items() if isinstance(value, int)}
    assert {name: data[slice(*span)] for name, span in found.spans.items()} == {
        name.encode(): value for name, value in wanted.items() if isinstance(value, bytes)
    }


def test_the_picture_is_not_read() -> None:
    reads: list[int] = []
    features: dict[str, bytes | int] = {"image/height": 1, "image/encoded": bytes(1 << 20)}
    found = parsed(example({**features, "image/filename": b"a.JPEG", "image/class/label": 3}), reads)
    assert found.text(b"image/filename") == b"a.JPEG" and found.numbers == {b"image/class/label": 3}
    assert sum(reads) <= 3 * 4096


def test_a_feature_that_is_missing_is_empty() -> None:
    assert parsed(b"").text(b"image/filename") == b""


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"\x0a\x7f", "has a field that is longer than what it is in"),
        (b"\x0a" + b"\xff" * 9 + b"\x01", "has a field that is longer than what it is in"),
        (b"\xff" * 11, "has a number without end"),
        (b"\x0b", "has a field of the unknown kind 3"),
        (b"\x08\x00" * 20_000, "has more than 10000 fields"),
        (sized(1, sized(1, sized(1, b"k" * 5000))), "has a name of more than 4096 bytes"),
    ],
)
def test_what_is_not_an_example(data: bytes, reason: str) -> None:
    with pytest.raises(ExampleError, match=f"^{reason}$"):
        parsed(data)


@given(st.binary(max_size=400))
@case(varint(1 << 3 | 2) + varint((1 << 64) - 1))
@case(sized(1, sized(1, sized(1, b"image/class/label") + sized(2, sized(3, b"")))))
def test_any_bytes_are_read_within_bounds(data: bytes) -> None:
    begun = time.process_time()
    try:
        parsed(data)
    except ExampleError as error:
        assert str(error).isprintable()
    assert time.process_time() - begun < 2


@given(st.data())
def test_changed_bytes_are_read_within_bounds(data: st.DataObject) -> None:
    content = bytearray(
        example({"image/class/label": 300, "image/encoded": b"x" * 50, "image/filename": b"f"})
    )
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = parsed(bytes(content))
    except ExampleError:
        return
    for begin, end in found.spans.values():
        assert 0 <= begin <= end <= len(content)
    assert all(-(1 << 63) <= number < 1 << 63 for number in found.numbers.values())
