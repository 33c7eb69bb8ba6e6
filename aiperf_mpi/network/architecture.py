# SPDX-License-Identifier: Apache-2.0
"""The network that a trial trains: ResNet-50 (version 1) of the paper plus an ordered list of morphs.

An :class:`Architecture` is pure data: a base network and the morphs that were applied to it. Replaying the
morphs gives the chain of *units* (convolution, batch norm, additions, ReLU). :meth:`Architecture.layers`
lists every layer with its shapes. The Flax module and the operation counts read this one list.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from aiperf_mpi.network.chain import (
    DEFAULT_KERNEL,
    EXPANSION,
    MAX_KERNEL,
    MAX_SIZE,
    MAX_STAGES,
    MAX_UNIT_ID,
    OPS,
    POOL,
    Base,
    Chain,
    Edge,
    Morph,
    MorphError,
    Unit,
    base_chain,
    json_integer,
    replay,
    tied_units,
)

__all__ = [
    "DEFAULT_KERNEL",
    "EXPANSION",
    "JSON_FORMAT",
    "MAX_KERNEL",
    "MAX_SIZE",
    "MAX_STAGES",
    "MAX_UNIT_ID",
    "OPS",
    "POOL",
    "Architecture",
    "Base",
    "Edge",
    "Layer",
    "Morph",
    "MorphError",
    "Unit",
    "resnet50",
    "tied_units",
]

JSON_FORMAT = "aiperf_mpi.architecture/1"


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer with its shapes (height, width, channels) for one image.

    `kind` is conv, batch_norm, relu, add, max_pool, global_pool, dense or softmax. `inputs` are the names of
    the layers (or ``"input"``) whose outputs it takes. `unit` is the id of its unit, or -1 outside of units.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    in_shape: tuple[int, int, int]
    out_shape: tuple[int, int, int]
    kernel: int = 1
    stride: int = 1
    unit: int = -1


@dataclass(frozen=True)
class Architecture:
    """A base network and the morphs applied to it, in order.

    It is immutable. The constructor raises MorphError for a morph that cannot be applied.
    """

    base: Base = field(default_factory=Base)
    morphs: tuple[Morph, ...] = ()
    _chain: Chain = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Replay now: an architecture that exists is valid.
        object.__setattr__(self, "_chain", replay(base_chain(self.base), self.morphs))

    def apply(self, *morphs: Morph) -> Architecture:
        """Return the architecture after these morphs. Raises MorphError if one cannot be applied."""
        # Build the child without the constructor, which would replay all morphs: replay only its own.
        child = object.__new__(Architecture)
        object.__setattr__(child, "base", self.base)
        object.__setattr__(child, "morphs", self.morphs + morphs)
        object.__setattr__(child, "_chain", replay(self._chain.copy(), morphs))
        return child

    @property
    def units(self) -> tuple[Unit, ...]:
        """The units in the order of the main chain."""
        return tuple(map(self._chain.units.__getitem__, self._chain.order))

    @property
    def unit_count(self) -> int:
        """Number of units of the main chain."""
        return len(self._chain.order)

    @property
    def pool_after(self) -> int:
        """Id of the unit that the stem's max-pooling follows."""
        return self._chain.pool_after

    def layers(self) -> tuple[Layer, ...]:
        """Return every layer with its shapes, in an order in which the layers can be computed."""
        return self._layers

    @cached_property
    def _layers(self) -> tuple[Layer, ...]:
        return _list_layers(self.base, self.units, self._chain.pool_after)

    @cached_property
    def hash(self) -> str:
        """128-bit hash (32 hexadecimal digits) of the canonical network.

        The canonical network has the layers in order, and edges by position, not by unit id.
        """
        return _canonical_hash(self.base, self.units, self._chain.pool_after)

    def group(self, own: int) -> str:
        """Return the hash with the kernels at the positions `own_kernel_morphs(own)` reset to 3."""
        return self.with_own_kernel(own, DEFAULT_KERNEL).hash

    def own_kernel_morphs(self, own: int) -> tuple[int, ...]:
        """Return the positions in `morphs` whose kernel hyperparameter optimisation sets.

        These are the `deeper` morphs among the last `own` morphs (the candidate's own chain). A `deeper` is
        left out if a kernel morph of the same chain grows its unit: the kernel morph has precedence. Raises
        ValueError if there are fewer than `own` morphs.
        """
        split = len(self.morphs) - own
        if split < 0:
            raise ValueError(f"architecture: {own} own morphs, but it has only {len(self.morphs)}")
        grown = {morph.a for morph in self.morphs[split:] if morph.op == "kernel"}

        # The id of a new unit is the number of units before it.
        next_id = len(self._chain.order) - sum(morph.op == "deeper" for morph in self.morphs[split:])
        positions = []
        for position in range(split, len(self.morphs)):
            if self.morphs[position].op == "deeper":
                if next_id not in grown:
                    positions.append(position)
                next_id += 1
        return tuple(positions)

    def with_own_kernel(self, own: int, kernel: int) -> Architecture:
        """Return the architecture with `kernel` in the morphs at the positions `own_kernel_morphs(own)`.

        Raises MorphError for an invalid kernel size.
        """
        changed = list(self.morphs)
        for position in self.own_kernel_morphs(own):
            changed[position] = Morph("deeper", self.morphs[position].a, 0, kernel)
        morphs = tuple(changed)
        return self if morphs == self.morphs else Architecture(self.base, morphs)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all convolutions of the forward pass for one image."""
        return self._sums[0]

    @property
    def parameters(self) -> int:
        """Number of trainable parameters.

        Convolutions have no bias, batch norms two parameters per channel, and the dense layer has a bias.
        """
        return self._sums[1]

    @cached_property
    def _sums(self) -> tuple[int, int]:
        # Sum over units: a sum over `layers()` takes half a millisecond, and the search needs this for every
        # network.
        units, pool_after = self._chain.units, self._chain.pool_after
        macs, parameters, channels, size = 0, 0, self.base.channels, self.base.image_size
        for unit_id in self._chain.order:
            unit = units[unit_id]
            weights, norms, filters = unit.kernel * unit.kernel * channels, 1, unit.filters
            for edge in unit.edges:
                if edge.kind == "conv":
                    weights += units[pool_after if edge.source == POOL else edge.source].filters
                if edge.kind != "identity":
                    norms += 1
            if unit.stride > 1:
                size = -(-size // unit.stride)
            macs += weights * filters * size * size
            parameters += (weights + 2 * norms) * filters
            if unit_id == pool_after:
                size = -(-size // 2)
            channels = filters
        return macs, parameters + (channels + 1) * self.base.classes

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form as a dictionary."""
        base = {
            "image_size": self.base.image_size,
            "channels": self.base.channels,
            "classes": self.base.classes,
            "width": self.base.width,
            "blocks": list(self.base.blocks),
        }
        return {"format": JSON_FORMAT, "base": base, "morphs": [m.to_dict() for m in self.morphs]}

    def to_json(self) -> str:
        """Return the JSON form in one line."""
        return json.dumps(self.to_dict(), separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> Architecture:
        """Read an architecture from its JSON form. Raises ValueError with the reason for any other text."""
        try:
            data = json.loads(text)
        except RecursionError:
            raise ValueError("architecture: the JSON text is nested too deep") from None
        return Architecture.from_dict(data)

    @staticmethod
    def from_dict(data: Any) -> Architecture:
        """Read an architecture from its JSON form as a dictionary. Raises ValueError naming the wrong key."""
        if not isinstance(data, Mapping) or data.get("format", JSON_FORMAT) != JSON_FORMAT:
            raise ValueError(f"architecture: expected an object with format {JSON_FORMAT!r}")
        if unknown := set(data) - {"format", "base", "morphs"}:
            raise ValueError(f"architecture: unknown keys {sorted(unknown)}; it takes format, base, morphs")

        base, morphs = data.get("base", {}), data.get("morphs", [])
        if not isinstance(base, Mapping) or not isinstance(morphs, list):
            raise ValueError("architecture: base must be an object and morphs a list")
        known = Base.__dataclass_fields__
        if unknown := set(base) - set(known):
            raise ValueError(
                f"architecture: base has unknown keys {sorted(unknown)}; it takes {', '.join(known)}"
            )
        values: dict[str, Any] = {key: json_integer(base, key, "base") for key in base if key != "blocks"}
        if "blocks" in base:
            if not isinstance(base["blocks"], list):
                raise ValueError(f"architecture: base: blocks is {base['blocks']!r}, but must be a list")
            numbers = dict(enumerate(base["blocks"]))
            values["blocks"] = tuple(json_integer(numbers, i, "base: blocks") for i in numbers)
        return Architecture(Base(**values), tuple(Morph.from_dict(m) for m in morphs))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Architecture) and (self.base, self.morphs) == (other.base, other.morphs)

    def __hash__(self) -> int:
        return hash((self.base, self.morphs))


