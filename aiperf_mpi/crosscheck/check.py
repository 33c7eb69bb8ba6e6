# SPDX-License-Identifier: Apache-2.0
"""Compare a candidate's counts with its traced steps: any difference rejects the candidate.

In the training step it compares the update of the parameters (per step), and the matrix products of
convolutions and dense layers (per image). These are the forward pass, the input gradient and the weight
gradient. In the evaluation step it compares the forward pass. It also compares the counts in the candidate's
record. All other operations, less than 2 % of a step, are only reported by `flops`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from aiperf_mpi.crosscheck.primitives import CountError
from aiperf_mpi.crosscheck.trace import trace_eval, trace_train
from aiperf_mpi.network.architecture import Architecture
from aiperf_mpi.opcount.analytical import FORWARD, matrix_operations, operations, update_operations
from aiperf_mpi.opcount.forms import STEMS, difference_of_passes, evaluation_difference, executed_difference
from aiperf_mpi.opcount.tally import STEP, UPDATE, Class, Tally
from aiperf_mpi.training.steps.step import StepSettings
from aiperf_mpi.trials.candidate import Candidate


@dataclass(frozen=True)
class Difference:
    """One class of operations that two methods count differently.

    Attributes:
        step: train or eval.
        key: the class; UPDATE counts per step, all others per image.
        traced: count of the traced step.
        expected: count by the tables.
    """

    step: str
    key: Class
    traced: Fraction
    expected: int

    def __str__(self) -> str:
        kind, role = self.key
        what = kind if role == STEP else f"{kind} {role}"
        return f"{self.step} {what}: {self.traced} != {self.expected} by the tables"


def check_operations(candidate: Candidate, settings: StepSettings, n_devices: int) -> str:
    """Compare a candidate's counts with those of the steps that will train and validate it.

    Arguments:
        settings: settings with which the trainer compiles the steps.
        n_devices: number of devices of the replica.

    Return the differences with both numbers, the first one within the first 64 characters, or "" if there
    are none. Errors of Flax for a network that cannot be built are passed on.
    """
    batch = settings.batch_per_device
    if (candidate.batch_per_device, candidate.batch_global) != (batch, batch * n_devices):
        return (
            f"batch: the candidate states {candidate.batch_per_device} and {candidate.batch_global}, but "
            f"its step takes {batch} on each of {n_devices} devices"
        )

    # Check the counts in the record, then the operations of the steps.
    counted = operations(candidate.architecture)
    for name, stated, expected in zip(
        ("train_ops", "val_ops"), (candidate.train_ops, candidate.val_ops), counted, strict=True
    ):
        if stated != expected:
            return f"{name}: {stated} != {expected} by the tables"
    try:
        items = differences(candidate.architecture, settings, n_devices)
    except CountError as error:
        return str(error)
    return "; ".join(str(difference) for difference in items)


def differences(architecture: Architecture, settings: StepSettings, n_devices: int) -> tuple[Difference, ...]:
    """Return the differences between the tables and the traced steps; see `check_operations`.

    Raises CountError if a step cannot be counted, and passes on errors of Flax for a network that cannot be
    built.
    """
    train = trace_train(architecture, settings, n_devices).count()
    evaluate = trace_eval(architecture, settings, n_devices).count()
    batch, forms = settings.batch_per_device, (*STEMS[settings.stem], *settings.forms)
    return compare(architecture, batch, train, evaluate, forms, settings.accumulate)


def compare(
    architecture: Architecture,
    batch: int,
    train: Tally,
    evaluate: Tally,
    forms: Iterable[str] = (),
    passes: int = 1,
) -> tuple[Difference, ...]:
    """Return the differences between the tables and these tallies.

    Arguments:
        batch: number of images in each step.
        train, evaluate: operations of a training and an evaluation step for `batch` images on one device.
        forms: optimised forms that the steps use, names of `forms.FORMS`.
        passes: number of micro-batches of a training step.
    """
    layers, forms = architecture.layers(), tuple(forms)
    plain = matrix_operations(layers)
    more, less = executed_difference(layers, forms), evaluation_difference(layers, forms)
    every_pass = difference_of_passes(layers, forms)

    # Count what a form does once for a micro-batch apart from what it does for an image.
    items = []
    for key, count in plain.items():
        traced = Fraction(train[key] - passes * every_pass.get(key, 0), batch)
        items.append(Difference("train", key, traced, count + more.get(key, 0)))
        forward = count + less.get(key, 0) if key[1] == FORWARD else 0
        items.append(Difference("eval", key, Fraction(evaluate[key], batch), forward))
    update = (UPDATE, STEP)
    items.append(Difference("train", update, Fraction(train[update]), update_operations(architecture)))
    items.append(Difference("eval", update, Fraction(evaluate[update]), 0))
    items.sort(key=lambda item: item.step == "eval")
    return tuple(item for item in items if item.traced != item.expected)
