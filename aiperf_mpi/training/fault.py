# SPDX-License-Identifier: Apache-2.0
"""Failures of a training on purpose: what tests and the `[fault]` table of the configuration ask for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np


@dataclass(frozen=True, slots=True)
class Fault:
    """A failure on purpose (the `[fault]` table of the configuration), at (epoch, step), both counted from 0.

    Arguments:
        raise_at: raises RuntimeError instead of this step.
        disturb_at: after this step the last device's parameters differ from the others' by one bit.
        nan_at: this step's learning rate is NaN, and with it all parameters behind it.
        untimed_sleep: seconds of sleep before the first step that no phase accounts for.
    """

    raise_at: tuple[int, int] | None = None
    nan_at: tuple[int, int] | None = None
    disturb_at: tuple[int, int] | None = None
    untimed_sleep: float = 0.0


def disturbed(params: Any) -> Any:
    """The parameters with one bit turned of the last device's, on the process that drives it: the highest of
    the mantissa of its last array's largest number, as training would round a lower one of a smaller one
    away."""
    leaves, structure = jax.tree.flatten(params)
    parts = [shard.data for shard in leaves[-1].addressable_shards]
    if leaves[-1].sharding.mesh.devices.flat[-1] not in parts[-1].devices():
        return params
    words = np.array(parts[-1]).view(np.uint32)
    words.flat[np.argmax(np.abs(words.view(np.float32)))] ^= 1 << 22
    parts[-1] = jax.device_put(words.view(np.float32), parts[-1].devices().pop())
    leaves[-1] = jax.make_array_from_single_device_arrays(leaves[-1].shape, leaves[-1].sharding, parts)
    return jax.tree.unflatten(structure, leaves)
