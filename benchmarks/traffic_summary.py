# SPDX-License-Identifier: Apache-2.0
"""Sum up the memory traffic of a compiled step: bytes by kind and by kernel, and what should not be there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from aiperf_mpi.network.architecture import Layer
from benchmarks.tables import markdown, number
from benchmarks.traffic_hlo import Array
from benchmarks.traffic_kernels import WIDE, Kernel

#: A kernel that moves less than this, and multiplies nothing, takes about as long as its launch.
SMALL_BYTES = 4e6


@dataclass(frozen=True)
class Summary:
    """What a step's kernels do; bytes are those of the model in :mod:`traffic_kernels`.

    Attributes:
        bytes_per_image: read and written by all kernels.
        library_bytes_per_image: of it, by calls of libraries.
        operations_per_image: of convolutions and matrix products.
        kernels, small_kernels, library_calls: numbers of launches in a step.
        wide_bytes: bytes of arrays of four-byte elements and the size of an activation that are written.
        scatters, all_reduces: numbers of kernels.
        reordered_bytes: bytes of activations that are transposed, or copied to another order in memory.
    """

    bytes_per_image: float
    library_bytes_per_image: float
    operations_per_image: float
    kernels: int
    small_kernels: int
    library_calls: int
    wide_bytes: float
    scatters: int
    all_reduces: int
    reordered_bytes: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def summarise(kernels: Sequence[Kernel], layers: Sequence[Layer], batch: int, parts: int = 1) -> Summary:
    """Sum up the kernels of a step.

    Arguments:
        layers: of the network.
        batch: images of a step on a device.
        parts: micro-batches into which the step cuts them.
    """
    libraries = [k for k in kernels if is_library(k)]
    activations = Activations(layers, batch // parts)
    return Summary(
        sum(k.bytes for k in kernels) / batch,
        sum(k.bytes for k in libraries) / batch,
        sum(k.times * k.operations for k in kernels) / batch,
        sum(k.times for k in kernels),
        sum(k.times for k in kernels if k.read + k.written < SMALL_BYTES and not k.operations),
        sum(k.times for k in libraries),
        sum(a.bytes * k.times for k, a in activations.wide(kernels)),
        sum(k.times for k in kernels if k.kind == "scatter"),
        sum(k.times for k in kernels if k.kind == "all-reduce"),
        sum(a.bytes * k.times for k in kernels for a in k.reorders if activations.is_one(a)),
    )


def is_library(kernel: Kernel) -> bool:
    """Return whether a kernel is a library's, of which XLA's own estimate knows nothing."""
    return kernel.name.partition(".")[0].startswith(("cudnn", "cublas", "custom-call"))


class Activations:
    """Tells arrays of the size of an activation from weights and sums.

    Arguments:
        layers: of the network.
        images: images that a device processes at a time.
    """

    def __init__(self, layers: Sequence[Layer], images: int) -> None:
        self._images = images
        self._least = images * min(prod(layer.out_shape) for layer in layers if layer.kind == "conv")

    def is_one(self, array: Array) -> bool:
        """Return whether it is as large as the smallest output of a convolution, with the images outside."""
        outside = (n for n in array.dimensions[:2])
        return array.elements >= self._least and any(n % self._images == 0 for n in outside)

    def wide(self, kernels: Iterable[Kernel]) -> Iterator[tuple[Kernel, Array]]:
        """Yield the activations of four-byte elements that kernels write."""
        for kernel in kernels:
            for array in kernel.results:
                if array.element in WIDE and self.is_one(array):
                    yield kernel, array


def by_kind(kernels: Iterable[Kernel]) -> dict[str, tuple[float, int]]:
    """Return bytes and number of launches of each kind of kernel, the most bytes first."""
    sums: dict[str, tuple[float, int]] = {}
    for kernel in kernels:
        total, times = sums.get(kernel.kind, (0.0, 0))
        sums[kernel.kind] = total + kernel.bytes, times + kernel.times
    return dict(sorted(sums.items(), key=lambda item: -item[1][0]))


def kind_table(kernels: Sequence[Kernel], batch: int) -> str:
    """Return the bytes by kind as a table."""
    rows = [(kind, number(b / batch / 1e6), times) for kind, (b, times) in by_kind(kernels).items()]
    return markdown(("Kernels", "MB an image", "launches"), rows)


def kernel_table(kernels: Sequence[Kernel], batch: int, largest: int) -> str:
    """Return the `largest` kernels as a table."""
    rows = []
    for kernel in sorted(kernels, key=lambda k: -k.bytes)[:largest]:
        results = " ".join(f"{a.element}[{','.join(map(str, a.dimensions))}]" for a in kernel.results[:3])
        sizes = (number(n * kernel.times / batch / 1e6) for n in (kernel.read, kernel.written))
        rows.append((kernel.kind, *sizes, results, kernel.source[-70:]))
    return markdown(("Kernel", "MB read", "MB written", "results", "source"), rows)
