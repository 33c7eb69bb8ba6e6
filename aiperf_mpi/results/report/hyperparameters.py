# SPDX-License-Identifier: Apache-2.0
"""The best known hyperparameters of a run: what its search would recommend at the end, computed from the
result's rows.

The search itself explores, so that its last choice, or that of the best trial, is not the best known one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from rich.console import RenderableType
from rich.text import Text

from aiperf_mpi.network.architecture import Architecture
from aiperf_mpi.results.evidence.evidence import Evidence
from aiperf_mpi.results.file.rows import STATUS, UNFINISHED
from aiperf_mpi.results.judge.judge import Verdict
from aiperf_mpi.results.report.details import columns_of
from aiperf_mpi.search.cells import Cells
from aiperf_mpi.trials.record import OUTCOME, PREDICTED, PROPOSED, SUCCESSES, SUMMARY_DTYPE, TAKES_KERNEL
from aiperf_mpi.trials.view import ArchitectureCache, HistoryView

if TYPE_CHECKING:
    from aiperf_mpi.search.hpo import Known

#: The two tables of cells that are learnt apart.
WITH_KERNEL, WITHOUT_KERNEL = "with convolutions of their own", "without"


def hyperparameters(e: Evidence, verdict: Verdict) -> Iterator[RenderableType]:
    """The best known kernel and batch size, and how many trials that rests on."""
    hpo = e.config.hpo
    if not hpo.enabled:
        yield Text("  hyperparameters were not optimised (hpo.enabled is false)")
        return
    found = best_known(e) if (e.column("trials", "round") >= hpo.from_round).any() else {}
    table = columns_of(
        "candidates", "kernel", "batch per device", "trials of these", "of all observed", left=("candidates",)
    )
    for kind, known in found.items():
        size = known.choice.kernel_size
        kernel = f"{size}x{size}" if kind == WITH_KERNEL else "-"
        table.add_row(kind, kernel, *map(str, (known.choice.batch_per_device, known.trials, known.observed)))
    if table.row_count:
        yield table
        yield Text(
            "  The least error to expect when the differences between the networks are taken out; the best "
            "trial's own may be others."
        )
    else:
        yield Text(f"  not known: they are chosen from round {hpo.from_round} on, and too few trials ended")


def best_known(e: Evidence) -> dict[str, Known]:
    """The best known cell for candidates that add convolutions, whose kernel is chosen, and for all others;
    without those of which nothing was observed."""
    # They import scipy's and scikit-optimize's models, which takes longer than most reports.
    from aiperf_mpi.search.hpo import recommend
    from aiperf_mpi.search.knowledge import Memory

    hpo, view, memory = e.config.hpo, history(e), Memory()
    kernels, batches = tuple(sorted(set(hpo.kernels))), tuple(sorted(set(hpo.batches)))
    found = {
        kind: recommend(view, Cells(kernels, batches, kind == WITH_KERNEL), hpo.from_round, memory)
        for kind in (WITH_KERNEL, WITHOUT_KERNEL)
    }
    return {kind: known for kind, known in found.items() if known is not None}


def history(e: Evidence) -> HistoryView:
    """The history as the search would see it at the end of the run, with rows of /trials for trial ids.

    Outcomes follow all proposals, in the order of the trials' ends. A trial that nobody can replay is left
    out.
    """
    columns, count = e.table("trials"), len(e.status)
    known = np.array([isinstance(architecture, Architecture) for architecture in e.architectures], bool)
    proposed = np.zeros(count, SUMMARY_DTYPE)
    proposed["kind"] = np.where(known, PROPOSED, 0)
    proposed["trial"] = proposed["parent"] = -1
    proposed["value"] = math.nan
    for name in ("round", "batch_per_device", "kernel_size"):
        proposed[name] = np.clip(columns[name], 0, np.iinfo(SUMMARY_DTYPE[name]).max)

    cache = ArchitectureCache(max(count, 1))
    for row in np.flatnonzero(known).tolist():
        architecture, morphs = e.architectures[row], e.morphs[row]
        if isinstance(architecture, Architecture):
            cache.put(row, architecture)
            proposed["flags"][row] = TAKES_KERNEL * bool(architecture.own_kernel_morphs(len(morphs)))

    # What the search uses of a trial that ended well: the predicted error of the warm-up, else the best one.
    ended = np.flatnonzero(known & (e.status != UNFINISHED) & (e.status < len(STATUS)))
    ended = ended[np.argsort(columns["t_end"][ended], kind="stable")]
    outcomes = proposed[ended]
    outcomes["kind"], outcomes["trial"], outcomes["status"] = OUTCOME, ended, e.status[ended]
    predicted = np.isfinite(columns["predicted_error"][ended])
    outcomes["flags"] |= np.where(predicted, PREDICTED, 0).astype(np.uint8)
    errors = np.where(predicted, columns["predicted_error"][ended], columns["best_error"][ended])
    # No error is beyond 1: what a damaged file has there is none.
    usable = np.isin(e.status[ended], SUCCESSES) & (errors >= 0) & (errors <= 1)
    outcomes["value"] = np.where(usable, errors, math.nan)
    return HistoryView(np.concatenate([proposed, outcomes]), _no_record, e.root, cache)


def _no_record(slot: int) -> np.void:
    raise KeyError(f"trial {slot}: a result has no records of the history")
