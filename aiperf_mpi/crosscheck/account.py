# SPDX-License-Identifier: Apache-2.0
"""Count the operations of a trial's compiled training step by its jaxpr and by XLA.

Generators compare a candidate's step with the tables before the candidate is READY. A trainer counts the step
that it compiled. These numbers are stored in the result, where the judge compares them with the tables again.
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
        jaxpr_ops: operations of convolutions and dense layers (forward and both gradients) in the jaxpr.
        xla_ops: operations of the whole lowered step by XLA's estimate; 0 if the backend has none.
        xla_model_ops: operations of the whole step by the model of XLA's rules.
    """

    jaxpr_ops: int = 0
    xla_ops: int = 0
    xla_model_ops: int = 0


def account(compiled: Compiled) -> StepAccount:
    """Count a compiled training step with all its micro-batches. Raises CountError if that is impossible.

    XLA estimates the lowered program that was compiled. The jaxpr is a new trace of the same function.
    """
    trace = trace_train(compiled.architecture, compiled.settings, len(compiled.devices))
    products = sum(trace.count().matrix().values())
    modelled = trace.count(rules=XLA_RULES, loops_once=True)
    return StepAccount(products, estimate(compiled.lowered) or 0, modelled.total)
