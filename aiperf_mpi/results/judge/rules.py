# SPDX-License-Identifier: Apache-2.0
"""The rules of a result as data: checks, values without a check, classes, divisions, submissions.

docs/rules.md has the same as text; its tables are made by pages.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from aiperf_mpi.results.file.schema import TABLES, UNCHECKED_ATTRIBUTES
from aiperf_mpi.results.judge.checks import CHECKS, Rule
from aiperf_mpi.results.judge.judge import AGREES, SEAL

#: Checks of the common numbering that this version does not make, and why.
LEFT_OUT = {
    "V07": "Digests on all devices are compared in every epoch, and a difference fails the trial; none is "
    "stored.",
    "V17": "Searched networks have no reference curves of convergence.",
}

#: Columns and attributes in which another plausible value passes every check of a trial run once the content
#: hash is recomputed, and why. No rate and no error of the verdict is computed from them.
UNCHECKED = {
    f"/{table.name}/{name}": why for table in TABLES.values() for name, why in table.unchecked.items()
} | UNCHECKED_ATTRIBUTES

#: Class and division, and the conditions of each.
CLASSES = {
    "official": "no fixed rule is departed from, and nothing was missing before the core time",
    "trial": "any other run: it has a rate, and no score",
}
DIVISIONS = {"closed": "no default is departed from", "open": "any default is departed from"}

#: The rows of Table 4, and the settings that decide them, or why none does. A row whose settings have no rule
#: is free.
TABLE_4_ROWS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "Server arrangement": ("fixed: primary-replica", (), "rank 0 and replicas are the only one"),
    "NAS method": ("fixed: network morphism", ("search.method", "search.morphs"), ""),
    "HPO method": ("fixed: Bayesian optimization", ("hpo.enabled", "hpo.method"), ""),
    "Dataset": ("fixed: ImageNet", ("data.name",), ""),
    "DL framework": ("default: TensorFlow", (), "JAX is the only one; the paper leaves it open"),
    "Initial architecture": ("fixed: ResNet-50", ("model.width", "model.blocks"), ""),
    "Initial weight": ("default: that of He et al.", ("model.initial_weight", "model.zero_gamma"), ""),
    "Batch size": ("default: 448", ("train.batch_per_device",), "free: HPO tunes it (section 4.5)"),
    "Optimizer": ("default: gradient descent with momentum", ("train.momentum",), ""),
    "Learning rate": ("default: 0.1 with linear decay", ("train.lr",), ""),
    "Loss function": ("default: categorical cross entropy", ("train.label_smoothing",), ""),
    "Maximum epoch": ("default: 60", ("train.epochs",), ""),
    "Parallelism": ("default: synchronous all-reduce", (), "it is the only one"),
    "Parallel data transformation": ("default: 48", ("data.workers",), "free: at most 48"),
    "Minimum precision": ("fixed: FP-16", ("train.precision",), "free: no type is narrower (V10)"),
    "Maximum error": ("fixed: 30%", ("result.max_error",), ""),
}

#: An official submission: runs with these seeds, declared beforehand, and the median of their scores. One run
#: is not enough: the authors' own rerun differed by 10 %.
SEEDS = (2021, 2022, 2023)
REPETITIONS = len(SEEDS)


#: Every check that the judge makes, by identifier.
RULES: tuple[Rule, ...] = tuple(sorted((*CHECKS, SEAL, AGREES), key=lambda rule: rule.id))


def submission_score(scores: Sequence[float]) -> float:
    """Return the score of an official submission in op/s: the median of REPETITIONS runs.

    Raises ValueError for another number of runs.
    """
    if len(scores) != REPETITIONS:
        raise ValueError(f"an official submission has {REPETITIONS} runs, not {len(scores)}")
    return median(scores)
