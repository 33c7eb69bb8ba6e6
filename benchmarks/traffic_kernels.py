# SPDX-License-Identifier: Apache-2.0
"""Model the memory traffic of a compiled program: the bytes that each of its kernels must read and write.

A kernel reads each operand once and writes its result once. Of a fusion's operand that is only sliced or
gathered, also after elementwise operations, the used share counts, and of an update in place only the update.
A convolution whose stride exceeds its kernel reads only the pixels that it uses. An operand that is given
twice counts once. The body of a loop counts as often as it runs.

Not counted are workspaces of libraries (they are listed apart), caches, neighbours of a window that are read
again, and what autotuning would choose on a device. So the result is a floor for these kernels.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isqrt, prod

from benchmarks.traffic_hlo import Array, Operation, Program

#: Operations that run no kernel.
_FREE = frozenset(
    ("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "partition-id")
    + ("replica-id", "opt-barrier", "domain", "add-dependency")
)

#: Operations that need all of an operand, though their result may have as many elements.
_WHOLE = frozenset(("reduce", "reduce-window", "scatter", "gather", "sort", "dot", "convolution"))

#: Operations that run another computation once, or several times.
_CALLING = frozenset(("while", "call", "conditional", "async-start"))

#: Kinds of kernels by the first of these operations that a fusion contains.
_KINDS: Mapping[str, str] = {
    "scatter": "scatter",
    "select-and-scatter": "scatter",
    "convolution": "convolution",
    "dot": "matrix product",
    "transpose": "transpose",
    "reduce": "reduction",
    "reduce-window": "reduction",
    "concatenate": "concatenation",
}

#: Kinds of kernels by a part of the library function's name.
_LIBRARIES = (
    ("convBackwardInput", "convolution, input gradient"),
    ("convBackwardFilter", "convolution, weight gradient"),
    ("conv", "convolution, forward"),
    ("matmul", "matrix product"),
    ("gemm", "matrix product"),
)

#: Element types of four bytes or more.
WIDE = frozenset(("f32", "s32", "u32", "f64", "s64", "u64"))


@dataclass(frozen=True)
class Kernel:
    """One kernel, or the same kernel of a loop's trips.

    Attributes:
        kind: what it does, such as reduction or matrix product.
        name, source: XLA's name of it, and JAX's (scopes and primitive).
        read, written: bytes of one run.
        operations: of its matrix product or convolution, 2 for a multiply-add; 0 for others.
        workspace: bytes of a library's temporary memory, not in `written`.
        times: number of runs in a step.
        results: types of the arrays that it writes.
        reorders: types of the arrays whose order in memory it changes.
    """

    kind: str
    name: str
    source: str
    read: float
    written: float
    operations: int
    workspace: float
    times: int
    results: tuple[Array, ...]
    reorders: tuple[Array, ...] = ()

    @property
    def bytes(self) -> float:
        """Bytes read and written in a step."""
        return self.times * (self.read + self.written)


def kernels(program: Program) -> list[Kernel]:
    """Return the kernels of a program in the order in which they run."""
    return list(_kernels(program, program.entry, 1))


def _kernels(program: Program, computation: str, times: int) -> Iterator[Kernel]:
    operations = program.computations[computation]
    named = {operation.name: operation for operation in operations}
    for operation in operations:
        if operation.kind in _FREE or operation.kind.endswith(("-done", "-update")):
            continue
        if operation.kind in _CALLING and operation.called in program.computations:
            trips = int(operation.attribute(r'known_trip_count":\{"n":"(\d+)"') or 1)
            yield from _kernels(program, operation.called, times * trips)
        elif operation.kind == "fusion":
            yield _fusion(operation, program.computations[operation.called], named, times)
        elif operation.kind == "custom-call":
            yield _library_call(operation, named, times)
        else:
            yield _single(operation, named, times)


def _fusion(
    operation: Operation, inner: Sequence[Operation], named: Mapping[str, Operation], times: int
) -> Kernel:
    reads, written = _fused_bytes(inner)
    of_operand: dict[str, float] = defaultdict(float)
    for place, operand in enumerate(operation.operands):
        of_operand[operand] = max(of_operand[operand], reads.get(place, 0))
    present = {item.kind for item in inner}
    kind = next((_KINDS[name] for name in _KINDS if name in present), "elementwise")
    types = {item.name: item for item in inner}
    multiplied = sum(_dot_operations(item, types) for item in inner if item.kind == "dot")
    return Kernel(
        kind,
        operation.name,
        operation.source,
        sum(of_operand.values()),
        written,
        multiplied,
        0,
        times,
        operation.arrays,
        tuple(_reordered(inner, types)),
    )


def _library_call(operation: Operation, named: Mapping[str, Operation], times: int) -> Kernel:
    target = operation.target
    kind = next((kind for part, kind in _LIBRARIES if part in target), "other library")
    reads = sum(named[name].bytes for name in dict.fromkeys(operation.operands) if name in named)
    # The last result of a library is its workspace, an array of bytes with one dimension.
    spaces = [a.bytes for a in operation.arrays if a.element in ("s8", "u8") and len(a.dimensions) == 1]
    multiplied = 0
    if kind.startswith("convolution"):
        reads -= _unused_pixels(operation, named)
        multiplied = _convolution_operations(operation, named)
    elif kind == "matrix product":
        multiplied = _dot_operations(operation, named)
    results = tuple(a for a in operation.arrays if a.element not in ("s8", "u8") or len(a.dimensions) > 1)
    written = sum(array.bytes for array in results)
    return Kernel(
        kind, operation.name, operation.source, reads, written, multiplied, sum(spaces), times, results
    )


def _single(operation: Operation, named: Mapping[str, Operation], times: int) -> Kernel:
    reads = sum(named[name].bytes for name in dict.fromkeys(operation.operands) if name in named)
    kind = _KINDS.get(operation.kind, operation.kind.removesuffix("-start"))
    return Kernel(
        kind,
        operation.name,
        operation.source,
        reads,
        operation.bytes,
        0,
        0,
        times,
        operation.arrays,
        tuple(_reordered((operation,), named)),
    )


def _fused_bytes(inner: Sequence[Operation]) -> tuple[dict[int, float], float]:
    """Return the bytes that a fusion reads of each operand, by its place, and the bytes that it writes."""
    named = {operation.name: operation for operation in inner}
    users: dict[str, list[tuple[Operation, int]]] = defaultdict(list)
    for operation in inner:
        for operand in dict.fromkeys(operation.operands):
            users[operand].append((operation, operation.operands.index(operand)))

    # From the last operation to the first: the share of its elements that later ones need.
    share: dict[str, float] = {}
    for operation in reversed(inner):
        needed = 1.0 if operation.root else 0.0
        for user, place in users[operation.name]:
            needed += _used_share(operation, user, place, share[user.name])
        share[operation.name] = min(1.0, needed)
    reads = {
        int(operation.inside): operation.bytes * share[operation.name]
        for operation in inner
        if operation.kind == "parameter"
    }
    root = next(operation for operation in inner if operation.root)
    return reads, _written(root, named)


def _used_share(operation: Operation, user: Operation, place: int, of_user: float) -> float:
    """Return the share of an operation's elements that one of its users needs."""
    elements = max(1, operation.elements)
    if user.kind in ("slice", "dynamic-slice", "gather"):
        return of_user * user.elements / elements if place == 0 else 1.0
    if user.kind in ("dynamic-update-slice", "scatter"):
        return 0.0 if place == 0 else 1.0
    elementwise = user.kind not in _WHOLE and user.kind != "tuple" and user.elements == elements
    return of_user if elementwise else 1.0


