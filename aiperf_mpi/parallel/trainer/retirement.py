# SPDX-License-Identifier: Apache-2.0
"""When a replica retires: its devices are stuck, or all of its trials fail while those of others succeed.

It then trains no more, and serves MPI until the run ends: its time counts, and the others go on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aiperf_mpi.parallel.launch.job import write_error
from aiperf_mpi.parallel.shared.context import Context
from aiperf_mpi.results.evidence.ceiling import NO_UUIDS
from aiperf_mpi.training.lockstep import Stuck
from aiperf_mpi.trials.record import FAILED, OUTCOME, SUCCESSES

#: Failed trials in a row after which a replica retires, if a trial of another one has succeeded meanwhile:
#: its device is broken, and not the program.
FAILED_IN_A_ROW = 3

#: Why a trainer retires that found no reason itself.
RETIRED_BY_PEER = "another trainer of the replica retires"


@dataclass
class Retirement:
    """Whether a replica retires, on one of its trainers.

    Attributes:
        devices: the UUIDs of this trainer's devices, or the reason why they have none.
        why: why the replica has retired, "" while it trains.
        stuck: whether its devices are stuck, so that its processes cannot exit by themselves.
        failed: failed trials in a row.
        since: length of the history before the first of them.
    """

    devices: str = ""
    why: str = ""
    stuck: bool = False
    failed: int = 0
    since: int = 0

    def place(self, context: Context) -> str:
        """Return the replica with the rank, the host and the devices of this trainer."""
        ranks, names = context.ranks, self.devices.split(",")
        if not self.devices or self.devices.startswith(NO_UUIDS):
            return f"replica {ranks.replica} (rank {ranks.rank} on {ranks.host})"
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        return f"replica {ranks.replica} (rank {ranks.rank} on {ranks.host}, device {names[0]}{more})"

    def reason(self, context: Context, status: int, failure: Exception | None) -> str:
        """Return why the replica should retire after a trial that ended with this status, "" if it should
        not."""
        if isinstance(failure, Stuck):
            self.stuck = True
            return str(failure)
        if status != FAILED:
            self.failed = 0
            return ""
        history = context.windows.history
        history.refresh()
        if not self.failed:
            self.since = len(history)
        self.failed += 1
        if self.failed < FAILED_IN_A_ROW or not others_succeed(history.summaries()[self.since :]):
            return ""
        return f"{self.failed} trials in a row failed, while those of others succeed"

    def retire(self, context: Context, why: str) -> None:
        """Retire for this reason, and say so."""
        self.why = why
        write_error(
            f"aiperf_mpi: {self.place(context)} retires, and trains no more in this run: {why}; look whether "
            "its device hangs or is broken (dmesg, nvidia-smi), and leave the host out of the next job\n"
        )


def others_succeed(summaries: np.ndarray) -> bool:
    """Return whether rows of the history (SUMMARY_DTYPE) have a trial that succeeded."""
    return bool(np.any((summaries["kind"] == OUTCOME) & np.isin(summaries["status"], SUCCESSES)))
