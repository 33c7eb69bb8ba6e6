# SPDX-License-Identifier: Apache-2.0
"""Whether a candidate's steps fit into a device's memory, foreseen from the compiled programs, and with which
micro-batch they do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax

from aiperf_mpi.training.steps.compile import Compiled
from aiperf_mpi.training.steps.step import StepSettings

#: What lies on a device beside the program that runs, in multiples of its arguments (the state and a batch):
#: the next candidate's state, two more batches, and room for the allocator.
ARGUMENTS_BESIDE = 3

#: How XLA's errors for want of memory begin.
EXHAUSTED = "RESOURCE_EXHAUSTED"


class TooLarge(RuntimeError):
    """A candidate that does not fit into the memory of the devices, however small its micro-batch."""


def memory_limit(devices: Sequence[jax.Device], configured: int = 0) -> int | None:
    """Bytes of this process's device that has least: what is `configured`, or what the devices say; None
    where neither does, as on CPUs."""
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
    """Bytes that a device needs while it runs a program: `fixed` by arguments, results and what lies beside
    it, and `temporary` ones, which shrink with the micro-batch, at best in proportion."""

    fixed: int
    temporary: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.fixed + self.temporary


def needed_bytes(program: Any) -> Needed:
    """What a compiled program needs, by XLA's analysis of it."""
    found = program.memory_analysis()
    arguments, outputs = found.argument_size_in_bytes, found.output_size_in_bytes - found.alias_size_in_bytes
    fixed = (1 + ARGUMENTS_BESIDE) * arguments + outputs + found.generated_code_size_in_bytes
    return Needed(int(fixed), int(found.temp_size_in_bytes))


def compile_fitting(
    compiler: Callable[[StepSettings], Compiled],
    settings: StepSettings,
    limit: int | None,
    alone: bool = True,
) -> Compiled:
    """The steps with the largest micro-batch that fits: the same batch, in as few parts as the memory allows.

    Arguments:
        compiler: compiles the steps of the candidate.
        settings: with the fewest parts that are wanted.
        limit: bytes of a device; None takes the steps as they are.
        alone: whether nothing else is on the devices. Where something is, XLA's want of memory is raised:
            what does not fit beside it may fit whole without.

    The times of the result are those of all compilations that it took. Raises TooLarge where not even a
    single image at a time fits, and what `compiler` raises but, `alone`, XLA's want of memory.
    """
    batch, trace_seconds, compile_seconds = settings.batch_per_device, 0.0, 0.0
    parts = [n for n in range(settings.accumulate, batch + 1) if batch % n == 0]
    said = ""
    while parts:
        accumulate = parts.pop(0)
        try:
            made = compiler(replace(settings, accumulate=accumulate))
        except jax.errors.JaxRuntimeError as error:
            if EXHAUSTED not in str(error) or not alone:
                raise
            said = str(error).splitlines()[0]
            continue
        trace_seconds, compile_seconds = (
            trace_seconds + made.trace_seconds,
            compile_seconds + made.compile_seconds,
        )
        needed = max(needed_bytes(made.train), needed_bytes(made.evaluate), key=lambda memory: memory.total)
        if limit is None or needed.total <= limit:
            return replace(made, trace_seconds=trace_seconds, compile_seconds=compile_seconds)

        # What cannot fit even at best is not compiled, but one image at a time is always tried.
        said = (
            f"a step of {batch // accumulate} images at a time needs {needed.total:,} of the {limit:,} bytes"
        )
        hopeful = [n for n in parts if needed.fixed + needed.temporary * accumulate / n <= limit]
        parts = hopeful or parts[-1:]
    raise TooLarge(
        f"it does not fit on a device: {said}; use devices with more memory, or a lower search.max_parameters"
    )
