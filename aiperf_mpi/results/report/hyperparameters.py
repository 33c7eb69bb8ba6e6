# SPDX-License-Identifier: Apache-2.0
"""The best known hyperparameters of a run: the search's recommendation at its end, computed from the rows.

The search explores, so neither its last choice nor that of the best trial is the best known one.
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

#: The two kinds of candidates, whose tables of cells are learnt separately.
WITH_KERNEL, WITHOUT_KERNEL = "with convolutions of their own", "without"


def hyperparameters(e: Evidence, verdict: Verdict) -> Iterator[RenderableType]:
    """Show the kernel and the batch size of the least expected error, and on how many trials they are based.

    A model fitted to the observed trials gives the expected errors. Yield one line if HPO is off, or if too
    few trials have ended.
    """
    hpo = e.config.hpo
    if not hpo.enabled:
        yield Text("  hyperparameters were not optimised (hpo.enabled is false)")
        return
    best = best_known(e) if (e.column("trials", "round") >= hpo.from_round).any() else {}
    table = columns_of(
        "candidates", "kernel", "batch per device", "trials of these", "of all observed", left=("candidates",)
    )
    for kind, known in best.items():
        size = known.choice.kernel_size
        kernel = f"{size}x{size}" if kind == WITH_KERNEL else "-"
        table.add_row(kind, kernel, *map(str, (known.choice.batch_per_device, known.trials, known.observed)))
    if table.row_count:
        yield table
        yield Text(
            "  These have the lowest expected error when differences between networks are removed; the best "
            "trial may have used others."
        )
    else:
        yield Text(f"  not known: they are chosen from round {hpo.from_round} on, and too few trials ended")


def best_known(e: Evidence) -> dict[str, Known]:
    """Return the best known cell of candidates that add convolutions (which have a kernel) and of all others.

    A kind without observations is left out.
    """
    # Imported here: scipy's and scikit-optimize's models take longer to import than most reports to print.
    from aiperf_mpi.search.hpo import recommend
    from aiperf_mpi.search.knowledge import Memory

    hpo, view, memory = e.config.hpo, history(e), Memory()
    kernels, batches = tuple(sorted(set(hpo.kernels))), tuple(sorted(set(hpo.batches)))
    cells = {
        kind: recommend(view, Cells(kernels, batches, kind == WITH_KERNEL), hpo.from_round, memory)
        for kind in (WITH_KERNEL, WITHOUT_KERNEL)
    }
    return {kind: known for kind, known in cells.items() if known is not None}


def history(e: Evidence) -> HistoryView:
    """Return the history as the search would see it at the end of the run; trial ids are rows of /trials.

    Outcomes follow all proposals, in the order in which the trials ended. A trial that cannot be replayed is
    left out.
    """
    columns, count = e.table("trials"), len(e.status)
    known = np.array([isinstance(architecture, Architecture) for architecture in e.architectures], bool)
    proposed = np.zeros(count, SUMMARY_DTYPE)
    proposed["kind"] = np.where(known, PROPOSED, 0)
    proposed["trial"] = proposed["parent"] = -1
    proposed["value"] = math.nan
    for name in ("round", "batch_per_device", "kernel_size"):
        proposed[name] = np.clip(columns[name], 0, np.iinfo(SUMMARY_DTYPE[name]).max)

    # Each trial whose network is known has a proposal.
    cache = ArchitectureCache(max(count, 1))
    for row in np.flatnonzero(known).tolist():
        architecture, morphs = e.architectures[row], e.morphs[row]
        if isinstance(architecture, Architecture):
            cache.put(row, architecture)
            proposed["flags"][row] = TAKES_KERNEL * bool(architecture.own_kernel_morphs(len(morphs)))

    # The outcome of a trial that ended well is its predicted error in the warm-up, else its best error.
    ended = np.flatnonzero(known & (e.status != UNFINISHED) & (e.status < len(STATUS)))
    ended = ended[np.argsort(columns["t_end"][ended], kind="stable")]
    outcomes = proposed[ended]
    outcomes["kind"], outcomes["trial"], outcomes["status"] = OUTCOME, ended, e.status[ended]
    predicted = np.isfinite(columns["predicted_error"][ended])
    outcomes["flags"] |= np.where(predicted, PREDICTED, 0).astype(np.uint8)
    errors = np.where(predicted, columns["predicted_error"][ended], columns["best_error"][ended])
    # An error above 1 comes from a damaged file and is not used.
    usable = np.isin(e.status[ended], SUCCESSES) & (errors >= 0) & (errors <= 1)
    outcomes["value"] = np.where(usable, errors, math.nan)
    return HistoryView(np.concatenate([proposed, outcomes]), _no_record, e.root, cache)


def _no_record(slot: int) -> np.void:
    """Raise KeyError: a view of a result reads no records."""
    raise KeyError(f"trial {slot}: a result has no records of the history")
