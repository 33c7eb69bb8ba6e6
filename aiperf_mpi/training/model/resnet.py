# SPDX-License-Identifier: Apache-2.0
"""The Flax network of an architecture: it interprets the list of layers, so it covers every morph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from aiperf_mpi.network.architecture import Architecture, Layer
from aiperf_mpi.opcount.forms import FORMS, GROUPED, MASKED, MERGED, POOLED, SELECTED, STEMS
from aiperf_mpi.training.model.folding import PointNorm
from aiperf_mpi.training.model.fusions import Fused, fusions, is_pooled, is_strided
from aiperf_mpi.training.model.layers import NORM_EPSILON, NORM_MOMENTUM, UNUSED, BatchNorm, Tail
from aiperf_mpi.training.model.merging import Kernel, MergedNorm
from aiperf_mpi.training.model.pooling import NormPool, max_pool
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
        forms: forms of layers in training that read and write less memory, names of `opcount.forms.LEAN`; the
            variables are the same.
    """

    layers: tuple[Layer, ...]
    dtype: Any = jnp.float32
    fused: bool = True
    stem: str = PLAIN
    axis: str | None = None
    forms: tuple[str, ...] = ()

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        values = {"input": images.astype(self.dtype)}
        apart = not self.fused or self.is_mutable_collection(OUTPUTS)
        forms = () if apart else tuple(form for form in self.forms if (form == MERGED) != train)
        fused, taken = ({}, frozenset()) if apart else fusions(self.layers, forms, self._own())
        for layer in self.layers:
            if layer.name in taken:
                continue
            if layer.name in fused:
                values[layer.name] = self._compute_fused(fused[layer.name], values, forms, train)
                continue

            # Profiles and operation counts assign each operation to a layer by its scope.
            with jax.named_scope(module_name(layer.name)):
                inputs = [values[name] for name in layer.inputs]
                if SELECTED in forms and is_strided(layer):
                    inputs = [_pixels(values, layer.inputs[0], layer.stride)]
                    layer = replace(layer, stride=1)
                values[layer.name] = self._compute(layer, inputs, train)
        self.sow(OUTPUTS, "layers", values, init_fn=dict, reduce_fn=lambda _, new: new)
        return values[self.layers[-1].name]

    def _compute_fused(
        self, fused: Fused, values: dict[str, jax.Array], forms: tuple[str, ...], train: bool
    ) -> jax.Array:
        name, x = module_name(fused.norm.name), fused.norm.inputs[0]
        shortcut = values[fused.shortcut] if fused.shortcut else None
        add, relu = (module_name(other) if other else "" for other in (fused.add, fused.relu))
        tail = Tail(add, relu, MASKED in forms, GROUPED in forms)
        if fused.conv is not None:
            conv = fused.conv
            sizes = conv.kernel, conv.in_shape[2], conv.out_shape[2]
            kernel = Kernel(*sizes, name=module_name(conv.name))()
            if not train:
                merged = MergedNorm(self.dtype, self.axis, name=name)
                return merged(values[conv.inputs[0]], kernel, conv.stride, shortcut, tail)
            pixels = _pixels(values, conv.inputs[0], conv.stride)
            return PointNorm(self.dtype, self.axis, name=name)(pixels, kernel, shortcut, tail)
        if fused.pool:
            return NormPool(self.dtype, self.axis, name=name)(values[x], tail.grouped)
        return BatchNorm(self.dtype, self.axis, name=name)(values[x], train, shortcut, tail)

    def _compute(self, layer: Layer, inputs: list[jax.Array], train: bool) -> jax.Array:
        x, name, filters = inputs[0], module_name(layer.name), layer.out_shape[2]
        match layer.kind:
            case "conv" if layer.name in self._own():
                return BlockConv(filters, layer.kernel, self.dtype, name=name)(x)
            case "conv":
                return self._convolution(layer, x)
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
            case "max_pool" if train and POOLED in self.forms and is_pooled(layer):
                return max_pool(x)
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

    def _own(self) -> set[str]:
        """Return the name of the first convolution if it is computed on blocks of pixels."""
        if self.stem != SPACE_TO_DEPTH:
            return set()
        stems = (layer for layer in self.layers if layer.kind == "conv" and layer.inputs == ("input",))
        return {layer.name for layer in stems if layer.stride == 2}

    def _convolution(self, layer: Layer, x: jax.Array) -> jax.Array:
        # A kernel of size k pads (k-1)//2 pixels before and the rest after, so that only the stride changes
        # the size.
        before = (layer.kernel - 1) // 2
        return nn.Conv(
            layer.out_shape[2],
            (layer.kernel,) * 2,
            layer.stride,
            ((before, layer.kernel - 1 - before),) * 2,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=UNUSED,
            name=module_name(layer.name),
        )(x)


def _pixels(values: dict[str, jax.Array], name: str, stride: int) -> jax.Array:
    """Return every `stride`-th pixel of a layer's output [B, H, W, C] in both directions.

    It is selected once for all layers that read it, so that their gradients are added where they are small.
    """
    key = f"{name}::{stride}"
    if stride > 1 and key not in values:
        x = values[name]
        values[key] = jax.lax.slice(x, (0,) * 4, x.shape, (1, stride, stride, 1))
    return values[key] if stride > 1 else values[name]


def network(
    architecture: Architecture,
    precision: str = "float32",
    fused: bool = True,
    stem: str = PLAIN,
    axis: str | None = None,
    forms: tuple[str, ...] = (),
) -> Network:
    """Return the Flax module of an architecture; for `fused`, `stem`, `axis` and `forms` see `Network`.

    Raises ValueError for a precision that is not in PRECISIONS, a stem that is not in STEMS, or an unknown
    form.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} is not one of {', '.join(PRECISIONS)}")
    if stem not in STEMS:
        raise ValueError(f"stem {stem!r} is not one of {', '.join(STEMS)}")
    if unknown := set(forms) - set(FORMS):
        raise ValueError(f"forms {sorted(unknown)} are none of {', '.join(FORMS)}")
    return Network(architecture.layers(), jnp.dtype(precision), fused, stem, axis, forms)


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
