# SPDX-License-Identifier: Apache-2.0
"""The command line, with one matrix product more in the training step than its network has.

Takes the arguments of `python -m aiperf_mpi`; the variable LOST_IN_A_ROW says after how many rejections the
run ends. Whatever the tables say, the step executes more: no candidate may pass.
"""

from __future__ import annotations

import os
import sys

from aiperf_mpi.__main__ import main
from aiperf_mpi.parallel.coordinator import progress
from aiperf_mpi.training.steps import step
from tests.helpers.crosscheck.tampering import with_product

if __name__ == "__main__":
    progress.LOST_IN_A_ROW = int(os.environ["LOST_IN_A_ROW"])
    step.train_step = with_product(step.train_step)
    sys.exit(main())
