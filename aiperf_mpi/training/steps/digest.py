# SPDX-License-Identifier: Apache-2.0
"""Check that all devices hold the same model: each computes a digest, and the devices compare them.

Only four integers reach the host.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from aiperf_mpi.training.steps.devices import AXIS

#: Multiplier of the digest: 2^32 over the golden ratio (Knuth, TAOCP 3, 6.4). It is odd, so that multiplying
#: by it modulo 2^32 is invertible.
GOLDEN = np.uint32(0x9E3779B1)


class Disagreement(RuntimeError):
    """The devices of a replica hold different models."""


class Agreement(NamedTuple):
    """Smallest and largest digest over the devices (uint32 []), of the parameters and of the statistics."""

    params_low: jax.Array
    params_high: jax.Array
    statistics_low: jax.Array
    statistics_high: jax.Array


def agreement(params: Any, batch_stats: Any) -> Agreement:
    """Return the smallest and largest digests over the devices; `dispatch.over_devices` maps this function.

    It reads the memory of each device once.
    """
    digests = jnp.stack([digest(params), digest(batch_stats)])
    low, high = jax.lax.pmin(digests, AXIS), jax.lax.pmax(digests, AXIS)
    return Agreement(low[0], high[0], low[1], high[1])


def digest(tree: Any) -> jax.Array:
    """Return a uint32 digest of the bits of a tree of float32 arrays.

    It changes with any one element, and with the order of the elements. Each element's bits, as a 32-bit
    integer, are multiplied by an odd number that depends on the element's index, and added modulo 2^32.
    Integer sums have no rounding, so the order of the additions does not matter.
    """
    total = jnp.uint32(0)
    for leaf in jax.tree.leaves(tree):
        words = jax.lax.bitcast_convert_type(leaf, jnp.uint32).reshape(-1)
        odd = 2 * jax.lax.iota(jnp.uint32, words.size) + 1
        total = total * GOLDEN + jnp.sum(words * (odd * GOLDEN), dtype=jnp.uint32)
    return total


def check(digests: Agreement, where: str, devices: int, statistics: bool) -> None:
    """Raise Disagreement if the devices' digests of the parameters differ.

    Arguments:
        where: position in the training, for the message.
        devices: number of devices, for the message.
        statistics: whether the digests of the running statistics must be equal too.
    """
    host = [int(value) for value in jax.device_get(digests)]
    kinds = [("parameters", *host[:2])] + ([("statistics", *host[2:])] if statistics else [])
    for what, low, high in kinds:
        if low != high:
            raise Disagreement(
                f"{where}: the {what} differ between the {devices} devices (digests {low:08x} to {high:08x})"
            )
