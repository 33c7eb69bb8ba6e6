# SPDX-License-Identifier: Apache-2.0
"""Operation counts by the paper's Tables 1 and 2, from an architecture's list of layers (exact integers).

Two sets of rules:

- ``paper``, the official set, reproduces the authors' profiler: ResNet-50 on 224x224x3 images and 1000
  classes takes 7,806,583,495 operations forward and 23,053,458,315 forward and backward per image. If the
  paper contradicts its own Table 1 (global pooling, softmax), these rules follow the profiler. The update of
  the parameters counts once per image.
- ``executed`` takes Table 1 verbatim for global pooling and softmax (7,806,585,544 forward). It counts the
  update of the parameters of convolutions and dense layers separately, once per step, as it is executed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType

from aiperf_mpi.network.architecture import Architecture, Layer
from aiperf_mpi.opcount import METHOD_VERSIONS

#: Version of the rules below; it changes whenever one of them does, and is stored with every trial.
METHOD_VERSION = METHOD_VERSIONS["analytical"]

RULES = ("paper", "executed")

#: The kinds of layers that multiply matrices (nearly all of the work), and the three products of each in a
#: training step.
MATRIX_KINDS = ("conv", "dense")
FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT = MATRIX_ROLES = ("forward", "input gradient", "weight gradient")

#: The optimiser's MACs for each parameter: the momentum times its sum plus the gradient, and the parameter
#: minus the rate times that. The paper's Table 2 has one MAC, and none for the parameters of batch norms.
OPTIMISER_MACS = 2

#: Kinds of layers, in the order of the paper's Table 3.
KINDS = ("conv", "dense", "batch_norm", "relu", "max_pool", "global_pool", "add", "softmax")

#: Weight of each operation (section 4.4 of the paper, after its reference 57).
WEIGHTS: Mapping[str, int] = MappingProxyType(
    {"mac": 2, "add": 1, "sub": 1, "mul": 1, "compare": 1, "div": 4, "sqrt": 4, "exp": 8}
)

#: Backward operations of a batch norm in the authors' profiler: (29 B + 7) / B for a batch of B. They set
#: B = 1 for a layer of any size, which gives the paper's 1.91e3 for the 53 of ResNet-50 (Table 3).
BATCH_NORM_BACKWARD = 29 + 7

# A term is an operation of WEIGHTS, and the number of times that a layer executes it for one image.
Term = tuple[str, Callable[[Layer], int]]


def _weights(layer: Layer) -> int:
    """Return K x K x Ci x Co, the parameters of a convolution (without bias)."""
    return layer.kernel * layer.kernel * layer.in_shape[2] * layer.out_shape[2]


def _inputs(layer: Layer) -> int:
    """Return Hi x Wi x Ci."""
    height, width, channels = layer.in_shape
    return height * width * channels


def _outputs(layer: Layer) -> int:
    """Return Ho x Wo x Co."""
    height, width, channels = layer.out_shape
    return height * width * channels


def _conv_macs(layer: Layer) -> int:
    """Return K x K x Ci x Ho x Wo x Co."""
    return _weights(layer) * layer.out_shape[0] * layer.out_shape[1]


def _dense_macs(layer: Layer) -> int:
    """Return Ci x Co."""
    return layer.in_shape[2] * layer.out_shape[2]


def _channels_in(layer: Layer) -> int:
    return layer.in_shape[2]


def _channels_out(layer: Layer) -> int:
    return layer.out_shape[2]


#: Table 1 of the paper: operations of a layer in the forward pass, per image.
TABLE_1: Mapping[str, tuple[Term, ...]] = MappingProxyType(
    {
        "conv": (("mac", _conv_macs),),
        "dense": (("mac", _dense_macs),),
        "batch_norm": (("mac", _inputs), ("add", _inputs), ("div", _inputs)),
        "relu": (("compare", _outputs),),
        "add": (("add", _outputs),),
        "max_pool": (("compare", lambda layer: layer.kernel**2 * _outputs(layer)),),
        "global_pool": (("add", _inputs), ("div", _channels_in)),
        "softmax": (("exp", _channels_out), ("add", _channels_out), ("div", _channels_out)),
    }
)

#: Counts of the authors' profiler that differ from Table 1: a sum of n terms takes n - 1 additions.
PROFILER_FORWARD: Mapping[str, tuple[Term, ...]] = MappingProxyType(
    {
        "global_pool": (("add", lambda layer: _inputs(layer) - _channels_in(layer)), ("div", _channels_in)),
        "softmax": (
            ("exp", _channels_out),
            ("add", lambda layer: _channels_out(layer) - 1),
            ("div", _channels_out),
        ),
    }
)

#: Table 2 of the paper, first summand: gradients with respect to input and parameters, per image.
TABLE_2_GRADIENTS: Mapping[str, tuple[Term, ...]] = MappingProxyType(
    {
        "conv": (("mac", lambda layer: 2 * _conv_macs(layer)),),
        "dense": (("mac", lambda layer: 2 * _dense_macs(layer)),),
    }
)

#: The first convolution has no input gradient, as the data need none (in the profiler and in Table 3, but not
#: in Table 2).
FIRST_CONV_GRADIENTS: tuple[Term, ...] = (("mac", _conv_macs),)

#: Table 2 of the paper, second summand: the update of the parameters, one MAC for each.
TABLE_2_UPDATE: Mapping[str, tuple[Term, ...]] = MappingProxyType(
    {
        "conv": (("mac", _weights),),
        "dense": (("mac", lambda layer: (_channels_in(layer) + 1) * _channels_out(layer)),),
    }
)


@dataclass(frozen=True)
class Counts:
    """Operations per image of each kind of layer, as exact integers; ``+`` adds counts.

    `kinds` maps each kind to (forward, backward). Under the ``executed`` rules `update` is the update of the
    parameters per step. Under the ``paper`` rules the update is part of the backward operations, and `update`
    is 0.
    """

    kinds: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    update: int = 0

    def __add__(self, other: Counts) -> Counts:
        kinds = dict(self.kinds)
        for kind, (forward, backward) in other.kinds.items():
            before = kinds.get(kind, (0, 0))
            kinds[kind] = (before[0] + forward, before[1] + backward)
        return Counts(kinds, self.update + other.update)

    @property
    def fp(self) -> int:
        """Forward operations per image."""
        return sum(forward for forward, _ in self.kinds.values())

    @property
    def bp(self) -> int:
        """Backward operations per image."""
        return sum(backward for _, backward in self.kinds.values())

    @property
    def train(self) -> int:
        """Operations of training on one image: forward and backward."""
        return self.fp + self.bp

    @property
    def val(self) -> int:
        """Operations of validating one image: forward."""
        return self.fp


#: Number of layer forms whose counts are cached.
_FORMS = 1 << 16


def _total(terms: Iterable[Term], layer: Layer) -> int:
    """Return the weighted operations of all terms."""
    return sum(WEIGHTS[operation] * times(layer) for operation, times in terms)


def count_layer(layer: Layer, rules: str = "paper") -> tuple[int, int, int]:
    """Return the operations of one layer: (forward per image, backward per image, update per step).

    Raises ValueError for unknown rules, or a layer of unknown kind.
    """
    if rules not in RULES:
        raise ValueError(f"operation count: rules {rules!r} are not one of {', '.join(RULES)}")
    if layer.kind not in TABLE_1:
        raise ValueError(f"operation count: layer {layer.name} is of unknown kind {layer.kind!r}")

    first = layer.inputs == ("input",)
    return _count_form(
        layer.kind,
        first,
        len(layer.inputs),
        layer.in_shape,
        layer.out_shape,
        layer.kernel,
        layer.stride,
        rules,
    )


@lru_cache(maxsize=_FORMS)
def _count_form(
    kind: str,
    first: bool,
    inputs: int,
    in_shape: tuple[int, int, int],
    out_shape: tuple[int, int, int],
    kernel: int,
    stride: int,
    rules: str,
) -> tuple[int, int, int]:
    """Return the operations of a layer of this form, whatever its name (cached).

    Ten thousand networks share a few thousand forms.
    """
    layer = Layer(kind, "", ("input" if first else "",) * inputs, in_shape, out_shape, kernel, stride)
    forward = TABLE_1[layer.kind]
    if rules == "paper":
        forward = PROFILER_FORWARD.get(layer.kind, forward)
    gradients = TABLE_2_GRADIENTS.get(layer.kind, ())
    if layer.kind == "conv" and layer.inputs == ("input",):
        gradients = FIRST_CONV_GRADIENTS

    backward = _total(gradients, layer) + (BATCH_NORM_BACKWARD if layer.kind == "batch_norm" else 0)
    update = _total(TABLE_2_UPDATE.get(layer.kind, ()), layer)
    if rules == "paper":
        return _total(forward, layer), backward + update, 0
    return _total(forward, layer), backward, update


def count(layers: Iterable[Layer], rules: str = "paper") -> Counts:
    """Return the operations per image (forward, backward) by kind of layer, and the update per step.

    `layers` are those of `Architecture.layers()`; a kind without a layer has (0, 0). `rules` is `paper` (the
    update is then part of the backward operations) or `executed`.
    Raises ValueError for unknown rules, or a layer of unknown kind.
    """
    forward, backward, update = dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0), 0
    for layer in layers:
        fp, bp, per_step = count_layer(layer, rules)
        forward[layer.kind] += fp
        backward[layer.kind] += bp
        update += per_step
    return Counts({kind: (forward[kind], backward[kind]) for kind in KINDS}, update)


def matrix_operations(layers: Iterable[Layer]) -> dict[tuple[str, str], int]:
    """Return the operations per image of convolutions and dense layers, without the update.

    The keys are (kind, one of MATRIX_ROLES). Table 2 has both gradients in one row. Each gradient takes as
    many operations as the forward pass, except that the first convolution has no input gradient.
    """
    products = {(kind, role): 0 for kind in MATRIX_KINDS for role in MATRIX_ROLES}
    for layer in layers:
        if layer.kind in MATRIX_KINDS:
            forward, gradients, _ = count_layer(layer, "executed")
            products[layer.kind, FORWARD] += forward
            products[layer.kind, WEIGHT_GRADIENT] += forward
            products[layer.kind, INPUT_GRADIENT] += gradients - forward
    return products


def update_operations(architecture: Architecture) -> int:
    """Return the executed operations per step of the update, with momentum, for all parameters."""
    return WEIGHTS["mac"] * OPTIMISER_MACS * architecture.parameters


def operations(architecture: Architecture) -> tuple[int, int]:
    """Return the operations per image of training and validation, by the official `paper` rules."""
    counts = count(architecture.layers())
    return counts.train, counts.val
