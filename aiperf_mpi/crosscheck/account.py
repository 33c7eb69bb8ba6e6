# SPDX-License-Identifier: Apache-2.0
"""What a trial's own training step executes, by the two methods that the tables are checked with.

Generators compare a candidate's step with the tables before it is READY. A trainer counts the step that it
has compiled itself, and the numbers lie in the result, where the judge compares them with the tables again.
"""

from __future__ import annotations

from dataclasses import dataclass

from aiperf_mpi.crosscheck.trace import trace_train
from aiperf_mpi.crosscheck.xla import XLA_RULES, estimate
from aiperf_mpi.training.steps.compile import Compiled


@dataclass(frozen=True, slots=True)
class StepAccount:
    """Operations of one training step on one device.

    Attributes:
        jaxpr_ops: of convolutions and dense layers (forward pass and both gradients) in its jaxpr.
        xla_ops: of the whole lowered step by XLA's estimate; 0 where the backend has none.
        xla_model_ops: of the whole step by the model of XLA's rules.
    """

    jaxpr_ops: int = 0
    xla_ops: int = 0
    xla_model_ops: int = 0


def account(compiled: Compiled) -> StepAccount:
    """Counts a compiled training step, its micro-batches included; raises CountError where it cannot be
    counted.

    XLA's estimate is of what was compiled; the jaxpr is that of the same function, traced again.
    """
    trace = trace_train(compiled.architecture, compiled.settings, len(compiled.devices))
    products = sum(trace.count().matrix().values())
    modelled = trace.count(rules=XLA_RULES, loops_once=True)
    return StepAccount(products, estimate(compiled.lowered) or 0, modelled.total)
