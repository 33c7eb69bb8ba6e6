# SPDX-License-Identifier: Apache-2.0
"""A whole run under mpirun, under each MPI: its verdict, its trials, its sums, its times, its readers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import h5py
import numpy as np
import pytest

from aiperf_mpi.network.architecture import Architecture, Morph
from aiperf_mpi.planning.estimate.estimate import records
from aiperf_mpi.results.evidence.evidence import Evidence
from aiperf_mpi.results.file.rows import PHASES
from aiperf_mpi.results.judge.judge import judge_file
from aiperf_mpi.results.output import journal
from aiperf_mpi.results.output.package import check_manifest, read_manifest
from aiperf_mpi.training.checkpoint import load_checkpoint, save_checkpoint
from tests.helpers.end_to_end.runs import SECONDS, Ended
from tests.helpers.parallel.mpi import BOTH
from tests.helpers.results.agreement import assert_all_agree, command

pytestmark = BOTH


def test_valid_trial(ended: Ended) -> None:
    assert ended.code == 0, ended.text()
    assert ended.lines["status"] == "VALID", ended.text()
    assert ended.lines["class"] == "trial"
    assert ended.lines["end"] == "time_limit"
    assert "score_ops" not in ended.lines and float(ended.lines["trial_rate_ops"].split()[0]) > 0


def test_everything_that_speaks_of_the_run_says_the_same(ended: Ended) -> None:
    assert assert_all_agree(ended.result, out=ended.out, code=ended.code).valid


def test_the_best_model_is_validated_again_by_anybody(read: Ended, tmp_path: Path) -> None:
    """`verify --reevaluate`: the checkpoint gives the stated error; another checkpoint does not pass for
    it."""
    done = command("verify", "--reevaluate", read.result)
    assert done.returncode == 0 and "V03 repeated passed" in done.stderr, done.stderr

    # Weights that somebody changed, saved with a digest that fits: the error is another one, or the trial is.
    shutil.copy(read.result, tmp_path / "result.h5")
    with h5py.File(read.result) as file:
        trial = int(file.attrs["error_final_trial"])
    saved = load_checkpoint(read.folder / "checkpoints" / f"{trial}.h5")
    worse = {
        "params": {
            name: {k: -v for k, v in leaf.items()} for name, leaf in saved.variables["params"].items()
        },
        "batch_stats": saved.variables["batch_stats"],
    }
    save_checkpoint(tmp_path / "checkpoints" / f"{trial}.h5", trial, saved.architecture, worse)
    done = command("verify", "--reevaluate", tmp_path / "result.h5")
    assert done.returncode == 3 and "V03 repeated FAILED" in done.stderr, done.stderr


def test_verdict_is_printed_once(ended: Ended) -> None:
    keys = [line.split()[1] for line in ended.out.splitlines() if line.startswith("AIPERF_MPI ")]
    assert len(keys) == len(set(keys))


def test_trials_form_a_tree(ended: Ended) -> None:
    """Every parent exists, every child is its parent with the child's own morphs, no candidate is trained
    twice."""
    trials = ended.table("trials")
    architectures = {
        i: Architecture.from_json(text)
        for i, text in zip(trials["trial_id"], trials["arch_json"], strict=True)
    }
    assert np.sum(trials["parent_id"] == -1) == 1 and trials["trial_id"][trials["parent_id"] == -1] == 0
    for trial, parent, morphs in zip(trials["trial_id"], trials["parent_id"], trials["morphs"], strict=True):
        if parent >= 0:
            own = tuple(Morph.from_dict(morph) for morph in json.loads(morphs))
            assert own and architectures[parent].apply(*own) == architectures[trial]

    trained = [
        key
        for key, n in zip(
            zip(trials["arch_hash"], trials["batch_global"], strict=True),
            trials["train_samples"],
            strict=True,
        )
        if n
    ]
    assert len(trained) >= 3 and len(trained) == len(set(trained)), trained


def test_the_history_took_no_more_records_than_estimated(ended: Ended) -> None:
    """Of as many trials as this replica came to the end of: two records each, and what was trained, waited or
    was replaced."""
    config = Evidence(judge_file(ended.result)[0]).config
    status, run = ended.table("trials")["status"], journal.replay(ended.folder / "journal.jsonl")
    whole = int(np.isin(status, ("done", "stopped", "failed")).sum())
    needed, replaced = records(config, 1, whole + 1)
    assert 2 * whole <= len(run.records) <= needed, (whole, len(run.records), needed)
    assert np.sum(status == "dropped") <= replaced + config.search.queue_depth + 1, (status, replaced)


def test_operations_add_up(ended: Ended) -> None:
    """Credited operations are the same integer over epochs, over trials, and at the end of the series."""
    epochs, trials, series = (ended.table(name) for name in ("epochs", "trials", "score_series"))
    total = sum(int(n) for n in epochs["ops_credited"])
    assert total == sum(int(n) for n in trials["ops_credited"]) == int(series["cumulative_ops"][-1]) > 0
    assert np.all(np.diff(series["t"]) > 0) and series["t"][-1] == SECONDS


def test_time_is_accounted_for(ended: Ended) -> None:
    """The nine phases of each rank add to its wall time within 2 %; idle is not computed as a difference."""
    ranks = ended.table("ranks")
    assert list(ranks["role"]) == ["coordinator", "trainer", "generator", "generator"]
    phases = np.sum([ranks[f"seconds_{phase}"] for phase in PHASES], axis=0)
    assert np.all(np.abs(phases / ranks["wall_seconds"] - 1) < 0.02), (phases, ranks["wall_seconds"])
    trainer = {phase: ranks[f"seconds_{phase}"][1] for phase in PHASES}
    assert trainer["train"] > 0 and trainer["compile"] > 0 and trainer["validate"] > 0


def test_messages_carry_rows_only(ended: Ended) -> None:
    """Point-to-point messages are rows to rank 0 and stop messages from it; history and candidates use
    windows."""
    messages = ended.table("messages")
    point_to_point = messages["channel"] == "point-to-point"
    assert set(messages["kind"][point_to_point]) <= {"epoch", "trial", "rank", "final", "sample", "stop"}
    assert {"history", "candidate", "claim"} <= set(messages["kind"][~point_to_point])

    # One row an epoch; one a trial that ended or was cut short, and one before its first epoch; from each
    # rank but 0 that its work has ended, and its last row.
    received = {
        k: int(np.sum(messages["received"][(messages["rank"] == 0) & (messages["kind"] == k)]))
        for k in ("epoch", "trial", "rank", "final", "sample")
    }
    trials = ended.table("trials")
    assert received["epoch"] == len(ended.table("epochs")["epoch"])
    begun = len(set(ended.table("epochs")["trial_id"]))
    assert received["trial"] == np.sum(np.isfinite(trials["t_start"])) + begun
    assert received["rank"] == 2 * 3 and received["final"] == 1
    assert received["sample"] == len(ended.table("samples")["t"])


def test_use_of_the_machine_is_sampled(ended: Ended) -> None:
    """A sample every 2 s up to core stop, by a thread that takes less than half a percent of a core at one in
    30 s."""
    samples, ranks = ended.table("samples"), ended.table("ranks")
    assert 8 <= len(samples["t"]) <= 16 and SECONDS - 0.01 <= samples["t"][-1]
    assert samples["sample_seconds"].sum() / samples["count"].sum() / 30 < 0.005
    assert np.all(samples["process_bytes"] > 2**26) and np.all(samples["cpu_percent"] > 0)
    assert np.all(np.diff(samples["write_bytes"]) >= 0)

    # Energy is what can be read of it here, or the reason why it is not; the end follows from the start.
    with h5py.File(ended.result) as file:
        energy, level = float(file.attrs["energy_joules"]), str(file.attrs["energy_level"])
        machine = json.loads(file["system/inventory_json"].asstr()[()])
        begin, end = (datetime.fromisoformat(file.attrs[f"core_{name}_utc"]) for name in ("start", "stop"))
    assert level.startswith("level 0: " if energy > 0 else "not measured on 1 of 1 hosts") and "RAPL" in level
    assert (end - begin).total_seconds() == pytest.approx(SECONDS, abs=0.001)

    # The one node, the MPI, and where each rank may run.
    (node,) = machine["nodes"]
    assert node["nodes"] == "0" and node["cpu"]["sockets"] and node["file_systems"]["output"]["type"]
    assert machine["mpi"]["vendor"].lower().startswith(("mpich", "open mpi"))
    assert len(set(ranks["cpus"])) >= 1 and all(ranks["cpus"]) and all(ranks["numa"])
    assert ranks["clock_offset"][0] == 0 and np.all(ranks["clock_uncertainty"][1:] > 0)


def test_best_model_is_validated_again(ended: Ended) -> None:
    """error_final is measured after the core time from the checkpoint, and equals what training found."""
    with h5py.File(ended.result) as file:
        best, final = float(file.attrs["best_error"]), float(file.attrs["error_final"])
        trial = int(file.attrs["error_final_trial"])
    assert final == pytest.approx(best, abs=1e-12)
    assert (ended.folder / "checkpoints" / f"{trial}.h5").is_file()


def test_readers_of_site_tooling(read: Ended) -> None:
    import pandas
    import xarray

    with h5py.File(read.result) as file:
        frame = pandas.DataFrame({k: v[...] for k, v in file["epochs"].items()})
    assert len(frame) and frame["train_samples"].sum() > 0
    with xarray.open_dataset(read.result, group="trials") as data:
        assert data.sizes["trial"] == len(read.table("trials")["trial_id"])
    if shutil.which("h5dump"):
        dump = subprocess.run(["h5dump", "-H", read.result], capture_output=True, text=True, timeout=60)
        assert dump.returncode == 0 and "score_series" in dump.stdout


def test_report_and_verify_read_the_file_alone(read: Ended, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere.h5"
    shutil.copy(read.result, moved)
    command = [sys.executable, "-m", "aiperf_mpi"]
    verify = subprocess.run([*command, "verify", moved], capture_output=True, text=True, timeout=60)
    report = subprocess.run([*command, "report", moved], capture_output=True, text=True, timeout=60)
    assert verify.returncode == 0 and "AIPERF_MPI status: VALID" in verify.stdout, (
        verify.stdout + verify.stderr
    )
    assert report.returncode == 0 and "VALID" in report.stdout, report.stdout + report.stderr


def test_no_leftovers(ended: Ended) -> None:
    """The journal and the result stay, described; partial result and temporary files are gone."""
    names = {path.name for path in ended.folder.iterdir()}
    own = {"owner.json", "journal.jsonl", "result.h5", "result.json", "manifest.sha256", "checkpoints"}
    assert names == own, names
    hashes = read_manifest(ended.folder / "manifest.sha256")
    assert check_manifest(ended.folder) == [] and any(name.startswith("checkpoints/") for name in hashes)
