# SPDX-License-Identifier: Apache-2.0
"""Ceilings of this process's device: rates of matrix products and copies, and the bytes of a step."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import jax
import jax.numpy as jnp

from aiperf_mpi.network.architecture import Layer

#: Passes over the input x and the output y of a convolution with its batch norm and ReLU, each kernel on its
#: own: forward x + 4 y (convolve, statistics, normalise), backward 2 x + 7 y; an addition reads two and
#: writes one.
INPUT_PASSES, OUTPUT_PASSES, ADDITION_PASSES = 3, 11, 3

#: Least seconds of a measurement, so that the clock of the device settles.
LEAST_SECONDS = 0.5


def matrix_rate(size: int, dtype: Any, repeats: int = 5) -> float:
    """Return the op/s of products of two matrices [size, size], from the best of `repeats` windows."""
    keys = jax.random.split(jax.random.key(0), 2)
    left, right = (jax.random.normal(key, (size, size), jnp.float32).astype(dtype) for key in keys)
    product = jax.jit(lambda x, y: jax.lax.dot(x, y, preferred_element_type=dtype))
    return 2 * size**3 / _best_seconds(lambda: product(left, right), repeats)


def copy_rate(size: int, repeats: int = 5) -> float:
    """Return the bytes per second of passes over a float32 array of `size` bytes, from the best window."""
    array = jnp.arange(size // 4, dtype=jnp.float32)
    # XLA may leave out a plain copy, so add to each element; that costs nothing compared with the memory.
    touch = jax.jit(lambda x: x + 1)
    return 2 * array.nbytes / _best_seconds(lambda: touch(array), repeats)


def modelled_bytes(layers: Sequence[Layer], itemsize: int) -> int:
    """Return the bytes per image of a step in which each kernel reads its inputs and writes its outputs once.

    Arguments:
        itemsize: bytes of an activation.

    Convolutions with their batch norms and ReLUs, and additions; ResNet-50 at 224x224 in bfloat16: 327 MB.
    """
    passes = 0
    for layer in layers:
        if layer.kind == "conv":
            passes += INPUT_PASSES * prod(layer.in_shape) + OUTPUT_PASSES * prod(layer.out_shape)
        elif layer.kind == "add":
            passes += ADDITION_PASSES * prod(layer.out_shape)
    return passes * itemsize


def _best_seconds(call: Callable[[], Any], repeats: int) -> float:
    """Return the seconds of one call, from the best of `repeats` windows of calls in sequence."""
    jax.block_until_ready(call())
    begin = time.perf_counter()
    jax.block_until_ready(call())
    calls = max(1, round(LEAST_SECONDS / repeats / max(time.perf_counter() - begin, 1e-6)))
    windows = []
    for _ in range(repeats):
        begin = time.perf_counter()
        for _ in range(calls):
            last = call()
        jax.block_until_ready(last)
        windows.append((time.perf_counter() - begin) / calls)
    return min(windows)
