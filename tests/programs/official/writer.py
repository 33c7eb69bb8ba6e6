# SPDX-License-Identifier: Apache-2.0
"""The writer process of a run by the rules of a test."""

from __future__ import annotations

import sys

from aiperf_mpi.results.output.process import main
from tests.programs.official.rules import RULES

if __name__ == "__main__":
    sys.exit(main(RULES))
