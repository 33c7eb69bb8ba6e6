# SPDX-License-Identifier: Apache-2.0
"""The Flax network of an architecture: it interprets the list of layers, so it covers every morph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from aiperf_mpi.network.architecture import Architecture, Layer
from aiperf_mpi.opcount.forms import STEMS
from aiperf_mpi.training.model.layers import (
    NORM_EPSILON,
    NORM_MOMENTUM,
    UNUSED,
    BatchNorm,
    Fused,
    Tail,
    fusions,
)
from aiperf_mpi.training.model.stem import PLAIN, SPACE_TO_DEPTH, BlockConv

#: The activation precisions of a network; parameters, statistics and logits are float32 in all.
PRECISIONS = ("float32", "bfloat16", "float16")

#: Collection in which a network stores the output of each layer, if `mutable=[OUTPUTS]` requests it.
OUTPUTS = "outputs"

#: A tree of variables in the form of Flax: collection or module name -> ... -> array or shape.
Tree = Mapping[str, Any]


def module_name(layer: str) -> str:
    """Return the name of the Flax submodule that holds the parameters of this layer."""
    return layer.replace(".", "_")


class Network(nn.Module):
    """The network of a list of layers, from images [B, H, W, C] to logits [B, classes].

    The softmax at the end of the list belongs to the loss, so the network returns the softmax's input, in
    float32. Batch norms use the statistics of the batch in training, and running averages otherwise.

    Attributes:
        layers: the list from `Architecture.layers()`.
        dtype: dtype of the activations; parameters and statistics are float32.
        fused: whether batch norms are fused with the addition and the ReLU after them, see :mod:`layers`. The
            variables are the same either way. The layers stay separate if OUTPUTS is requested.
        stem: form of the first convolution, one of `opcount.forms.STEMS`; the variables are the same.
        axis: axis of the devices over which batch norms average their statistics in training; None for the
            statistics of one device's images.
    """

    layers: tuple[Layer, ...]
    dtype: Any = jnp.float32
    fused: bool = True
    stem: str = PLAIN
    axis: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        values = {"input": images.astype(self.dtype)}
        apart = not self.fused or self.is_mutable_collection(OUTPUTS)
        fused, taken = ({}, frozenset()) if apart else fusions(self.layers)
        for layer in self.layers:
            if layer.name in taken:
                continue
            if layer.name in fused:
                values[layer.name] = self._compute_fused(layer, fused[layer.name], values, train)
                continue

            # Profiles and operation counts assign each operation to a layer by its scope.
            with jax.named_scope(module_name(layer.name)):
                values[layer.name] = self._compute(layer, [values[name] for name in layer.inputs], train)
        self.sow(OUTPUTS, "layers", values, init_fn=dict, reduce_fn=lambda _, new: new)
        return values[self.layers[-1].name]

    def _compute_fused(
        self, relu: Layer, fused: Fused, values: dict[str, jax.Array], train: bool
    ) -> jax.Array:
        shortcut = values[fused.shortcut] if fused.shortcut else None
        tail = Tail(module_name(fused.add) if fused.add else "", module_name(relu.name))
        norm = BatchNorm(self.dtype, self.axis, name=module_name(fused.norm.name))
        return norm(values[fused.norm.inputs[0]], train, shortcut, tail)

    def _compute(self, layer: Layer, inputs: list[jax.Array], train: bool) -> jax.Array:
        x, name, filters = inputs[0], module_name(layer.name), layer.out_shape[2]
        match layer.kind:
            case "conv" if self.stem == SPACE_TO_DEPTH and layer.inputs == ("input",) and layer.stride == 2:
                return BlockConv(filters, layer.kernel, self.dtype, name=name)(x)
            case "conv":
                # A kernel of size k pads (k-1)//2 pixels before and the rest after, so that only the stride
                # changes the size.
                before = (layer.kernel - 1) // 2
                return nn.Conv(
                    filters,
                    (layer.kernel,) * 2,
                    layer.stride,
                    ((before, layer.kernel - 1 - before),) * 2,
                    use_bias=False,
                    dtype=self.dtype,
                    kernel_init=UNUSED,
                    name=name,
                )(x)
            case "batch_norm":
                if self.fused:
                    return BatchNorm(self.dtype, self.axis, name=name)(x, train)
                return nn.BatchNorm(
                    not train,
                    momentum=NORM_MOMENTUM,
                    epsilon=NORM_EPSILON,
                    dtype=self.dtype,
                    axis_name=self.axis,
                    name=name,
                )(x)
            case "relu":
                return nn.relu(x)
            case "add":
                return x + inputs[1]
            case "max_pool":
                return nn.max_pool(x, (layer.kernel,) * 2, (layer.stride,) * 2, ((1, 1), (1, 1)))
            case "global_pool":
                return jnp.mean(x, (1, 2), dtype=jnp.float32)
            case "dense":
                return nn.Dense(filters, dtype=jnp.float32, kernel_init=UNUSED, name=name)(x)
            case "softmax":
                return x
            case other:
                raise ValueError(f"layer {layer.name}: kind {other!r} has no rule in the Flax network")


def network(
    architecture: Architecture,
    precision: str = "float32",
    fused: bool = True,
    stem: str = PLAIN,
    axis: str | None = None,
) -> Network:
    """Return the Flax module of an architecture; for `fused`, `stem` and `axis` see `Network`.

    Raises ValueError for a precision that is not in PRECISIONS, or a stem that is not in STEMS.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} is not one of {', '.join(PRECISIONS)}")
    if stem not in STEMS:
        raise ValueError(f"stem {stem!r} is not one of {', '.join(STEMS)}")
    return Network(architecture.layers(), jnp.dtype(precision), fused, stem, axis)


