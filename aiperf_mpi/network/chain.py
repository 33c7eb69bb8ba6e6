# SPDX-License-Identifier: Apache-2.0
"""A network as a chain of units: the chain of ResNet, and the change that each morph makes.

A unit is a convolution, its batch norm, the additions after that, and a ReLU. It may have edges from earlier
units (shortcuts and skips). Its id is its creation ordinal, so insertions never change ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

#: Morph operations, in the order of their codes in a packed morph (section 4.1 of the paper).
OPS = ("deeper", "wider", "skip", "kernel")

#: Source of an edge that starts at the output of the stem's max-pooling, not at a unit's ReLU.
POOL = -1

#: Ratio of the filters of a bottleneck's last and first convolutions (He et al., 2016, Table 1).
EXPANSION = 4

#: Kernel size of a convolution that `deeper` inserts, unless hyperparameter optimisation sets another.
DEFAULT_KERNEL = 3

#: Ids must fit the 12 bits that a packed morph gives them, kernel sizes its 5 bits.
MAX_UNIT_ID = (1 << 12) - 1
MAX_KERNEL = (1 << 5) - 1

#: Bounds of the base network, far above any practical use: a forged description cannot exhaust memory.
MAX_SIZE = 1 << 16
MAX_STAGES = 8

# Keys of a morph's JSON form in addition to "op"; the first is its unit `a`.
_JSON_KEYS = {
    "deeper": ("after", "kernel"),
    "wider": ("unit",),
    "skip": ("source", "target"),
    "kernel": ("unit", "kernel"),
}


class MorphError(ValueError):
    """A morph cannot be applied to an architecture; the message names the morph and the reason."""


def json_integer(data: Mapping[Any, Any], key: Any, where: str) -> int:
    """Return `data[key]`. Raises MorphError naming the key if it is not an integer (true and 1.0 are not)."""
    value = data[key]
    if isinstance(value, bool) or not isinstance(value, int):
        raise MorphError(f"architecture: {where}: {key} is {value!r}, but must be an integer")
    return value


@dataclass(frozen=True, slots=True)
class Morph:
    """One network morphism. `a`, `b` are unit ids, `kernel` a kernel size; their meaning depends on `op`:

    - ``deeper``: a unit of `kernel` x `kernel` convolution, batch norm and ReLU is inserted after unit `a`.
    - ``wider``: the filters of unit `a`, and of all units that additions tie to it, double.
    - ``skip``: the output of unit `a` is added after the batch norm of unit `b`.
    - ``kernel``: the convolution of unit `a` grows to `kernel` x `kernel`.
    """

    op: str
    a: int
    b: int = 0
    kernel: int = 0

    def pack(self) -> int:
        """Return the morph in 32 bits: op (3), kernel (5), a (12), b (12), most significant bits first."""
        return OPS.index(self.op) << 29 | self.kernel << 24 | self.a << 12 | self.b

    @staticmethod
    def unpack(word: int) -> Morph:
        """Return the morph whose `pack()` is `word`. Raises MorphError if no morph has this value."""
        code = word >> 29
        if code >= len(OPS):
            raise MorphError(f"packed morph {word:#010x}: operation code {code} is unknown")
        op, keys = OPS[code], _JSON_KEYS[OPS[code]]
        morph = Morph(op, word >> 12 & 0xFFF, word & 0xFFF, word >> 24 & 0x1F)
        if morph.b and "target" not in keys or morph.kernel and "kernel" not in keys:
            raise MorphError(f"packed morph {word:#010x}: {op} does not use all the fields that are set")
        return morph

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, with a descriptive key for each field."""
        values = {"target": self.b, "kernel": self.kernel}
        first, *rest = _JSON_KEYS[self.op]
        return {"op": self.op, first: self.a} | {key: values[key] for key in rest}

    @staticmethod
    def from_dict(data: Any) -> Morph:
        """Read a morph from its JSON form.

        Raises MorphError for an unknown operation, and for a missing, wrong or unknown key.
        """
        if not isinstance(data, Mapping) or data.get("op") not in OPS:
            raise MorphError(f"morph {data!r}: expected an object with an op of {', '.join(OPS)}")
        op, keys = data["op"], _JSON_KEYS[data["op"]]
        if unknown := set(data) - {"op", *keys}:
            raise MorphError(
                f"morph {dict(data)}: unknown keys {sorted(unknown)}; {op} takes {', '.join(keys)}"
            )
        values = {"kernel": DEFAULT_KERNEL} if op == "deeper" else {}
        values |= {key: json_integer(data, key, f"morph {dict(data)}") for key in keys if key in data}
        if missing := set(keys) - set(values):
            raise MorphError(f"morph {dict(data)}: keys {sorted(missing)} are missing")
        return Morph(op, values[keys[0]], values.get("target", 0), values.get("kernel", 0))

    def __str__(self) -> str:
        return " ".join(str(value) for value in self.to_dict().values())


