# SPDX-License-Identifier: Apache-2.0
"""Verify a result (`verify FILE`) or pack it (`submit FOLDER --output ARCHIVE`) by the rules of a test."""

from __future__ import annotations

import sys

from aiperf_mpi.commands.verify import verify_file
from aiperf_mpi.results.output.submit import main as submit
from tests.programs.official.rules import RULES

if __name__ == "__main__":
    word, *rest = sys.argv[1:]
    sys.exit(verify_file(rest[0], rules=RULES) if word == "verify" else submit(rest, RULES))
