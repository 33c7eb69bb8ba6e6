# SPDX-License-Identifier: Apache-2.0
"""The report for a terminal: the verdict with its reasons, and sections on trials, ranks, search and machine.

Everything is read from the result file, and all numbers of the verdict come from the judge.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from aiperf_mpi.opcount.rates import ops_text
from aiperf_mpi.printable import plain
from aiperf_mpi.results.evidence.evidence import Evidence
from aiperf_mpi.results.evidence.gaps import gaps
from aiperf_mpi.results.evidence.plain_result import plain_result
from aiperf_mpi.results.file.rows import PHASES
from aiperf_mpi.results.judge.judge import Verdict, judge_file
from aiperf_mpi.results.report import details, reading, utilisation
from aiperf_mpi.results.report.answers import answers
from aiperf_mpi.results.report.choices import choices
from aiperf_mpi.results.report.details import columns_of
from aiperf_mpi.results.report.hyperparameters import hyperparameters
from aiperf_mpi.results.report.verdict import has_regulated, rate_titles, reason_lines, verdict_lines

#: Most rows of a table; longer tables are thinned or cut, with a line that says so.
MAX_ROWS = 40


def text_report(path: Path | str, width: int = 110) -> str:
    """Return the report of a result file for a terminal of `width` columns, without colour.

    A section that cannot be made from damaged rows gives the error instead. Raises NotAResult if the file is
    not a result.
    """
    result, verdict = judge_file(path)
    evidence = Evidence(plain_result(result))
    out = io.StringIO()
    console = Console(file=out, width=width, no_color=True, highlight=False, emoji=False, markup=False)
    for line in (*verdict_lines(verdict), *reason_lines(verdict)):
        console.print(line, soft_wrap=True)
    for title, section in SECTIONS.items():
        console.print(f"\n{title}")
        try:
            for part in section(evidence, verdict):
                console.print(part)
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            console.print(f"  cannot be shown: {plain(str(error))}", soft_wrap=True)
    return out.getvalue()


def _thinned(count: int) -> list[int]:
    """Return the indices of at most MAX_ROWS of `count` rows, evenly spread, with the last one."""
    if count <= MAX_ROWS:
        return list(range(count))
    return sorted({round((i + 1) * count / MAX_ROWS) - 1 for i in range(MAX_ROWS)})


def _error(value: float) -> str:
    """Return an error rate with four digits, or - for none."""
    return "-" if math.isnan(value) else f"{value:.4f}"


def _time(value: float) -> str:
    """Return a time in s with one digit, or - for none."""
    return "-" if math.isnan(value) else f"{value:.1f}"


# -- sections --------------------------------------------------------------------------------------


def _run(e: Evidence, verdict: Verdict) -> Iterator[RenderableType]:
    """Show the main attributes of the run."""
    table = Table.grid(padding=(0, 2))
    names = (
        "run_id",
        "aiperf_mpi_version",
        "dataset",
        "precision",
        "seed",
        "core_start_utc",
        "core_stop_utc",
        "time_limit",
        "tick",
        "opcount_method",
        "end_cause",
    )
    for name in names:
        if (value := e.result.attributes.get(name, "")) != "":
            table.add_row(f"  {name}", f"{value}{details.reason_of(e) if name == 'precision' else ''}")
    table.add_row("  total_ops", str(verdict.total_ops))
    for warning in details.warnings_of(e):
        table.add_row("  warning before the start", warning)
    yield table


def _series(e: Evidence, verdict: Verdict) -> Iterator[RenderableType]:
    """Show the rate over time, recomputed from the rows: stored numbers of a file may be wrong."""
    rate, regulated = rate_titles(verdict)
    more = (f"{regulated} (op/s)",) if has_regulated(e) else ()
    table = columns_of("t (s)", "operations", f"{rate} (op/s)", "", "best error", *more)
    for row in _thinned(len(e.series)):
        sample = e.series[row]
        table.add_row(
            _time(sample.t),
            f"{sample.ops:.6e}",
            f"{sample.rate:.6e}",
            ops_text(sample.rate),
            _error(sample.best_error),
            *("-" if math.isnan(sample.regulated) else f"{sample.regulated:.6e}" for _ in more),
        )
    yield table
    if verdict.valid:
        yield Text(
            f"  The rate of the run is that of {verdict.resnet50_images:,.3g} images of ImageNet a second on "
            "ResNet-50, trained and validated."
        )
        yield from details.efficiency(e, verdict)
    if not verdict.valid or verdict.cls != "official":
        yield Text("  These are rates of operations, not a score: the run is not a valid official one.")


def _trials(e: Evidence, verdict: Verdict) -> Iterator[RenderableType]:
    """Show the trials, and why some of them failed or were rejected."""
    columns = e.table("trials")
    count = len(columns["trial_id"])
    # Of many trials, show the best; trials without an error come last.
    order = np.argsort(np.nan_to_num(columns["best_error"], nan=2.0), kind="stable")[:MAX_ROWS]
    if count > MAX_ROWS:
        yield Text(f"  the best {MAX_ROWS} of {count}")
    else:
        order = np.arange(count)
    table = columns_of(
        "trial",
        "parent",
        "replica",
        "round",
        "batch",
        "status",
        "epochs",
        "start",
        "end",
        "best error",
        "operations",
        left=("status",),
    )
    for row in order:
        table.add_row(
            *(
                str(columns[name][row])
                for name in ("trial_id", "parent_id", "replica", "round", "batch_global", "status", "epochs")
            ),
            _time(columns["t_start"][row]),
            _time(columns["t_end"][row]),
            _error(columns["best_error"][row]),
            f"{columns['ops_credited_f64'][row]:.3e}",
        )
    yield table

    # Show each cause of failure or rejection once, up to MAX_ROWS of them.
    causes: dict[tuple[str, str], list[int]] = {}
    for trial, status, cause in zip(
        *(columns[name].tolist() for name in ("trial_id", "status", "cause")), strict=True
    ):
        if cause:
            causes.setdefault((status, cause), []).append(trial)
    for (status, cause), own in list(causes.items())[:MAX_ROWS]:
        yield Text(f"  trial {own[0]}{f' and {len(own) - 1} more' if len(own) > 1 else ''} {status}: {cause}")
    if len(causes) > MAX_ROWS:
        yield Text(f"  and {len(causes) - MAX_ROWS} more causes")


def _tree(e: Evidence, verdict: Verdict) -> Iterator[RenderableType]:
    """Show the trials as children of their parents; of many trials, only the ancestors of the best one."""
    columns = e.table("trials")
    ids, parents = columns["trial_id"].tolist(), columns["parent_id"].tolist()
    shown = set(ids)
    if len(ids) > MAX_ROWS:
        shown = set(e.lineage(verdict.best_trial))
        yield Text("  the ancestors of the best trial")

    # Parents come before their children, so one pass is enough; a trial without its parent becomes a root.
    branches: dict[int, Tree] = {}
    roots: list[Tree] = []
    for row, (trial, parent) in enumerate(zip(ids, parents, strict=True)):
        if trial not in shown:
            continue
        label = Text(
            f"{trial}: {_change(e, row)}  [{columns['status'][row]}, {_error(columns['best_error'][row])}]"
        )
        if parent in branches:
            branches[trial] = branches[parent].add(label)
        else:
            branches[trial] = Tree(label)
            roots.append(branches[trial])
    yield from roots


def _change(e: Evidence, row: int) -> str:
    """Return the morphs of a trial in words."""
    morphs = e.morphs[row]
    return (
        morphs if isinstance(morphs, str) else "; ".join(str(morph) for morph in morphs) or "initial network"
    )


def _between(e: Evidence, verdict: Verdict) -> Iterator[RenderableType]:
    """Show how long each replica waited between candidates."""
    replicas = gaps(e)
    table = columns_of(
        "replica", "trials", "median gap", "longest gap", "trace + compile", "train + validate"
    )
    for gap in replicas[:MAX_ROWS]:
        known = gap.seconds[np.isfinite(gap.seconds)]
        middle, longest = (f"{f(known):.3f}" if len(known) else "-" for f in (np.median, np.max))
        share = "-" if math.isnan(gap.share) else f"{gap.share:.1%}"
        table.add_row(str(gap.replica), str(gap.trials), middle, longest, f"{gap.prepared:.1f}", share)
    yield table
    if len(replicas) > MAX_ROWS:
        yield Text(f"  the first {MAX_ROWS} of {len(replicas)} replicas")
    yield Text(
        "  A gap lasts from a trial's last batch to the next one's first step; the share is of the time from "
        "a replica's first step to its last."
    )


def _ranks(e: Evidence, verdict: Verdict) -> Iterator[RenderableType]:
    """Show the time of each rank by phase; of many ranks, the first ones and the mean of each role."""
    columns = e.table("ranks")
    count = len(columns["rank"])
    table = columns_of("rank", "role", "wall", *PHASES, left=("role",))
    for row in range(min(count, MAX_ROWS)):
        times = ("wall_seconds", *(f"seconds_{phase}" for phase in PHASES))
        table.add_row(
            str(columns["rank"][row]), columns["role"][row], *(f"{columns[name][row]:.1f}" for name in times)
        )
    yield table
    if count > MAX_ROWS:
        yield Text(f"  the first {MAX_ROWS} of {count} ranks; mean over all of each role:")
        means = columns_of("role", "ranks", "wall", *PHASES, left=("role",))
        for role in dict.fromkeys(columns["role"].tolist()):
            own = columns["role"] == role
            seconds = [columns["wall_seconds"], *(columns[f"seconds_{phase}"] for phase in PHASES)]
            means.add_row(role, str(int(own.sum())), *(f"{values[own].mean():.1f}" for values in seconds))
        yield means


def _messages(e: Evidence, verdict: Verdict) -> Iterator[RenderableType]:
    """Show how many messages of each kind were sent and received, and their bytes."""
    columns = e.table("messages")
    table = columns_of("what", "by", "sent", "received", "bytes", left=("what", "by"))
    for kind in dict.fromkeys(columns["kind"].tolist()):
        own = columns["kind"] == kind
        sums = (str(int(columns[name][own].sum())) for name in ("sent", "received", "bytes"))
        table.add_row(kind, str(columns["channel"][own][0]), *sums)
    yield table


def _answers(e: Evidence, verdict: Verdict) -> Iterator[RenderableType]:
    """Show the questions that a reader asks first, with their answers."""
    for answer in answers(e, verdict):
        yield Text(f"  {answer.question}")
        yield from (Padding(Text(line), (0, 0, 0, 4)) for line in answer.lines)


#: The sections after the verdict, in order.
SECTIONS: dict[str, Callable[[Evidence, Verdict], Iterator[RenderableType]]] = {
    "In short": _answers,
    "Run": _run,
    "Rate over time": _series,
    "Trials": _trials,
    "Tree of trials (morphs, status, error)": _tree,
    "What chose the candidates": choices,
    "Time by kind (s)": _ranks,
    "Between candidates (s)": _between,
    "Messages": _messages,
    "Data": reading.data,
    "Utilisation": utilisation.utilisation,
    "Places and clocks of ranks": utilisation.places,
    "Energy": details.energy,
    "Best network": details.network,
    "Best known hyperparameters": hyperparameters,
    "System": details.system,
}
