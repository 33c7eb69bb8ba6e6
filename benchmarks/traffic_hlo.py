# SPDX-License-Identifier: Apache-2.0
"""Read the text of a compiled XLA program: its computations, their operations, and the sizes of arrays."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

#: Bytes of an element, by XLA's name of its type.
ELEMENT_BYTES: Mapping[str, float] = {
    **{"pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2},
    **{"s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8},
}

#: Patterns of the text: the head of a computation, an operation, an array's type, and an operand's name.
_HEAD = re.compile(r"(ENTRY )?%?([\w.\-]+) .*\{$")
_OPERATION = re.compile(r"\s*(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([\d,]*))?")
_OPERAND = re.compile(r"%([\w.\-]+)")


@dataclass(frozen=True, slots=True)
class Array:
    """The type of an array: element type, dimensions, and their order in memory (minor first, or ())."""

    element: str
    dimensions: tuple[int, ...]
    layout: tuple[int, ...] = ()

    @property
    def elements(self) -> int:
        """Number of elements."""
        return prod(self.dimensions)

    @property
    def bytes(self) -> float:
        """Size in memory, without padding."""
        return self.elements * ELEMENT_BYTES[self.element]


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation.

    Attributes:
        arrays: types of the result, more than one for a tuple.
        kind: XLA's name of the operation, such as fusion or custom-call.
        operands: names of the operations whose results it takes.
        inside: the text between its parentheses.
        attributes: the text after them.
        root: whether its result is that of the computation.
    """

    name: str
    arrays: tuple[Array, ...]
    kind: str
    operands: tuple[str, ...]
    inside: str
    attributes: str
    root: bool

    @property
    def elements(self) -> int:
        """Number of elements of the result."""
        return sum(array.elements for array in self.arrays)

    @property
    def bytes(self) -> float:
        """Bytes of the result."""
        return sum(array.bytes for array in self.arrays)

    @property
    def target(self) -> str:
        """Name of the library function that a custom call runs; "" for other operations."""
        return self.attribute(r'custom_call_target="([^"]*)"')

    @property
    def called(self) -> str:
        """Name of the computation that a fusion, call or loop runs; "" for other operations."""
        return self.attribute(r"(?:body=|to_apply=|calls=|_computations=\{)%?([\w.\-]+)")

    @property
    def source(self) -> str:
        """JAX's name of the operation: scopes and primitive."""
        return self.attribute(r'op_name="([^"]*)"')

    def attribute(self, pattern: str) -> str:
        """Return the first group of a pattern in the attributes; "" if it is not there."""
        found = re.search(pattern, self.attributes)
        return found[1] if found else ""


@dataclass(frozen=True, slots=True)
class Program:
    """A compiled program: name of a computation -> its operations in order, and the name of the entry."""

    computations: Mapping[str, tuple[Operation, ...]]
    entry: str


def parse(text: str) -> Program:
    """Read the text of a program (`compiled.as_text()`). Raises ValueError if it has no entry computation."""
    computations: dict[str, list[Operation]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if not line.startswith(" ") and (head := _HEAD.match(line)):
            current = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif current is not None and (found := _OPERATION.match(line)):
            current.append(_operation(found))
    if not entry:
        raise ValueError("the text of a compiled program has no ENTRY computation")
    return Program({name: tuple(operations) for name, operations in computations.items()}, entry)


def arrays(text: str) -> tuple[Array, ...]:
    """Return the arrays of a type, such as `(bf16[8,4]{1,0}, f32[])`; tokens and the like are left out."""
    return tuple(
        Array(element, _numbers(dimensions), _numbers(layout))
        for element, dimensions, layout in _ARRAY.findall(text)
        if element in ELEMENT_BYTES
    )


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number)


def _operation(found: re.Match[str]) -> Operation:
    root, name, kind_of_result, kind, rest = found.groups()
    depth, end = 1, len(rest)
    for place, letter in enumerate(rest):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            end = place
            break
    inside = rest[:end]
    operands = tuple(_OPERAND.findall(inside))
    return Operation(name, arrays(kind_of_result), kind, operands, inside, rest[end:], bool(root))
