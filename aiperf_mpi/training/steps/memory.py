# SPDX-License-Identifier: Apache-2.0
"""Predict from the compiled programs whether a candidate's steps fit into a device's memory.

If they do not, find the largest micro-batch with which they do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax

from aiperf_mpi.training.steps.compile import Compiled
from aiperf_mpi.training.steps.step import StepSettings

#: Memory reserved next to the running program, in multiples of its arguments (the state and a batch): the
#: next candidate's state, two more batches, and room for the allocator.
RESERVED_ARGUMENTS = 3

#: Beginning of XLA's out-of-memory errors.
EXHAUSTED = "RESOURCE_EXHAUSTED"


class TooLarge(RuntimeError):
    """A candidate does not fit into the memory of the devices, even with one image at a time."""


def memory_limit(devices: Sequence[jax.Device], configured: int = 0) -> int | None:
    """Return the memory in bytes of this process's smallest device.

    The `configured` number has precedence over what the devices report. Return None if there is neither, as
    on CPUs.
    """
    if configured:
        return configured
    limits = [
        (device.memory_stats() or {}).get("bytes_limit")
        for device in devices
        if device.process_index == jax.process_index()
    ]
    known = [int(limit) for limit in limits if limit]
    return min(known) if known else None


@dataclass(frozen=True, slots=True)
class Needed:
    """Memory in bytes that a device needs while it runs a program.

    Attributes:
        fixed: for arguments and results, and the reserve next to the program.
        temporary: for intermediate values; it shrinks with the micro-batch, at best in proportion.
    """

    fixed: int
    temporary: int

    @property
    def total(self) -> int:
        """Sum of both."""
        return self.fixed + self.temporary


def needed_bytes(program: Any) -> Needed:
    """Return the memory that a compiled program needs, from XLA's analysis of it."""
    analysis = program.memory_analysis()
    arguments = analysis.argument_size_in_bytes
    outputs = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    fixed = (1 + RESERVED_ARGUMENTS) * arguments + outputs + analysis.generated_code_size_in_bytes
    return Needed(int(fixed), int(analysis.temp_size_in_bytes))


def compile_fitting(
    compiler: Callable[[StepSettings], Compiled],
    settings: StepSettings,
    limit: int | None,
    alone: bool = True,
) -> Compiled:
    """Return the steps with the largest micro-batch that fits: the same batch in as few parts as possible.

    Arguments:
        compiler: compiles the steps of the candidate for given settings.
        settings: settings with the smallest acceptable number of parts.
        limit: memory of a device in bytes; None accepts the steps of the first compilation.
        alone: whether nothing else is on the devices. If it is false, an out-of-memory error of XLA is
            raised: a step that does not fit next to another program may fit whole without it.

    The times of the result are sums over all compilations. Raises TooLarge if not even one image at a time
    fits, and passes on the errors of `compiler`, except XLA's out-of-memory errors if `alone`.
    """
    batch, trace_seconds, compile_seconds = settings.batch_per_device, 0.0, 0.0
    parts = [n for n in range(settings.accumulate, batch + 1) if batch % n == 0]
    reason = ""
    while parts:
        accumulate = parts.pop(0)
        try:
            made = compiler(replace(settings, accumulate=accumulate))
        except jax.errors.JaxRuntimeError as error:
            if EXHAUSTED not in str(error) or not alone:
                raise
            reason = str(error).splitlines()[0]
            continue
        trace_seconds, compile_seconds = (
            trace_seconds + made.trace_seconds,
            compile_seconds + made.compile_seconds,
        )
        needed = max(needed_bytes(made.train), needed_bytes(made.evaluate), key=lambda memory: memory.total)
        if limit is None or needed.total <= limit:
            return replace(made, trace_seconds=trace_seconds, compile_seconds=compile_seconds)

        # Skip numbers of parts that cannot fit even in the best case, but always try one image at a time.
        reason = (
            f"a step of {batch // accumulate} images at a time needs {needed.total:,} of the {limit:,} bytes"
        )
        hopeful = [n for n in parts if needed.fixed + needed.temporary * accumulate / n <= limit]
        parts = hopeful or parts[-1:]
    raise TooLarge(
        f"it does not fit on a device: {reason}; use devices with more memory, or a lower "
        "search.max_parameters"
    )
