# SPDX-License-Identifier: Apache-2.0
"""The best known hyperparameters: a result's rows give the same as the history of the run."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from aiperf_mpi import hdf5
from aiperf_mpi.config import load
from aiperf_mpi.paper import BATCHES, KERNELS
from aiperf_mpi.results.evidence.evidence import Evidence
from aiperf_mpi.results.file.collector import RunCollector
from aiperf_mpi.results.file.rows import TRIAL_ROW, new_row
from aiperf_mpi.results.judge.judge import judge_file
from aiperf_mpi.results.output import process
from aiperf_mpi.results.report import html
from aiperf_mpi.results.report.hyperparameters import WITH_KERNEL, WITHOUT_KERNEL, best_known, history
from aiperf_mpi.results.report.text import text_report
from aiperf_mpi.search.cells import Cells
from aiperf_mpi.search.hpo import make_hpo, recommend
from aiperf_mpi.trials.record import DROPPED, FAILED, OUTCOME, PROPOSED, rejection
from tests.helpers.results.example_run import example_run
from tests.helpers.search.cell_landscape import INITIAL, CellLandscape, Study

SETS = (f"hpo.kernels={list(KERNELS)}", f"hpo.batches={list(BATCHES)}", "hpo.from_round=4")


def learnt(trials: int = 20) -> Study:
    """Return a study with `trials` optimised trials, one failed, one dropped and one pending."""
    study = Study(CellLandscape(2, 0.2), make_hpo("grid"), 2)
    for _ in range(trials):
        study.train(4)
    failed, dropped = study.train(4, end=False), study.train(4, end=False)
    study.log.append(failed.outcome(FAILED, 1.0))
    study.log.refresh()
    study.log.append(rejection(study.log.record(dropped.trial_id), dropped.trial_id, 1.0, "stale", DROPPED))
    study.train(4, end=False)
    study.log.refresh()
    return study


def written(study: Study, folder: Path, *sets: str) -> Path:
    """Write the result file of a study's history, with a row for every trial; return its path."""
    config = load("demo", sets=(*SETS, *sets))
    header = replace(example_run().header, base=INITIAL.to_json(), config_toml=config.to_toml())
    collector = RunCollector()
    collector.event("open", header.to_dict())
    for slot in range(len(study.log)):
        record = study.log.record(slot)
        collector.record(slot, np.array([record]))
        if record["kind"] == OUTCOME and record["status"] != DROPPED:
            collector.rows(
                "trial",
                new_row(
                    TRIAL_ROW,
                    trial_id=record["trial"],
                    status=record["status"],
                    t_end=slot,
                    best_error=record["best_error"],
                ),
            )
    path = folder / "result.h5"
    hdf5.write(path, process.final_image(collector.snapshot(end="time_limit")))
    return path


@pytest.fixture(scope="module")
def study() -> Study:
    return learnt()


def test_the_file_recommends_what_the_history_does(study: Study, tmp_path: Path) -> None:
    path, view = written(study, tmp_path), study.view()
    best = best_known(Evidence(judge_file(path)[0]))
    for kind in (WITH_KERNEL, WITHOUT_KERNEL):
        assert best[kind] == recommend(view, Cells(KERNELS, BATCHES, kind == WITH_KERNEL))
    # 20 trials that ended well and one that failed are observed; the grid has filled 15 cells with one or two
    # each.
    assert best[WITH_KERNEL].observed == 21 and 1 <= best[WITH_KERNEL].trials <= 2

    known = best[WITH_KERNEL]
    cells = [
        f"{known.choice.kernel_size}x{known.choice.kernel_size}",
        str(known.choice.batch_per_device),
        str(known.trials),
        "21",
    ]
    line = rf"^Best known hyperparameters\n.*\n +{WITH_KERNEL} +{' +'.join(cells)} *$"
    assert re.search(line, text_report(path), re.MULTILINE)
    row = f"<td>{WITH_KERNEL}</td>" + "".join(f'<td class="n">{cell}</td>' for cell in cells)
    assert row in html.html_report(path)


def test_the_history_of_the_file_is_that_of_the_run(study: Study, tmp_path: Path) -> None:
    with_slots, by_rows = study.view(), history(Evidence(judge_file(written(study, tmp_path))[0]))
    # Trials are numbered by rows instead of slots; what ended, in which order, and with which error, is the
    # same.
    slots = with_slots.proposed
    assert by_rows.proposed.tolist() == list(range(len(slots)))
    assert slots[by_rows.finished].tolist() == with_slots.finished.tolist()
    assert slots[by_rows.pending].tolist() == with_slots.pending.tolist()
    assert by_rows.values.tolist() == with_slots.values.tolist()
    names = ["round", "batch_per_device", "kernel_size", "flags"]
    assert (by_rows.summaries[by_rows.proposed][names] == with_slots.summaries[slots][names]).all()
    assert by_rows.summaries["kind"].tolist().count(PROPOSED) == len(slots)


def test_before_the_first_optimised_round_nothing_is_recommended(tmp_path: Path) -> None:
    study = Study(CellLandscape(2, 0.2), make_hpo("grid"), 2)
    study.log.refresh()
    assert "\n  not known: they are chosen from round 4 on, and too few trials ended\n" in text_report(
        written(study, tmp_path)
    )


def test_a_run_without_optimisation_says_so(study: Study, tmp_path: Path) -> None:
    text = text_report(written(study, tmp_path, "hpo.enabled=false"))
    assert "\n  hyperparameters were not optimised (hpo.enabled is false)\n" in text


def test_damaged_rows_tell_nothing(study: Study, tmp_path: Path) -> None:
    """An impossible error or a network that cannot be replayed is left out, and the section is still shown
    there."""
    path = written(study, tmp_path)
    with h5py.File(path, "r+") as file:
        file["trials/best_error"][5] = 1e300
        file["trials/morphs"][6] = "no morphs"
        file["trials/round"][7] = -5
    view = history(Evidence(judge_file(path)[0]))
    assert 5 not in view.finished and 6 not in view.proposed
    assert WITH_KERNEL in text_report(path)
