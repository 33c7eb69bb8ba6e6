# SPDX-License-Identifier: Apache-2.0
"""Run the benchmark as `python -m aiperf_mpi run` does, by the rules of a test."""

from __future__ import annotations

import sys
from typing import NoReturn

from aiperf_mpi.__main__ import parser
from aiperf_mpi.commands.run import read
from aiperf_mpi.descriptors import guard
from aiperf_mpi.ending import describe, process, watch
from tests.programs.official.rules import RULES


def main() -> NoReturn:
    """Make what `aiperf_mpi.commands.run` makes, but for the rules."""
    guard()
    watch.start()
    arguments = parser().parse_args(["run", *sys.argv[1:]])
    from aiperf_mpi.parallel.launch.job import job
    from aiperf_mpi.parallel.run import prepare, run

    try:
        config = None if process.rank else read(arguments)
        prepared = prepare(config, lambda: read(arguments), "tests.programs.official.writer")
    except Exception as error:
        # A rank that left alone would leave the others in MPI_Init.
        with job(describe(error), sys.argv[1:]):
            raise
    run(prepared, sys.argv[1:], RULES)


if __name__ == "__main__":
    main()