@dataclass(frozen=True, slots=True)
class Edge:
    """An addition after a unit's batch norm, of the output of the unit `source`.

    The `kind` is how that output is added: ``identity`` (unchanged, only in the base network), ``norm``
    (after a batch norm), or ``conv`` (after a strided 1x1 convolution and a batch norm).
    """

    source: int
    kind: str
    stride: int = 1


@dataclass(frozen=True, slots=True)
class Unit:
    """A convolution, batch norm, additions, and ReLU; `id` is the creation ordinal and never changes."""

    id: int
    kernel: int
    stride: int
    filters: int
    edges: tuple[Edge, ...] = ()


@dataclass(frozen=True, slots=True)
class Base:
    """The network before any morph: ResNet version 1, with the stride in a stage's first 1x1 convolution.

    Arguments:
        image_size: height and width of the square input in pixels.
        channels: channels of the input.
        classes: number of outputs.
        width: filters of the stem (64 in ResNet-50; fewer give a narrow network for tests and demos).
        blocks: bottleneck blocks of each stage ((3, 4, 6, 3) in ResNet-50).
    """

    image_size: int = 224
    channels: int = 3
    classes: int = 1000
    width: int = 64
    blocks: tuple[int, ...] = (3, 4, 6, 3)

    def __post_init__(self) -> None:
        for name in ("image_size", "channels", "classes", "width"):
            if not 1 <= getattr(self, name) <= MAX_SIZE:
                raise ValueError(
                    f"base network: {name} is {getattr(self, name)}, but must be from 1 to {MAX_SIZE}"
                )
        if not 1 <= len(self.blocks) <= MAX_STAGES or min(self.blocks) < 1:
            raise ValueError(
                f"base network: blocks is {self.blocks}, but it takes 1 to {MAX_STAGES} stages of at "
                "least 1 block each"
            )
        if 3 * sum(self.blocks) > MAX_UNIT_ID:
            raise ValueError(
                f"base network: {sum(self.blocks)} blocks are too many, at most {MAX_UNIT_ID // 3} fit"
            )


@dataclass(slots=True)
class Chain:
    """A mutable network while morphs are applied: unit ids in order, and each unit by its id."""

    order: list[int]
    units: dict[int, Unit]
    pool_after: int

    def copy(self) -> Chain:
        """Return an independent copy of the chain; it shares the units, which are immutable."""
        return Chain(self.order.copy(), self.units.copy(), self.pool_after)


# -- the base network ------------------------------------------------------------------------------


def base_chain(base: Base) -> Chain:
    """Return the chain of ResNet version 1.

    It is a 7x7 stem with stride 2 and max-pooling, then bottlenecks of 1x1, 3x3, 1x1 convolutions. The chains
    of one base share its units, so `is` tells whether a morph has changed a unit.
    """
    units = _base_units(base)
    return Chain([u.id for u in units], {u.id: u for u in units}, pool_after=0)


@lru_cache(maxsize=64)
def _base_units(base: Base) -> tuple[Unit, ...]:
    units = [Unit(0, 7, 2, base.width)]
    for stage, count in enumerate(base.blocks):
        narrow = base.width << stage
        for block in range(count):
            # A stage's first block changes the shape, so its shortcut needs a projection with that stride.
            first = block == 0
            stride = 2 if first and stage else 1
            source = POOL if len(units) == 1 else units[-1].id
            shortcut = Edge(source, "conv", stride) if first else Edge(source, "identity")
            for kernel, step, filters, edges in (
                (1, stride, narrow, ()),
                (3, 1, narrow, ()),
                (1, 1, narrow * EXPANSION, (shortcut,)),
            ):
                units.append(Unit(len(units), kernel, step, filters, edges))
    return tuple(units)


# -- the morphs: each first checks, then changes the chain in place --------------------------------


def _require_unit(chain: Chain, morph: Morph, unit_id: int) -> Unit:
    """Return a unit by its id, or raise MorphError if there is none."""
    if unit_id not in chain.units:
        raise MorphError(
            f"morph {morph}: there is no unit {unit_id} (ids run from 0 to {len(chain.order) - 1})"
        )
    return chain.units[unit_id]


