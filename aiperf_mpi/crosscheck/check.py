# SPDX-License-Identifier: Apache-2.0
"""A candidate's counts against the step that trains it: equal to the last operation, or the candidate is
rejected.

Compared are the matrix products of convolutions and dense layers (forward, input gradient, weight gradient,
per image) and the update of the parameters (per step) of the training step, the forward pass of the
evaluation step, and the counts that the candidate's record states. All else, less than 2 % of a step, is
reported by `flops` only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from aiperf_mpi.crosscheck.primitives import CountError
from aiperf_mpi.crosscheck.trace import trace_eval, trace_train
from aiperf_mpi.network.architecture import Architecture
from aiperf_mpi.opcount.analytical import FORWARD, matrix_operations, operations, update_operations
from aiperf_mpi.opcount.forms import STEMS, executed_difference
from aiperf_mpi.opcount.tally import STEP, UPDATE, Class, Tally
from aiperf_mpi.training.steps.step import StepSettings
from aiperf_mpi.trials.candidate import Candidate


@dataclass(frozen=True)
class Difference:
    """One class of operations that two methods count differently.

    Attributes:
        step: train or eval.
        key: the class; UPDATE counts per step, all others per image.
        found: in the traced step.
        expected: by the tables.
    """

    step: str
    key: Class
    found: Fraction
    expected: int

    def __str__(self) -> str:
        kind, role = self.key
        what = kind if role == STEP else f"{kind} {role}"
        return f"{self.step} {what}: {self.found} != {self.expected} by the tables"


def check_operations(candidate: Candidate, settings: StepSettings, n_devices: int) -> str:
    """Compares a candidate's counts with those of the steps that will train and validate it.

    Arguments:
        settings: of the steps, as the trainer compiles them.
        n_devices: devices of the replica.

    Returns what differs, with both numbers, the most telling 64 characters first; "" where nothing does.
    Raises whatever Flax raises for a network that cannot be built.
    """
    batch = settings.batch_per_device
    if (candidate.batch_per_device, candidate.batch_global) != (batch, batch * n_devices):
        return (
            f"batch: the candidate states {candidate.batch_per_device} and {candidate.batch_global}, but "
            f"its step "
            f"takes {batch} on each of {n_devices} devices"
        )

    # What the record states, then what the steps execute.
    counted = operations(candidate.architecture)
    for name, found, expected in zip(
        ("train_ops", "val_ops"), (candidate.train_ops, candidate.val_ops), counted, strict=True
    ):
        if found != expected:
            return f"{name}: {found} != {expected} by the tables"
    try:
        wrong = differences(candidate.architecture, settings, n_devices)
    except CountError as error:
        return str(error)
    return "; ".join(str(difference) for difference in wrong)


def differences(architecture: Architecture, settings: StepSettings, n_devices: int) -> tuple[Difference, ...]:
    """What the tables and the traced training and evaluation step count differently; arguments as above.

    Raises CountError if a step cannot be counted, and whatever Flax raises for a network that cannot be
    built.
    """
    train = trace_train(architecture, settings, n_devices).count()
    evaluate = trace_eval(architecture, settings, n_devices).count()
    return compare(architecture, settings.batch_per_device, train, evaluate, STEMS[settings.stem])


def compare(
    architecture: Architecture, batch: int, train: Tally, evaluate: Tally, forms: Iterable[str] = ()
) -> tuple[Difference, ...]:
    """What the tables and these tallies count differently.

    Arguments:
        batch: images of the tallies.
        train, evaluate: operations of a training and an evaluation step for `batch` images, of one device.
        forms: faster forms that the steps use, names of `forms.FORMS`.
    """
    plain = matrix_operations(architecture.layers())
    more = executed_difference(architecture.layers(), tuple(forms))
    executed = {key: count + more.get(key, 0) for key, count in plain.items()}
    forward = {key: count if key[1] == FORWARD else 0 for key, count in executed.items()}

    found = []
    for step, tally, expected in (("train", train, executed), ("eval", evaluate, forward)):
        found += [
            Difference(step, key, Fraction(tally[key], batch), count) for key, count in expected.items()
        ]
    update = (UPDATE, STEP)
    found.append(Difference("train", update, Fraction(train[update]), update_operations(architecture)))
    found.append(Difference("eval", update, Fraction(evaluate[update]), 0))
    return tuple(item for item in found if item.found != item.expected)
