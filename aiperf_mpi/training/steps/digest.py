# SPDX-License-Identifier: Apache-2.0
"""Do all devices hold the same model? A digest of it on each device, compared there: eight words reach the
host."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from aiperf_mpi.training.steps.devices import AXIS

#: An odd number, so that multiplying by it modulo 2^32 loses nothing (2^32 over the golden ratio; Knuth,
#: TAOCP 3, 6.4).
GOLDEN = np.uint32(0x9E3779B1)


class Disagreement(RuntimeError):
    """The devices of a replica hold different models."""


class Agreement(NamedTuple):
    """Smallest and largest digest of the devices (uint32 []), of the parameters and of the statistics."""

    params_low: jax.Array
    params_high: jax.Array
    statistics_low: jax.Array
    statistics_high: jax.Array


def agreement(params: Any, batch_stats: Any) -> Agreement:
    """The digests over the devices, one step of `dispatch.over_devices`; one pass over the memory of each
    device."""
    found = jnp.stack([digest(params), digest(batch_stats)])
    low, high = jax.lax.pmin(found, AXIS), jax.lax.pmax(found, AXIS)
    return Agreement(low[0], high[0], low[1], high[1])


def digest(tree: Any) -> jax.Array:
    """A uint32 of the bits of a tree of float32 arrays; it changes with any one element, and with their
    order.

    Each word is multiplied by an odd number of its own (its place) and added, modulo 2^32. Sums of integers
    have no rounding: their order does not matter.
    """
    total = jnp.uint32(0)
    for leaf in jax.tree.leaves(tree):
        words = jax.lax.bitcast_convert_type(leaf, jnp.uint32).reshape(-1)
        odd = 2 * jax.lax.iota(jnp.uint32, words.size) + 1
        total = total * GOLDEN + jnp.sum(words * (odd * GOLDEN), dtype=jnp.uint32)
    return total


def check(found: Agreement, where: str, devices: int, statistics: bool) -> None:
    """Raises Disagreement, which says `where` in the training, unless all `devices` have one digest of the
    parameters and, if `statistics`, one of these."""
    host = [int(word) for word in jax.device_get(found)]
    kinds = [("parameters", *host[:2])] + ([("statistics", *host[2:])] if statistics else [])
    for what, low, high in kinds:
        if low != high:
            raise Disagreement(
                f"{where}: the {what} differ between the {devices} devices (digests {low:08x} to {high:08x})"
            )