def _replace(unit: Unit, **changes: Any) -> Unit:
    """Return `unit` with some fields changed (in a third of the time of `dataclasses.replace`)."""
    return Unit(
        unit.id,
        changes.get("kernel", unit.kernel),
        unit.stride,
        changes.get("filters", unit.filters),
        changes.get("edges", unit.edges),
    )


def _deeper(chain: Chain, morph: Morph) -> None:
    """Insert a unit after unit `a`; all consumers of `a`, skips and max-pooling included, then read it."""
    before = _require_unit(chain, morph, morph.a)
    if not 1 <= morph.kernel <= MAX_KERNEL:
        raise MorphError(f"morph {morph}: kernel {morph.kernel} is not between 1 and {MAX_KERNEL}")
    new_id = len(chain.order)
    if new_id > MAX_UNIT_ID:
        raise MorphError(f"morph {morph}: more than {MAX_UNIT_ID + 1} units")

    consumers = {
        unit.id: unit for unit in chain.units.values() for edge in unit.edges if edge.source == morph.a
    }
    for unit in consumers.values():
        moved = tuple(Edge(new_id, e.kind, e.stride) if e.source == morph.a else e for e in unit.edges)
        chain.units[unit.id] = _replace(unit, edges=moved)
    chain.units[new_id] = Unit(new_id, morph.kernel, 1, before.filters)
    chain.order.insert(chain.order.index(morph.a) + 1, new_id)
    if chain.pool_after == morph.a:
        chain.pool_after = new_id


def _wider(chain: Chain, morph: Morph) -> None:
    """Double the filters of unit `a`, and of all units that additions without projection tie to it."""
    _require_unit(chain, morph, morph.a)
    if morph.a == chain.order[-1]:
        raise MorphError(f"morph {morph}: the last convolution of the main chain is not widened")
    for unit_id in tied_units(chain.units, morph.a):
        unit = chain.units[unit_id]
        chain.units[unit_id] = _replace(unit, filters=unit.filters * 2)


def _skip(chain: Chain, morph: Morph) -> None:
    """Add the output of unit `a` after the batch norm of unit `b`, with a projection if the shapes differ."""
    source, target = _require_unit(chain, morph, morph.a), _require_unit(chain, morph, morph.b)
    start, end = chain.order.index(source.id), chain.order.index(target.id)
    if start < 1:
        raise MorphError(f"morph {morph}: the stem's first unit cannot be the source of a skip")
    if start >= end:
        raise MorphError(f"morph {morph}: unit {source.id} does not come before unit {target.id}")
    if any(edge.source == source.id for edge in target.edges):
        raise MorphError(f"morph {morph}: unit {source.id} is already added to unit {target.id}")

    # The stride of the projection is the product of all strides between source and target.
    stride = 1
    for unit_id in chain.order[start + 1 : end + 1]:
        stride *= chain.units[unit_id].stride
    if start <= chain.order.index(chain.pool_after) < end:
        stride *= 2
    kind = "norm" if stride == 1 and source.filters == target.filters else "conv"
    chain.units[target.id] = _replace(target, edges=(*target.edges, Edge(source.id, kind, stride)))


def _kernel(chain: Chain, morph: Morph) -> None:
    """Grow the convolution of unit `a` to `kernel` x `kernel`."""
    unit = _require_unit(chain, morph, morph.a)
    if not unit.kernel < morph.kernel <= MAX_KERNEL:
        raise MorphError(
            f"morph {morph}: kernel {morph.kernel} is not between {unit.kernel + 1}, one more than "
            f"the unit has, and {MAX_KERNEL}"
        )
    chain.units[unit.id] = _replace(unit, kernel=morph.kernel)


_APPLY = {"deeper": _deeper, "wider": _wider, "skip": _skip, "kernel": _kernel}


def replay(chain: Chain, morphs: Iterable[Morph]) -> Chain:
    """Apply morphs to `chain` in place and return it. Raises MorphError at the first that cannot apply."""
    for morph in morphs:
        _APPLY[morph.op](chain, morph)
    return chain


def tied_units(units: Mapping[int, Unit], start: int) -> set[int]:
    """Return the ids of `start` and of all units that additions without projection tie to it."""
    ties: dict[int, list[int]] = {}
    for unit in units.values():
        for edge in unit.edges:
            if edge.kind != "conv":
                ties.setdefault(edge.source, []).append(unit.id)
                ties.setdefault(unit.id, []).append(edge.source)
    tied, open_ids = {start}, [start]
    while open_ids:
        for neighbour in ties.get(open_ids.pop(), ()):
            if neighbour not in tied:
                tied.add(neighbour)
                open_ids.append(neighbour)
    return tied
