# SPDX-License-Identifier: Apache-2.0
"""Map a function of one device over all devices of a replica: the only module that calls `jax.pmap`.

There are two forms, `pmap` and `shard_map`. Both take the same function and the same arrays [D, ...], where D
is the number of the replica's devices. Both are compiled before the first step. A replica may consist of
several processes that form one JAX cluster. Each process then holds the part of an array on its own devices.

A plain call of `jax.pmap` would convert every argument and result between this part and the whole array.
This takes several milliseconds a step. A program that was compiled before takes whole arrays without
conversion, in either form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from aiperf_mpi.training.steps.devices import AXIS, device_sharding, local_count

#: `jax.pmap`, or `jax.jit` of `jax.shard_map`. AUTO takes the first for one process, the second for several.
PMAP, SHARD_MAP, AUTO = "pmap", "shard_map", "auto"
DISPATCHES = (AUTO, PMAP, SHARD_MAP)

Axes = int | None


def form_of(dispatch: str, devices: Sequence[jax.Device]) -> str:
    """Return the form, PMAP or SHARD_MAP, of a setting for these devices.

    Raises ValueError for a setting that is not in DISPATCHES.
    """
    if dispatch not in DISPATCHES:
        raise ValueError(f"dispatch {dispatch!r} is none of {', '.join(DISPATCHES)}")
    if dispatch != AUTO:
        return dispatch
    return PMAP if len({device.process_index for device in devices}) == 1 else SHARD_MAP


def over_devices(
    function: Callable[..., Any],
    devices: Sequence[jax.Device],
    *,
    in_axes: tuple[Axes, ...],
    out_axes: Axes | tuple[Axes, ...] = 0,
    donate: tuple[int, ...] = (),
    form: str = PMAP,
) -> Any:
    """Return `function` mapped over the devices, with collectives along AXIS.

    Arguments:
        in_axes: for each argument 0 (a tree of arrays [D, ...]) or None (the same for all devices).
        out_axes: the same for the result, or for each part of a tuple.
        donate: indices of the arguments that a call consumes.
        form: PMAP or SHARD_MAP.
    """
    if form == PMAP:
        return jax.pmap(
            function, AXIS, in_axes=in_axes, out_axes=out_axes, devices=devices, donate_argnums=donate
        )
    mesh = device_sharding(devices).mesh

    def block(*arguments: Any) -> Any:
        mine = (_squeezed(x) if axis == 0 else x for x, axis in zip(arguments, in_axes, strict=True))
        result = function(*mine)
        if isinstance(out_axes, tuple):
            return tuple(_expanded(x) if axis == 0 else x for x, axis in zip(result, out_axes, strict=True))
        return _expanded(result) if out_axes == 0 else result

    inputs = tuple(_spec(axis) for axis in in_axes)
    outputs = tuple(map(_spec, out_axes)) if isinstance(out_axes, tuple) else _spec(out_axes)
    mapped = jax.shard_map(block, mesh=mesh, in_specs=inputs, out_specs=outputs, check_vma=False)
    shardings = tuple(NamedSharding(mesh, spec) for spec in inputs)
    return jax.jit(mapped, in_shardings=shardings, donate_argnums=donate)


def lower(
    function: Callable[..., Any],
    devices: Sequence[jax.Device],
    shapes: tuple[Any, ...],
    *,
    in_axes: tuple[Axes, ...],
    out_axes: Axes | tuple[Axes, ...] = 0,
    donate: tuple[int, ...] = (),
    form: str = PMAP,
) -> jax.stages.Lowered:
    """Trace and lower `over_devices(function, ...)` for arguments of these shapes.

    `shapes` are trees of ShapeDtypeStruct, [D, ...] where the axis is 0. The compiled program takes only
    whole arrays, such as those that `devices.place` returns.
    """
    mapped = over_devices(function, devices, in_axes=in_axes, out_axes=out_axes, donate=donate, form=form)
    if form != PMAP or local_count(devices) == len(devices):
        return mapped.lower(*shapes)

    # On several processes, lower pmap from arrays of zeros that hold this process's part: it converts them.
    count = local_count(devices)

    def zeros(shape: Any, axis: Axes) -> np.ndarray:
        mine = (count, *shape.shape[1:]) if axis == 0 else shape.shape
        return np.broadcast_to(np.zeros((), shape.dtype), mine)

    parts = (jax.tree.map(lambda x, a=a: zeros(x, a), tree) for tree, a in zip(shapes, in_axes, strict=True))
    return mapped.lower(*parts)


def _spec(axis: Axes) -> PartitionSpec:
    return PartitionSpec(AXIS) if axis == 0 else PartitionSpec()


def _squeezed(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.lax.squeeze(x, (0,)), tree)


def _expanded(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.lax.expand_dims(x, (0,)), tree)
