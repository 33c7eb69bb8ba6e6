# SPDX-License-Identifier: Apache-2.0
"""Small base networks, and checks of a list of layers."""

from __future__ import annotations

from aiperf_mpi.network.architecture import Architecture, Base, Layer

SMALL = Base(image_size=32, channels=1, classes=10, width=4)
TINY = Base(image_size=20, channels=3, classes=5, width=2, blocks=(1, 1))


def by_name(architecture: Architecture) -> dict[str, Layer]:
    return {layer.name: layer for layer in architecture.layers()}


def order(architecture: Architecture) -> list[int]:
    return [unit.id for unit in architecture.units]


def canonical(architecture: Architecture) -> tuple[Layer, ...]:
    """Return the layers with units named by position, which are equal for equal networks."""
    position = {f"{unit.id:03d}": f"{i:03d}" for i, unit in enumerate(architecture.units)}

    def rename(name: str) -> str:
        for part in ("unit", "from"):
            head, separator, tail = name.partition(part)
            if separator and tail[:3].isdigit():
                name = f"{head}{part}@{position[tail[:3]]}{tail[3:]}"
        return name

    return tuple(
        Layer(
            x.kind,
            rename(x.name),
            tuple(rename(n) for n in x.inputs),
            x.in_shape,
            x.out_shape,
            x.kernel,
            x.stride,
        )
        for x in architecture.layers()
    )


def well_formed(architecture: Architecture) -> None:
    """Check that layers read earlier layers, in the shapes that these have, and ADDs join equal shapes."""
    shapes = {"input": (architecture.base.image_size,) * 2 + (architecture.base.channels,)}
    for layer in architecture.layers():
        assert layer.name not in shapes, f"{layer.name} appears twice"
        assert layer.in_shape == shapes[layer.inputs[0]], layer
        assert len(layer.inputs) == (2 if layer.kind == "add" else 1), layer
        if layer.kind == "add":
            assert shapes[layer.inputs[0]] == shapes[layer.inputs[1]] == layer.out_shape, layer
        if layer.kind in ("conv", "max_pool"):
            assert layer.out_shape[:2] == tuple(-(-n // layer.stride) for n in layer.in_shape[:2]), layer
        if layer.kind in ("batch_norm", "relu", "max_pool", "add"):
            assert layer.out_shape[2] == layer.in_shape[2], layer
        shapes[layer.name] = layer.out_shape
    assert shapes["softmax"] == (1, 1, architecture.base.classes)
