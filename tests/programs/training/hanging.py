# SPDX-License-Identifier: Apache-2.0
"""Train with a step that never ends, and print what came of it as one line of JSON.

Argument: whether the run is asked to stop meanwhile. The tests in test_waiting.py run this program, which
ends by force, as a process must whose devices are stuck.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from unittest import mock

from aiperf_mpi.phases import PhaseTimer
from aiperf_mpi.training import waiting
from aiperf_mpi.training.faults import TrainingFault
from aiperf_mpi.training.fit import FitSettings, Training
from aiperf_mpi.training.lockstep import Stuck
from tests.helpers.training.cases import compiled_tiny, started
from tests.helpers.training.trainings import train_images, val_images

if __name__ == "__main__":
    stops = sys.argv[1] == "stops"
    compiled, hung, polls = compiled_tiny(), threading.Event(), list[float]()
    settings = FitSettings(3, 5, lambda epoch: 0.01, stuck_seconds=1e6 if stops else 1.0)

    def poll() -> bool:
        polls.append(time.monotonic())
        return stops and len(polls) > 20

    run = Training(
        compiled,
        started(compiled),
        train_images,
        val_images,
        settings,
        timer=PhaseTimer(),
        poll=poll,
        fault=TrainingFault(hang_at=(0, 6)),
    )
    rows, error, begin = list[list[float]](), "", time.monotonic()
    with mock.patch.object(waiting, "END_SECONDS", 0.5):
        try:
            for row in run:
                rows.append([row.steps, row.partial])
        except Stuck as stuck:
            error = str(stuck)
    gaps = [later - earlier for earlier, later in zip(polls, polls[1:], strict=False)]
    seconds = time.monotonic() - begin
    print(json.dumps({"rows": rows, "error": error, "seconds": seconds, "gap": max(gaps), "end": run.end}))
    sys.stdout.flush()
    os._exit(0)