def resnet50(base: Base | None = None) -> Architecture:
    """Return the initial architecture of a run: the base network without morphs (Table 4 of the paper)."""
    return Architecture(base or Base())


# -- layers and hash -------------------------------------------------------------------------------


def _edges_by_position(unit: Unit, position: Mapping[int, int], pool_after: int) -> list[Edge]:
    """Sort a unit's edges by the position of their source; the max-pooling comes right after its unit."""
    return sorted(
        unit.edges, key=lambda e: (position[pool_after], 1) if e.source == POOL else (position[e.source], 0)
    )


class _LayerList:
    """Layers in the order in which they are added, with shapes derived from those of their inputs."""

    def __init__(self, base: Base) -> None:
        self.layers: list[Layer] = []
        self._shapes = {"input": (base.image_size, base.image_size, base.channels)}

    def add(
        self,
        kind: str,
        name: str,
        inputs: tuple[str, ...],
        unit: int = -1,
        *,
        filters: int = 0,
        kernel: int = 1,
        stride: int = 1,
    ) -> str:
        """Add a layer and return its name; `filters` 0 keeps the number of channels."""
        height, width, channels = shape = self._shapes[inputs[0]]
        # Padding keeps the size, and a stride rounds it up, so nested strides round alike.
        output = (-(-height // stride), -(-width // stride), filters or channels)
        if kind in ("global_pool", "dense", "softmax"):
            output = (1, 1, filters or channels)
        self._shapes[name] = output
        self.layers.append(Layer(kind, name, inputs, shape, output, kernel, stride, unit))
        return name


def _list_layers(base: Base, units: tuple[Unit, ...], pool_after: int) -> tuple[Layer, ...]:
    """Return the layers of all units, the max-pooling after its unit, and the layers after the last unit."""
    layers = _LayerList(base)
    position = {unit.id: i for i, unit in enumerate(units)}
    outputs: dict[int, str] = {}

    flow = "input"
    for unit in units:
        edges = _edges_by_position(unit, position, pool_after)
        flow = outputs[unit.id] = _add_unit(layers, unit, edges, flow, outputs)
        if unit.id == pool_after:
            flow = outputs[POOL] = layers.add("max_pool", "pool", (flow,), kernel=3, stride=2)

    flow = layers.add("global_pool", "global_pool", (flow,))
    flow = layers.add("dense", "dense", (flow,), filters=base.classes)
    layers.add("softmax", "softmax", (flow,))
    return tuple(layers.layers)


def _add_unit(
    layers: _LayerList, unit: Unit, edges: Iterable[Edge], flow: str, outputs: Mapping[int, str]
) -> str:
    """Add the layers of a unit with input `flow`, and return the name of its ReLU.

    `outputs` has the name of each earlier unit's ReLU, and of the max-pooling.
    """
    tag, filters = f"unit{unit.id:03d}", unit.filters
    flow = layers.add(
        "conv", f"{tag}.conv", (flow,), unit.id, filters=filters, kernel=unit.kernel, stride=unit.stride
    )
    flow = layers.add("batch_norm", f"{tag}.norm", (flow,), unit.id)
    for edge in edges:
        source = f"{tag}.from{'pool' if edge.source == POOL else f'{edge.source:03d}'}"
        branch = outputs[edge.source]
        if edge.kind == "conv":
            branch = layers.add(
                "conv", f"{source}.conv", (branch,), unit.id, filters=filters, stride=edge.stride
            )
        if edge.kind != "identity":
            branch = layers.add("batch_norm", f"{source}.norm", (branch,), unit.id)
        flow = layers.add("add", f"{source}.add", (flow, branch), unit.id)
    return layers.add("relu", f"{tag}.relu", (flow,), unit.id)


def _canonical_hash(base: Base, units: tuple[Unit, ...], pool_after: int) -> str:
    """Return a hash of the base, and of each unit with its edges by position."""
    position = {unit.id: i for i, unit in enumerate(units)}
    position[POOL] = -1
    parts = [f"[{base.image_size}, {base.channels}, {base.classes}, {position[pool_after]}"]
    for unit in units:
        # Skip sorting for the many units without edges: a search hashes thousands of networks at its start.
        edges = sorted((position[e.source], e.kind, e.stride) for e in unit.edges) if unit.edges else "[]"
        parts.append(f"({unit.kernel}, {unit.stride}, {unit.filters}, {edges})")
    return hashlib.blake2b(f"{', '.join(parts)}]".encode(), digest_size=16).hexdigest()
