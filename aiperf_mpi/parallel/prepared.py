# SPDX-License-Identifier: Apache-2.0
"""What a rank brings into the job: on rank 0 the configuration, the writer process and the inventory.

Processes are started before MPI's initialisation: a fork after it is unsafe on some fabrics.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiperf_mpi.config import Config
from aiperf_mpi.ending import process
from aiperf_mpi.environment.batch import asked_end
from aiperf_mpi.machine.inventory import inventory
from aiperf_mpi.phases import PhaseTimer
from aiperf_mpi.probe import NotKnown, probe
from aiperf_mpi.results.output.client import WRITER, WriterClient


@dataclass
class Prepared:
    """What this rank brings into the job.

    Attributes:
        started: `time.monotonic()` at the start of the process's work.
        timer: counts this rank's time from then on, in the phase `init`.
        config: the configuration, on the rank that the launcher calls 0.
        read: reads the configuration, where MPI calls another rank 0.
        writer: the writer process of rank 0.
        machine: rank 0's part of the inventory.
        job_end: when the job ends, in seconds since 1970, where the batch system had to be asked.
        module: the module that the writer process runs.
        resumes: whether the run goes on in a folder that is there (`--resume`).
    """

    started: float
    timer: PhaseTimer
    config: Config | None
    read: Callable[[], Config]
    writer: WriterClient | None = None
    machine: dict[str, Any] = field(default_factory=dict)
    job_end: float | None = None
    module: str = WRITER
    resumes: bool = False

    def complete(self) -> str:
        """Make up for what is missing on MPI's rank 0; return the configuration as TOML.

        The writer starts after MPI_Init only if the launcher's variables did not name rank 0, or named
        another rank.
        """
        if self.writer is None:
            self.writer, self.machine = start_writer(self.module), describe_machine()
        self.config = self.config or self.read()
        return self.config.to_toml()

    def drop(self) -> None:
        """End the writer of a process that is not MPI's rank 0."""
        if self.writer is not None:
            self.writer.abandon()
        self.writer, self.machine = None, {}


def prepare(
    config: Config | None, read: Callable[[], Config], module: str = WRITER, resumes: bool = False
) -> Prepared:
    """Start the writer and describe the machine on rank 0, before MPI's initialisation.

    Tests pass the `module` of a writer with other rules.
    """
    timer = PhaseTimer()
    timer.switch("init")
    prepared = Prepared(time.monotonic(), timer, config, read, module=module, resumes=resumes)
    if process.rank == 0:
        process.step = "result writer"
        prepared.writer = start_writer(module)
        process.step = "inventory"
        prepared.machine = describe_machine()
        process.step = "end of the job"
        prepared.job_end = asked_end()
    return prepared


def start_writer(module: str) -> WriterClient:
    """Start the writer process; an end before the core time ends it, and removes what the run has made."""
    writer = WriterClient.start(module=module)
    process.cleanups.append(writer.withdraw)
    return writer


def describe_machine() -> dict[str, Any]:
    """Return rank 0's part of the inventory; the reason where it cannot be taken."""
    found = probe("the inventory", inventory, seconds=None)
    return {"inventory": found} if isinstance(found, NotKnown) else found
