# SPDX-License-Identifier: Apache-2.0
"""The rules of a result as data: every check with its reason, those left out, classes, divisions,
submissions.

docs/rules.md says the same in words; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from aiperf_mpi.results.judge.checks import CHECKS, FATAL
from aiperf_mpi.results.judge.judge import AGREES, AGREES_LIMIT, SEAL, SEAL_LIMIT

#: Why each check exists.
REASONS = {
    "I01": "A tool that reads the file must find what the schema promises.",
    "I02": "A row counted twice, or lost, changes the score.",
    "I03": "Values that cannot be betray damage.",
    "I04": "A search has one beginning.",
    "I05": "Operations are counted from the architecture, so it must be the one that was searched.",
    "I06": "Training a candidate again is no search.",
    "I07": "A count that a rank reports is not evidence; the architecture is.",
    "I08": "The plot of the score must be that of the rows.",
    "I09": "Only images that were really used are credited, not a nominal epoch.",
    "I10": "The error of a trial is what its epochs measured.",
    "I11": "What ranks exchanged belongs to the description of a run.",
    "I12": "A reader who trusts the attributes must not read another verdict.",
    "I13": "All trials train under the declared budget.",
    "I14": "Budgets follow rounds, so rounds must follow one another.",
    "I15": "A machine that trained nothing has no rate.",
    "I16": "A short run, or one stopped at its best moment, does not measure a machine.",
    "I17": "Use and energy of the machine must be those of the time that counts.",
    "I18": "When training stops follows from its losses; a failed trial cannot pass as one that was cut "
    "short.",
    "I19": "Another space of networks, or other batches, is another search than the one that was declared.",
    "V01": "What was run must be what is claimed.",
    "V02": "The clock must not stop early.",
    "V03": "An error that cannot be reproduced from the checkpoint was not reached.",
    "V04": "Diverged training must not raise a score.",
    "V05": "Sums wrap and round; integers do not.",
    "V06": "A count that only one method gives may be of another step than the one that ran.",
    "V08": "A child that computes another function did not inherit its weights.",
    "V09": "Without a search the workload is another one.",
    "V10": "The paper asks for at least FP-16, as which bfloat16 counts; and no device is faster than its "
    "maker says.",
    "V11": "Ranks that did not report may have done anything; a device that counts twice is no second one.",
    "V12": "Time that runs backwards, or twice, makes work for nothing.",
    "V13": "Idle time counts, so all time must be accounted for.",
    "V14": "A rate that still moves is no result.",
    "V15": "The same images must have been trained everywhere.",
    "V16": "A run must be repeatable from its seed.",
    "V18": "A number without its machine cannot be compared.",
    "V19": "Others must be able to get the program that ran.",
    "V20": "An official run is not interrupted.",
    "V21": "A file that was changed afterwards proves nothing.",
}

#: Checks of the common numbering that this version does not make, and why.
LEFT_OUT = {
    "V07": "Digests on all devices are compared in every epoch, and a difference fails the trial; none is "
    "stored.",
    "V17": "There are no reference curves of convergence for searched networks.",
}

_SHARE = "how phases share a rank's wall time; only their sum is bound (V13)"
_WORK = "how long a trainer's thread worked; bears on no score"
_COUNT = "a count that no row bears out; that it is not negative is checked (I11)"

_USE = (
    "count",
    "devices",
    "cpu_percent",
    "process_percent",
    "memory_bytes",
    "process_bytes",
    "device_percent",
    "device_memory_bytes",
    "device_mhz",
    "device_celsius",
    "device_watts",
    "read_bytes",
    "write_bytes",
    "net_bytes",
    "fabric_bytes",
    "sample_seconds",
)

#: Columns and attributes in which another plausible value passes every check of a trial run once the content
#: hash is recomputed, and why. No rate and no error of the verdict is computed from them.
UNCHECKED = {
    "/trials/cause": "words",
    "/trials/trace_seconds": _WORK,
    "/trials/compile_seconds": _WORK,
    "/trials/xla_ops": "bound to the model of XLA's rules, within a band (V06)",
    "/trials/xla_model_ops": "bound to XLA's estimate, within a band (V06)",
    "/trials/predicted_error": "steers the search only",
    "/trials/resumed": "1 is fatal for an official run (V20)",
    "/epochs/t_start": "bound by the epoch before it and by its end (V12)",
    "/epochs/train_loss": "bears on no score; that it is finite is checked (V04)",
    "/epochs/val_loss": "bears on no score; that it is finite (V04) and ends its trial by the rule (I18) is "
    "checked",
    "/ranks/node": "a place; the number of nodes is checked (V11), and a node that measured no power bears "
    "on the "
    "energy",
    "/ranks/replica": "a place; the number of replicas is checked (V11)",
    "/ranks/local_rank": "a place",
    "/ranks/cpus": "a place",
    "/ranks/numa": "a place",
    "/ranks/clock_offset": "the rank's times are corrected by it before they are sent; it is finite (V12)",
    "/ranks/clock_uncertainty": "bound from above (V12)",
    **{
        f"/ranks/seconds_{name}": _SHARE
        for name in ("data", "search", "compile", "train", "validate", "communicate", "io")
    },
    **{f"/messages/{name}": _COUNT for name in ("rank", "sent", "received", "bytes")},
    **{
        f"/samples/{name}": "describes the machine's use, and bears on no score; its bounds are checked (I17)"
        for name in _USE
    },
    "aiperf_mpi_version": "a name",
    "run_id": "a name; its form is checked (I03)",
    "end_cause": "words",
    "error_final": "bound in official runs (V03); anybody can evaluate the checkpoint again",
    "total_seconds": "bound by the core time from below (V02)",
    "dataset_sha256": "a hash of what is not in the file; its form is checked in official runs (V15)",
    "journal_complete": "says of the journal what the file does not show",
}

#: Class and division, and what decides them.
CLASSES = {
    "official": "all rows that the paper fixes are kept, and the core time is at least an hour",
    "trial": "any other run: it has a rate, and no score",
}
DIVISIONS = {
    "closed": "the defaults of Table 4 are kept, except framework and batch size",
    "open": "any default is departed from; departures are listed in the result",
}

#: An official submission: runs with these seeds, declared beforehand, and the median of their scores. The
#: authors' own rerun differed by 10 %, so one run says little.
SEEDS = (2021, 2022, 2023)
REPETITIONS = len(SEEDS)


@dataclass(frozen=True, slots=True)
class RuleOfCheck:
    """A check as a rule: `severity` is fatal (for every run) or official (for official runs)."""

    id: str
    severity: str
    limit: str
    reason: str


#: Every check that the judge makes, by identifier.
RULES: tuple[RuleOfCheck, ...] = tuple(
    RuleOfCheck(name, severity, limit, REASONS[name])
    for name, severity, limit in sorted(
        [
            *((c.id, c.severity, c.limit) for c in CHECKS),
            (SEAL, FATAL, SEAL_LIMIT),
            (AGREES, FATAL, AGREES_LIMIT),
        ]
    )
)


def submission_score(scores: Sequence[float]) -> float:
    """The score of an official submission in op/s: the median of REPETITIONS runs.

    Raises ValueError for another number of runs.
    """
    if len(scores) != REPETITIONS:
        raise ValueError(f"an official submission has {REPETITIONS} runs, not {len(scores)}")
    return median(scores)


def rule_lines() -> list[str]:
    """The rows of the table of checks in docs/rules.md."""
    return [f"| {r.id} | {r.severity} | {r.limit} | {r.reason} |" for r in RULES]
