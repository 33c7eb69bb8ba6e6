# SPDX-License-Identifier: Apache-2.0
"""The program with a slow loader: every batch comes `AIPERF_TEST_BATCH_SECONDS` later than it is read."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

from aiperf_mpi import __main__ as program
from aiperf_mpi.training.steps import devices


def late(batches: Iterable[Any], seconds: float) -> Iterator[Any]:
    """Yield each batch after a wait of so many seconds."""
    for batch in batches:
        time.sleep(seconds)
        yield batch


def main() -> int:
    """Run the command line with a slow loader."""
    seconds, start = float(os.environ["AIPERF_TEST_BATCH_SECONDS"]), devices.Feed._run

    def run(feed: devices.Feed, batches: Iterable[Any], *rest: Any) -> None:
        start(feed, late(batches, seconds), *rest)

    devices.Feed._run = run  # type: ignore[method-assign, assignment]
    return program.program()


if __name__ == "__main__":
    sys.exit(main())
