# SPDX-License-Identifier: Apache-2.0
"""The network that the training benchmarks train and how they measure it, on a GPU and (smaller) on a CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from aiperf_mpi.network.architecture import Architecture, Base, resnet50


@dataclass(frozen=True)
class Shape:
    """One shape; the defaults are those of an accelerator.

    Attributes:
        image, width, classes, blocks: of the network (`architecture.Base`), with 3 channels.
        batches: images of a step; the first one is used where only one is.
        precision, augmentation: as in `StepSettings`.
        steps: of a window; repeats: windows.
        matrix: rows of the matrices whose product is measured; copy_mib: MiB of the array that is copied.
        fed_images: images of the made-up data set that a loader reads.
        cache: folder of the persistent compilation cache; empty for none.
        peers: how PyTorch runs the step, see `torch_peer`.
        peer_python: the Python that has PyTorch; empty for this one.
    """

    image: int = 224
    width: int = 64
    classes: int = 1000
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    batches: tuple[int, ...] = (256, 512)
    precision: str = "bfloat16"
    augmentation: str = "cifar"
    steps: int = 20
    repeats: int = 6
    matrix: int = 8192
    copy_mib: int = 2048
    fed_images: int = 8192
    cache: str = ""
    peers: tuple[str, ...] = ("eager", "compiled")
    peer_python: str = ""

    @property
    def network(self) -> Architecture:
        """Return the ResNet-50 of this shape, or the network that `blocks` gives."""
        return resnet50(Base(self.image, 3, self.classes, self.width, self.blocks))

    @property
    def name(self) -> str:
        """ResNet-50, or the numbers of blocks of its stages."""
        return "ResNet-50" if self.blocks == Base().blocks else f"blocks {'-'.join(map(str, self.blocks))}"

    @staticmethod
    def of(data: Mapping[str, Any]) -> Shape:
        """Return the shape from the result of `dataclasses.asdict`, or from JSON of it."""
        return Shape(
            **{key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
        )


#: A machine with an accelerator, and the smallest shape that shows that everything runs.
PRESETS: Mapping[str, Shape] = MappingProxyType(
    {
        "gpu": Shape(),
        "cpu": Shape(
            32, 4, 10, (1, 1), (8, 16), "float32", steps=8, repeats=6, matrix=512, copy_mib=64, fed_images=512
        ),
    }
)