def _written(operation: Operation, named: Mapping[str, Operation]) -> float:
    if operation.kind == "tuple":
        return sum(_written(named[name], named) for name in operation.operands)
    if operation.kind in ("bitcast", "reshape", "copy", "convert") and operation.operands:
        before = named[operation.operands[0]]
        if before.kind in ("dynamic-update-slice", "scatter"):
            return _written(before, named)
    if operation.kind == "dynamic-update-slice":
        return named[operation.operands[1]].bytes
    if operation.kind == "scatter":
        # Each place of an update is read and written again.
        return 2 * named[operation.operands[-1]].bytes
    return operation.bytes


def _reordered(operations: Iterable[Operation], named: Mapping[str, Operation]) -> Iterator[Array]:
    """Yield the results that are transposed, or copied to another order in memory."""
    for operation in operations:
        if operation.kind == "transpose":
            yield from operation.arrays
        elif operation.kind == "copy" and operation.operands[0] in named:
            before = named[operation.operands[0]].arrays
            yield from (b for a, b in zip(before, operation.arrays, strict=True) if a.layout != b.layout)


def _unused_pixels(operation: Operation, named: Mapping[str, Operation]) -> float:
    """Return the bytes of the pixels that a convolution skips: for kernel 1 and stride 2 three quarters."""
    window = operation.attribute(r"window=\{([^}]*)\}")
    kernel, stride = re.search(r"size=([\dx]+)", window), re.search(r"stride=([\dx]+)", window)
    if "BackwardInput" in operation.target or not kernel or not stride:
        return 0.0
    sizes = zip(kernel[1].split("x"), stride[1].split("x"), strict=True)
    used = prod(min(1.0, int(size) / int(step)) for size, step in sizes)
    return (1 - used) * named[operation.operands[0]].bytes


def _convolution_operations(operation: Operation, named: Mapping[str, Operation]) -> int:
    """Return the operations of a library's convolution: each output position times the whole kernel."""
    labels = operation.attribute(r"dim_labels=([\w>\-]+)")
    if not labels or len(operation.operands) < 2:
        return 0
    left, right = (named[name].arrays[0].dimensions for name in operation.operands[:2])
    result = operation.arrays[0].dimensions
    channels_in, channels_out = labels.split("_")[0].index("f"), labels.split("->")[1].index("f")
    if "BackwardFilter" in operation.target:
        return 2 * prod(right) // right[channels_in] * prod(result)
    if "BackwardInput" in operation.target:
        return 2 * prod(left) // left[channels_in] * prod(right)
    return 2 * prod(result) // result[channels_out] * prod(right)


def _dot_operations(operation: Operation, named: Mapping[str, Operation]) -> int:
    """Return the operations of a product, 2 m n k, from the three sizes (with b batches b times as many)."""
    if len(operation.operands) < 2 or not operation.arrays:
        return 0
    left, right = (named[name].arrays[0] for name in operation.operands[:2])
    places = [int(n) for n in operation.attribute(r"lhs_batch_dims=\{([\d,]+)\}").split(",") if n]
    batches = prod(left.dimensions[place] for place in places)
    return 2 * isqrt(left.elements * right.elements * operation.arrays[0].elements // batches)
