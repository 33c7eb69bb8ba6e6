# SPDX-License-Identifier: Apache-2.0
"""Read some features of an `Example`, the protocol buffer in a TFRecord, without reading its picture.

    Example     { Features features = 1; }
    Features    { map<string, Feature> feature = 1; }           an entry: key = 1, value = 2
    Feature     { BytesList = 1 | FloatList = 2 | Int64List = 3 }
    BytesList   { repeated bytes value = 1; }    Int64List { repeated int64 value = 1; }

A field begins with a varint: its number times 8, plus its kind (0 varint, 1 eight bytes, 2 length and bytes,
5 four bytes). Only the heads of fields and the wanted values are read, so a record costs two reads of 4 KiB.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

#: Most fields of a record, and most bytes of a key or of a wanted text: more is damaged or hostile.
_MOST_FIELDS, _MOST_TEXT = 10_000, 4096

_READ_BYTES = 4096

_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5

#: Place of bytes in the record: where they begin and end.
Span = tuple[int, int]


class ExampleError(ValueError):
    """A record is not an Example; the text says why."""


class Example:
    """The features of one record.

    Attributes:
        numbers: first value of each wanted feature of whole numbers.
        spans: place in the record of the first value of each wanted feature of bytes.
    """

    def __init__(self, read: Callable[[int, int], bytes], size: int, wanted: Collection[bytes]) -> None:
        """Read the wanted features of a record of `size` bytes; `read(offset, count)` returns some of them.

        Raises ExampleError, and what `read` raises.
        """
        self._read, self._size, self._wanted = read, size, wanted
        self._buffer, self._begin, self._fields = b"", 0, 0
        self.numbers: dict[bytes, int] = {}
        self.spans: dict[bytes, Span] = {}
        for features in self._messages((0, size), 1):
            for entry in self._messages(features, 1):
                self._entry(entry)

    def text(self, feature: bytes) -> bytes:
        """Return the bytes of a wanted feature, b"" if the record lacks it. Raises ExampleError."""
        begin, end = self.spans.get(feature, (0, 0))
        return self._bytes(begin, end)

    def _entry(self, entry: Span) -> None:
        """Take the value of an entry of the map, if it is wanted."""
        key, value = b"", (0, 0)
        for number, kind, span, _ in self._parts(entry):
            if (number, kind) == (1, _BYTES):
                key = self._bytes(*span)
            elif (number, kind) == (2, _BYTES):
                value = span
        if key not in self._wanted:
            return
        for number, kind, span, _ in self._parts(value):
            if (number, kind) == (1, _BYTES):
                for text in self._messages(span, 1):
                    self.spans.setdefault(key, text)
            elif (number, kind) == (3, _BYTES):
                self._whole_number(key, span)

    def _whole_number(self, key: bytes, span: Span) -> None:
        """Take the first number of a list, which is packed (one field for all) or not."""
        for number, kind, packed, value in self._parts(span):
            if number == 1 and kind == _BYTES and packed[0] < packed[1]:
                value = self._varint(packed[0], packed[1])[0]
            elif number != 1 or kind != _VARINT:
                continue
            self.numbers.setdefault(key, value - (1 << 64) if value >> 63 else value)

    def _messages(self, span: Span, wanted: int) -> Iterator[Span]:
        """Yield the places of the fields of a number that have a length."""
        for number, kind, inside, _ in self._parts(span):
            if number == wanted and kind == _BYTES:
                yield inside

    def _parts(self, span: Span) -> Iterator[tuple[int, int, Span, int]]:
        """Yield number and kind of each field, the place of its bytes, and its value if it is a varint."""
        position, end = span
        while position < end:
            self._fields += 1
            if self._fields > _MOST_FIELDS:
                raise ExampleError(f"has more than {_MOST_FIELDS} fields")
            tag, position = self._varint(position, end)
            kind, value, size = tag & 7, 0, 0
            if kind in (_VARINT, _BYTES):
                value, position = self._varint(position, end)
                size = value if kind == _BYTES else 0
            elif kind in (_EIGHT, _FOUR):
                size = 8 if kind == _EIGHT else 4
            else:
                raise ExampleError(f"has a field of the unknown kind {kind}")
            if size > end - position:
                raise ExampleError("has a field that is longer than what it is in")
            yield tag >> 3, kind, (position, position + size), value
            position += size

    def _varint(self, position: int, end: int) -> tuple[int, int]:
        """Return a varint (7 bits in each byte, the lowest first), and where the next thing begins."""
        at = position - self._begin
        # Most numbers are short, and read already.
        if position < end and 0 <= at < len(self._buffer) and (byte := self._buffer[at]) < 0x80:
            return byte, position + 1
        data, value = self._window(position, min(end, position + 10)), 0
        for index, byte in enumerate(data):
            value |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                return value & 0xFFFFFFFFFFFFFFFF, position + index + 1
        raise ExampleError("has a number without end")

    def _bytes(self, begin: int, end: int) -> bytes:
        if end - begin > _MOST_TEXT:
            raise ExampleError(f"has a name of more than {_MOST_TEXT} bytes")
        return self._window(begin, end)

    def _window(self, begin: int, end: int) -> bytes:
        """Return some bytes of the record, which are read with what follows them."""
        if not self._begin <= begin <= end <= self._begin + len(self._buffer):
            self._begin = begin
            self._buffer = self._read(begin, min(max(end - begin, _READ_BYTES), self._size - begin))
        return self._buffer[begin - self._begin : end - self._begin]
