# SPDX-License-Identifier: Apache-2.0
"""Find the layers of a network that are computed together as one function."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from aiperf_mpi.network.architecture import Layer
from aiperf_mpi.opcount.forms import FOLDED, MERGED, POOLED, expansions
from aiperf_mpi.training.model.pooling import STRIDE, WINDOW


@dataclass(frozen=True, slots=True)
class Fused:
    """The layers that are computed as one function with a batch norm.

    Attributes:
        norm: the batch norm.
        conv: the convolution before it; None if it is computed on its own.
        add, relu: names of the addition and of the ReLU after it, "" for none.
        shortcut: name of the layer whose output the addition adds.
        pool: whether max pooling follows the ReLU.
    """

    norm: Layer
    conv: Layer | None = None
    add: str = ""
    relu: str = ""
    shortcut: str = ""
    pool: bool = False

    @property
    def names(self) -> set[str]:
        """Names of its layers, except for max pooling."""
        return {self.norm.name, self.add, self.relu, self.conv.name if self.conv else ""} - {""}


class _Chains:
    """The layers by name, and how many others read each."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.named: Mapping[str, Layer] = {layer.name: layer for layer in layers}
        self._readers: dict[str, int] = {}
        for layer in layers:
            for name in layer.inputs:
                self._readers[name] = self._readers.get(name, 0) + 1

    def alone(self, name: str, kind: str) -> bool:
        """Return whether a layer is of a kind and one layer reads its output."""
        return name in self.named and self.named[name].kind == kind and self._readers[name] == 1


def fusions(
    layers: Sequence[Layer], forms: Collection[str] = (), own: Collection[str] = ()
) -> tuple[dict[str, Fused], frozenset[str]]:
    """Find the ReLUs to fuse with the batch norm before them, or with batch norm and addition.

    A layer is fused only if no other layer reads its output. If both inputs of an addition are batch norms,
    the first one is fused, and the other one is the shortcut. With the form POOLED a max pooling is fused
    with batch norm and ReLU before it, with FOLDED an expanding convolution with the batch norm after it, and
    with MERGED each convolution that is not in `own`, the names of those with a form of their own.

    Return the fused layers by the name of the last of them, and the names of all others of them.
    """
    chains = _Chains(layers)
    fused: dict[str, Fused] = {}
    for layer in layers:
        if layer.kind == "relu" and (found := _before(layer, chains)):
            fused[layer.name] = found
        elif layer.kind == "max_pool" and POOLED in forms and is_pooled(layer):
            (relu,) = layer.inputs
            if chains.alone(relu, "relu") and relu in fused and not fused[relu].add:
                fused[layer.name] = replace(fused.pop(relu), pool=True)
    if FOLDED in forms:
        fused = _with_convolutions(layers, expansions(layers), fused, chains)
    if MERGED in forms:
        fused = _with_convolutions(layers, [x for x in layers if x.name not in own], fused, chains)
    taken = {name for last, found in fused.items() for name in found.names - {last}}
    return fused, frozenset(taken)


def is_pooled(layer: Layer) -> bool:
    """Return whether a max pooling has the windows of :mod:`pooling`."""
    return (layer.kernel, layer.stride) == (WINDOW, STRIDE)


def is_strided(layer: Layer) -> bool:
    """Return whether a layer is a convolution of 1x1 that leaves pixels out."""
    return layer.kind == "conv" and layer.kernel == 1 and layer.stride > 1


def _before(relu: Layer, chains: _Chains) -> Fused | None:
    """Return the batch norm before a ReLU, perhaps with an addition between them; None without one."""
    before = relu.inputs[0]
    if chains.alone(before, "batch_norm"):
        return Fused(chains.named[before], relu=relu.name)
    if not chains.alone(before, "add"):
        return None
    inputs = chains.named[before].inputs
    norm = next((name for name in inputs if chains.alone(name, "batch_norm")), None)
    if norm is None:
        return None
    (other,) = (name for name in inputs if name != norm)
    return Fused(chains.named[norm], add=before, relu=relu.name, shortcut=other)


def _with_convolutions(
    layers: Sequence[Layer], convolutions: Sequence[Layer], fused: Mapping[str, Fused], chains: _Chains
) -> dict[str, Fused]:
    """Return the fused layers with those of `convolutions` before their batch norms, also of other norms."""
    last_of = {found.norm.name: last for last, found in fused.items()}
    chosen = {layer.name for layer in convolutions}
    result = dict(fused)
    for norm in layers:
        before = norm.inputs[0]
        if norm.kind == "batch_norm" and before in chosen and chains.alone(before, "conv"):
            last = last_of.get(norm.name, norm.name)
            result[last] = replace(result.get(last, Fused(norm)), conv=chains.named[before])
    return result