def expected_shapes(architecture: Architecture) -> dict[str, dict[str, dict[str, tuple[int, ...]]]]:
    """Return the shapes of all variables from the list of layers: collection -> module -> tensor -> shape.

    The collection `params` has the kernels of convolutions [K, K, C_in, C_out], the batch norms' scale and
    bias, and the dense kernel and bias. The collection `batch_stats` has the running mean and variance of
    each batch norm.
    """
    params: dict[str, dict[str, tuple[int, ...]]] = {}
    statistics: dict[str, dict[str, tuple[int, ...]]] = {}
    for layer in architecture.layers():
        name, channels_in, channels_out = module_name(layer.name), layer.in_shape[2], layer.out_shape[2]
        if layer.kind == "conv":
            params[name] = {"kernel": (layer.kernel, layer.kernel, channels_in, channels_out)}
        elif layer.kind == "batch_norm":
            params[name] = {"scale": (channels_out,), "bias": (channels_out,)}
            statistics[name] = {"mean": (channels_out,), "var": (channels_out,)}
        elif layer.kind == "dense":
            params[name] = {"kernel": (channels_in, channels_out), "bias": (channels_out,)}
    return {"params": params, "batch_stats": statistics}


def build_shapes(
    architecture: Architecture, batch: int = 1
) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """Build the Flax network with `jax.eval_shape`, without computing anything.

    Return the shapes of all variables (in the form of `expected_shapes`), and the output shape of each layer
    by its name, for `batch` images. Errors of Flax for incompatible layers are passed on.
    """
    base, model = architecture.base, network(architecture)
    images = jax.ShapeDtypeStruct((batch, base.image_size, base.image_size, base.channels), np.float32)

    def build(images: jax.Array) -> Any:
        key = jax.random.wrap_key_data(jnp.zeros(2, jnp.uint32), impl="threefry2x32")
        return model.init_with_output({"params": key}, images, train=True, mutable=True)[1]

    built = jax.eval_shape(build, images)
    variables = {
        kind: {
            module: {name: x.shape for name, x in tensors.items()} for module, tensors in built[kind].items()
        }
        for kind in ("params", "batch_stats")
    }
    return variables, {name: x.shape for name, x in built[OUTPUTS]["layers"].items()}


def check_shapes(architecture: Architecture) -> None:
    """Build the network and compare the shapes of all outputs and variables with those of `layers()`.

    Raises ValueError naming the first layer or variable whose shape differs.
    """
    variables, outputs = build_shapes(architecture, batch=1)
    for layer in architecture.layers():
        # After the global pooling the outputs have no height and width in Flax.
        expected = (1, *layer.out_shape) if len(outputs[layer.name]) == 4 else (1, layer.out_shape[2])
        if outputs[layer.name] != expected:
            raise ValueError(
                f"layer {layer.name}: Flax computes {outputs[layer.name]}, layers() has {expected}"
            )

    for kind, modules in expected_shapes(architecture).items():
        if set(modules) != set(variables[kind]):
            raise ValueError(
                f"{kind}: Flax and layers() differ in {sorted(set(modules) ^ set(variables[kind]))}"
            )
        for module, tensors in modules.items():
            if tensors != variables[kind][module]:
                raise ValueError(
                    f"{kind} of {module}: Flax has {variables[kind][module]}, layers() has {tensors}"
                )
