# SPDX-License-Identifier: Apache-2.0
"""Faults injected on purpose, which the `[fault]` table of the configuration asks for: all of them are here.

Each place that can fail has one hook: `TrainingFault` in a training, `Tampering` where a candidate is
proposed, `sleep_untimed` where a rank starts its work. JAX is imported only where it is used, as rank 0 and
the generators import this module, too.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from aiperf_mpi.config.fault import Fault
from aiperf_mpi.phases import PhaseTimer
from aiperf_mpi.trials.candidate import Candidate

#: Epoch and step, both counted from 0, at which the configuration's faults of a training happen.
SECOND_STEP = (0, 1)


# -- in a training ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TrainingFault:
    """Faults of one training, each at (epoch, step), both counted from 0; None for a fault that is not
    injected.

    Arguments:
        raise_at: raises RuntimeError instead of this step.
        nan_at: this step's learning rate is NaN, and with it all parameters after it.
        disturb_at: after this step the last device's parameters differ from the others' by one bit.
        hang_at: after this step the parameters come from a computation that never ends.
    """

    raise_at: tuple[int, int] | None = None
    nan_at: tuple[int, int] | None = None
    disturb_at: tuple[int, int] | None = None
    hang_at: tuple[int, int] | None = None

    def before_step(self, epoch: int, step: int) -> None:
        """Raise RuntimeError where this step is to raise."""
        if self.raise_at == (epoch, step):
            raise RuntimeError(f"injected fault: epoch {epoch}, step {step} raises")

    def spoils_rate(self, epoch: int, step: int) -> bool:
        """Return whether the learning rate of this step is to be NaN."""
        return self.nan_at == (epoch, step)

    def after_step(self, epoch: int, step: int, params: Any) -> Any:
        """Return the parameters after this step, `params` itself where no fault changes them."""
        if self.hang_at == (epoch, step):
            return never_computed(params)
        return disturbed(params) if self.disturb_at == (epoch, step) else params


def training_fault(fault: Fault, candidate: Candidate, trainer: int) -> TrainingFault:
    """Return the faults that the configuration injects into the training of this candidate.

    A training that raises does so only on the trainer of the replica that `raise_trainer` names; `trainer` is
    the calling one's index in its replica.
    """
    trial = (candidate.round, candidate.replica)
    raises = trial == (fault.raise_in_round, fault.raise_replica) and trainer == fault.raise_trainer
    return TrainingFault(
        raise_at=SECOND_STEP if raises else None,
        nan_at=SECOND_STEP if trial == (fault.nan_in_round, fault.nan_replica) else None,
        disturb_at=SECOND_STEP if trial == (fault.disturb_in_round, fault.disturb_replica) else None,
        hang_at=SECOND_STEP if trial == (fault.hang_in_round, fault.hang_replica) else None,
    )


def disturbed(params: Any) -> Any:
    """Return the parameters with one bit of the last device's changed, on the process that drives it.

    The bit is the highest of the mantissa of the largest number in the last array: training would round away
    a lower bit, or a smaller number.
    """
    import jax

    leaves, structure = jax.tree.flatten(params)
    parts = [shard.data for shard in leaves[-1].addressable_shards]
    if leaves[-1].sharding.mesh.devices.flat[-1] not in parts[-1].devices():
        return params
    bits = np.array(parts[-1]).view(np.uint32)
    bits.flat[np.argmax(np.abs(bits.view(np.float32)))] ^= 1 << 22
    parts[-1] = jax.device_put(bits.view(np.float32), parts[-1].devices().pop())
    leaves[-1] = jax.make_array_from_single_device_arrays(leaves[-1].shape, leaves[-1].sharding, parts)
    return jax.tree.unflatten(structure, leaves)


def never_computed(params: Any) -> Any:
    """Return the parameters as the result of a loop on the devices that never ends."""
    import jax
    import jax.numpy as jnp

    @jax.jit
    def endless(leaf: Any) -> Any:
        # The count stays below 2^30, which the compiler does not see. A CPU would do a program without large
        # products at once, before the call returns.
        turns = jax.lax.while_loop(lambda n: n >= 0, lambda n: (n + 1) & (2**30 - 1), jnp.int32(0))
        large = jnp.full((256, 256), turns, leaf.dtype) + jnp.arange(256, dtype=leaf.dtype)
        return leaf + (large @ large)[0, 0]

    leaves, structure = jax.tree.flatten(params)
    return jax.tree.unflatten(structure, [*leaves[:-1], endless(leaves[-1])])


# -- in the record of a candidate ------------------------------------------------------------------


class Tampering:
    """Change the record of one candidate, once, so that its operation count is wrong."""

    def __init__(self, fault: Fault) -> None:
        self._target: tuple[int, int] | None = (fault.tamper_in_round, fault.tamper_replica)

    def apply(self, candidate: Candidate) -> Candidate:
        """Return the candidate, with one operation too many where the fault is aimed at it."""
        if self._target != (candidate.round, candidate.replica):
            return candidate
        # The candidate that fills the same round after the rejection is left as it is.
        self._target = None
        return replace(candidate, train_ops=candidate.train_ops + 1)


# -- in the phases of a rank -----------------------------------------------------------------------


def sleep_untimed(fault: Fault, rank: int, timer: PhaseTimer) -> None:
    """Sleep outside of every phase where the configuration asks it of this rank, so that the check of the
    phases' sum must find the time."""
    if fault.untimed_sleep_seconds and fault.untimed_sleep_rank == rank:
        phase = timer.switch(None)
        time.sleep(fault.untimed_sleep_seconds)
        timer.switch(phase)
