# SPDX-License-Identifier: Apache-2.0
"""The judge: it agrees with the writer, recomputes everything, and finds what was changed."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from aiperf_mpi import hdf5
from aiperf_mpi.results.file import resultfile
from aiperf_mpi.results.file.rows import FAILED, REJECTED
from aiperf_mpi.results.file.schema import ATTRIBUTES, DOCUMENTS, TABLES
from aiperf_mpi.results.judge.checks import CHECKS, FATAL
from aiperf_mpi.results.judge.judge import NotAResult, Verdict, judge
from aiperf_mpi.results.output import process
from aiperf_mpi.results.report.text import text_report
from aiperf_mpi.trials.candidate import Candidate
from aiperf_mpi.trials.record import DROPPED, rejection
from tests.helpers.results.example_run import Example, example_run


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A valid result."""
    return written(example_run(), tmp_path_factory.mktemp("result"))


def written(example: Example, folder: Path) -> Path:
    """The example's result file, as the writer makes it."""
    hdf5.write(folder / "result.h5", process.final_image(example.run()))
    return folder / "result.h5"


def changed(
    path: Path, folder: Path, change: Callable[[h5py.File], object], *, rehash: bool = True
) -> Verdict:
    """The verdict on a copy with a change; with `rehash` the content hash is that of the changed content."""
    copy = folder / "changed.h5"
    shutil.copy(path, copy)
    with h5py.File(copy, "r+") as file:
        change(file)
        if rehash:
            resultfile.set_attributes(file, {"content_sha256": resultfile.content_hash(file)})
    return judge(copy)


def altered(file: h5py.File, table: str, column: str, row: int = 2) -> None:
    """Change one value to another one of its type."""
    dataset = file[table][column]
    row = min(row, len(dataset) - 1)
    value = dataset[row]
    match TABLES[table].columns[TABLES[table].names.index(column)].dtype:
        case "str":
            dataset[row] = f"{value.decode()}7" if value.decode().isdigit() else "x"
        case "f8":
            dataset[row] = 0.123 if np.isnan(value) else value * 1.25 + 0.125
        case _:
            dataset[row] = value + 1


def test_a_run_without_fault_is_valid_and_its_numbers_follow_from_its_rows(path: Path) -> None:
    example, verdict = example_run(), judge(path)
    assert (verdict.valid, verdict.cls, verdict.division, verdict.end) == (
        True,
        "trial",
        "open",
        "time_limit",
    )
    assert verdict.reasons == () and all(
        finding.passed for finding in verdict.findings if finding.severity == FATAL
    )
    assert len(verdict.findings) == len(CHECKS) + 2 == len({finding.id for finding in verdict.findings})

    # Counted here in another way: image by image of each candidate.
    total = 0
    for candidate in example.candidates:
        rows = example.epochs[example.epochs["trial_id"] == candidate.trial_id]
        total += candidate.train_ops * int(rows["train_samples"].sum())
        total += candidate.val_ops * int(rows["val_samples"].sum())
    assert verdict.total_ops == total and verdict.rate == total / example.core_seconds
    # Trial 6 is the fourth, in its third epoch: 200 // 3 - 3 = 63 of 360 images are wrong.
    assert (verdict.best_error, verdict.best_trial, verdict.error_final) == (63 / 360, 6, 63 / 360)
    assert verdict.regulated == pytest.approx(-math.log(63 / 360) * verdict.rate, rel=1e-12)
    assert (verdict.trials, verdict.trials_done, verdict.trials_failed) == (6, 4, 0)
    assert (verdict.ranks, verdict.nodes, verdict.replicas, verdict.devices) == (5, 2, 2, 4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        verdict.valid = False  # type: ignore[misc]


def test_a_trial_run_has_a_rate_and_no_score(path: Path, tmp_path: Path) -> None:
    verdict = judge(path)
    assert verdict.trial_rate_ops == verdict.rate
    assert math.isnan(verdict.score_ops) and math.isnan(verdict.score_regulated)
    assert math.isnan(verdict.unscored_rate_ops)
    bad = changed(path, tmp_path, lambda file: altered(file, "epochs", "ops"))
    assert bad.unscored_rate_ops == verdict.rate
    assert math.isnan(bad.trial_rate_ops) and math.isnan(bad.score_ops)


@pytest.mark.parametrize(
    "kind", ["valid", "failed", "rejected", "drained", "unfinished", "other core time", "no ranks"]
)
def test_judge_and_writer_agree(kind: str, tmp_path: Path) -> None:
    example = example_run()
    match kind:
        case "failed":
            example.trials["status"][example.trial(4)] = FAILED
        case "rejected":
            gone = example.epochs["trial_id"] == 9
            example.epochs = example.epochs[~gone]
            row = example.trial(9)
            for name in ("epochs", "epochs_max", "train_samples", "val_samples"):
                example.trials[name][row] = 0
            for name in ("t_start", "best_error", "lr"):
                example.trials[name][row] = np.nan
            example.trials["status"][row] = REJECTED
        case "drained":
            example.end, example.core_seconds = "drained", 8.25
        case "unfinished":
            example.trials = example.trials[:-1]
        case "other core time":
            example.core_seconds = 7.0
        case "no ranks":
            example.ranks = example.ranks[:0]
    file = written(example, tmp_path)
    verdict = judge(file)
    with h5py.File(file) as result:
        stored = dict(result.attrs)
    # Nobody finds a verdict in the file that is not the judge's.
    assert "I12" not in verdict.reason_ids and "V21" not in verdict.reason_ids
    for name, value in verdict.attributes().items():
        assert stored[name] == value or (math.isnan(value) and math.isnan(stored[name])), name
    assert verdict.valid == (kind in ("valid", "failed", "rejected", "drained", "unfinished"))
    assert set(verdict.reason_ids) == {"other core time": {"V02"}, "no ranks": {"V11", "V13"}}.get(
        kind, set()
    )
    if kind == "failed":
        assert verdict.trials_failed == 1


#: What finds a changed value of each column once the content hash is made to fit. Columns without an entry
#: bear on no score: descriptions, losses, how the phases share a rank's time, counts of messages.
FINDS = {
    "trials": {
        "trial_id": "I02",
        "parent_id": "I05",
        "replica": "V12",
        "round": "I13",
        "batch_per_device": "V11",
        "batch_global": "I09",
        "kernel_size": "I05",
        "epochs": "I10",
        "epochs_max": "I13",
        "patience": "I13",
        "seed": "V16",
        "lr": "I13",
        "arch_hash": "I05",
        "group": "I05",
        "arch_json": "I05",
        "morphs": "I05",
        "status": "I03",
        "train_ops_per_image": "I07",
        "val_ops_per_image": "I07",
        "opcount_methods": "I07",
        "jaxpr_ops": "V06",
        "train_samples": "V05",
        "val_samples": "V05",
        "ops": "V05",
        "ops_f64": "V05",
        "ops_credited": "V05",
        "ops_credited_f64": "V05",
        "precision": "V10",
        "t_start": "V12",
        "t_end": "V12",
        "t_first_step": "V12",
        "micro_batch": "I09",
        "accumulation": "I09",
        "best_error": "I10",
        "morph_max_abs_diff": "V08",
    },
    "epochs": {
        "trial_id": "I02",
        "epoch": "I02",
        "steps": "I09",
        "t_end": "V12",
        "train_samples": "I09",
        "val_samples": "I09",
        "ops": "V05",
        "ops_credited": "V05",
        "lr": "I13",
        "val_error": "I10",
        "partial": "I09",
    },
    "score_series": {
        "t": "I08",
        "cumulative_ops": "I08",
        "cumulative_ops_f64": "I08",
        "rate": "I08",
        "best_error": "I08",
        "regulated": "I08",
    },
    "ranks": {
        "rank": "V11",
        "role": "V11",
        "wall_seconds": "V13",
        "seconds_init": "V13",
        "seconds_idle": "V13",
        "hostname": "I12",
        "device": "V11",
        "device_uuid": "V11",
    },
    "messages": {"kind": "I11", "channel": "I11"},
    "samples": {"t": "I17", "node": "I17", "window": "I17", "power_watts": "I17", "energy_joules": "I17"},
}

#: The same of attributes and documents.
ATTRIBUTE_FINDS = {
    "schema": "I01",
    "schema_version": "I01",
    "class": "V01",
    "division": "V01",
    "end": "I03",
    "complete": "V21",
    "valid": "I12",
    "invalid_reasons": "I12",
    "score_ops": "I12",
    "score_regulated": "I12",
    "trial_rate_ops": "I12",
    "unscored_rate_ops": "I12",
    "peak_ops": "I12",
    "peak_source": "I12",
    "mfu": "I12",
    "total_ops": "V05",
    "best_error": "I08",
    "best_trial": "I08",
    "error_final_trial": "I08",
    "core_start_utc": "I03",
    "core_stop_utc": "V02",
    "core_seconds": "I08",
    "time_limit": "V01",
    "tick": "I08",
    "seed": "V01",
    "precision": "V01",
    "dataset": "V01",
    "train_images": "V01",
    "val_images": "V01",
    "base_json": "V01",
    "n_ranks": "V11",
    "n_nodes": "V11",
    "n_replicas": "V11",
    "n_devices": "V11",
    "n_generators": "V11",
    "energy_joules": "I12",
    "energy_level": "I12",
    "ops_per_watt": "I12",
    "n_trials": "I01",
    "n_epochs": "I01",
    "opcount_method": "I07",
    "config_sha256": "V01",
    **{document: "I01" for document in DOCUMENTS},
    "config/resolved_toml": "V01",
}


@pytest.mark.parametrize(
    ("table", "column"), [(table.name, column) for table in TABLES.values() for column in table.names]
)
def test_a_changed_value_is_found(path: Path, tmp_path: Path, table: str, column: str) -> None:
    # With a hash that fits it must be found by what it means, if it means anything for the score; the hash
    # itself finds every bit (test_corruption.py).
    verdict = changed(path, tmp_path, lambda file: altered(file, table, column))
    expected = FINDS[table].get(column)
    assert verdict.valid == (expected is None), verdict.reasons
    assert expected is None or expected in verdict.reason_ids


@pytest.mark.parametrize("name", [*(attribute.name for attribute in ATTRIBUTES), *DOCUMENTS])
def test_a_changed_attribute_or_document_is_found(path: Path, tmp_path: Path, name: str) -> None:
    def change(file: h5py.File) -> None:
        if name in DOCUMENTS:
            file[name][()] = "x"
            return
        value = file.attrs[name]
        if isinstance(value, str):
            new: object = "x"
        elif value.dtype.kind == "f":
            new = 0.125 if np.isnan(value) else value * 1.25 + 0.125
        else:
            new = 1 - value if value.dtype == np.uint8 else value + 1
        resultfile.set_attributes(file, {name: new})

    assert "V21" in changed(path, tmp_path, change, rehash=False).reason_ids
    if name == "content_sha256":
        return
    verdict, expected = changed(path, tmp_path, change), ATTRIBUTE_FINDS.get(name)
    assert verdict.valid == (expected is None), verdict.reasons
    assert expected is None or expected in verdict.reason_ids


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
@pytest.mark.parametrize(
    ("table", "column", "finds"),
    [
        ("trials", "t_start", "V04 V12"),
        ("trials", "t_end", "V04 V12"),
        ("trials", "best_error", "I10"),
        ("trials", "lr", "I13"),
        ("trials", "ops_f64", "V05"),
        ("trials", "ops_credited_f64", "V05"),
        ("epochs", "t_start", "V04 V12"),
        ("epochs", "t_end", "V04 V12"),
        ("epochs", "lr", "I13"),
        ("epochs", "val_error", "I09 I10"),
        ("score_series", "t", "I08"),
        ("score_series", "rate", "I08"),
        ("ranks", "wall_seconds", "V13"),
        ("ranks", "seconds_train", "V13"),
        ("ranks", "clock_uncertainty", "V12"),
        ("samples", "t", "I17"),
        ("samples", "cpu_percent", "I17"),
        ("samples", "memory_bytes", "I17"),
        ("samples", "power_watts", "I17"),
        ("samples", "energy_joules", "I17"),
        ("samples", "sample_seconds", "I17"),
    ],
)
def test_no_number_that_is_none_passes(
    path: Path, tmp_path: Path, table: str, column: str, value: float, finds: str
) -> None:
    def change(file: h5py.File) -> None:
        file[table][column][2] = value

    assert set(finds.split()) & set(changed(path, tmp_path, change).reason_ids)


@pytest.mark.parametrize("column", ["train_loss", "val_loss"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_epoch_that_counts_has_finite_losses(
    path: Path, tmp_path: Path, column: str, value: float
) -> None:
    def change(file: h5py.File) -> None:
        file["epochs"][column][2] = value

    assert changed(path, tmp_path, change).reason_ids == ("V04", "I12")


def test_losses_of_a_failed_trial_may_be_no_numbers(tmp_path: Path) -> None:
    example = example_run()
    example.trials["status"][example.trial(4)] = FAILED
    last = np.flatnonzero(example.epochs["trial_id"] == 4)[-1]
    example.epochs["train_loss"][last] = np.nan
    verdict = judge(written(example, tmp_path))
    assert verdict.valid, verdict.reasons


@pytest.mark.parametrize(
    ("difference", "valid"),
    [
        (0.0, True),
        (3e-7, True),
        (1e-4, True),
        (1.01e-4, False),
        (-1e-7, False),
        (math.inf, False),
        (math.nan, False),
    ],
)
def test_children_that_inherit_weights_compute_their_parents_function(
    difference: float, valid: bool, tmp_path: Path
) -> None:
    example = example_run(sets=("model.initial_weight='inherit'",))
    assert [candidate.parent_id < 0 for candidate in example.candidates] == [True] + [False] * 5
    example.trials["morph_max_abs_diff"][1:] = 2e-7
    example.trials["morph_max_abs_diff"][3] = difference
    verdict = judge(written(example, tmp_path))
    assert verdict.valid is valid, verdict.reasons
    assert verdict.division == "open"
    assert set(verdict.reason_ids) == (set() if valid else {"V08"})


def test_only_what_inherits_has_a_difference_to_its_parent(tmp_path: Path) -> None:
    example = example_run(sets=("model.initial_weight='inherit'",))
    example.trials["morph_max_abs_diff"] = 2e-7
    initial = judge(written(example, tmp_path))
    assert not initial.valid and "initial architecture" in str(initial.reasons)
    example = example_run()
    example.trials["morph_max_abs_diff"][2] = 2e-7
    he = judge(written(example, tmp_path))
    assert not he.valid and "inherits no weights" in str(he.reasons)

    # A child whose difference is too large failed for it before it was trained, which costs only itself.
    example = example_run(sets=("model.initial_weight='inherit'",))
    example.trials["morph_max_abs_diff"][1:] = 2e-7
    row = example.trial(4)
    example.epochs = example.epochs[example.epochs["trial_id"] != 4]
    for name in ("epochs", "train_samples", "val_samples"):
        example.trials[name][row] = 0
    example.trials["best_error"][row] = np.nan
    example.trials["status"][row], example.trials["morph_max_abs_diff"][row] = FAILED, 0.5
    assert judge(written(example, tmp_path)).valid


@pytest.mark.parametrize("part", [pytest.param(i, marks=[pytest.mark.full] if i else []) for i in range(4)])
def test_missing_parts_are_reasons_and_no_exceptions(path: Path, tmp_path: Path, part: int) -> None:
    """Each table, and a quarter of the columns by default, all of them with --full."""
    for table in TABLES.values():
        verdict = changed(path, tmp_path, lambda file, name=table.name: file.pop(name))  # type: ignore[misc]
        assert "I01" in verdict.reason_ids, table.name
        for column in table.names[part::4]:

            def change(file: h5py.File, place: str = f"{table.name}/{column}") -> None:
                del file[place]

            assert "I01" in changed(path, tmp_path, change).reason_ids, column


def test_an_epoch_with_steps_takes_time(path: Path, tmp_path: Path) -> None:
    def change(file: h5py.File) -> None:
        file["epochs/t_end"][3] = file["epochs/t_start"][3]

    assert ("V12", "/epochs row 3: has steps, but takes no time") in [
        (reason.id, reason.text) for reason in changed(path, tmp_path, change).reasons
    ]


def test_damaged_values_are_reasons_and_no_exceptions(path: Path, tmp_path: Path) -> None:
    def change(file: h5py.File) -> None:
        trials = file["trials"]
        trials["morphs"][0], trials["morphs"][1] = "[", '[{"op":"wider"}]'
        trials["morphs"][2], trials["arch_json"][3] = "[[[" * 5000, "{}"
        trials["parent_id"][4] = trials["trial_id"][4]
        trials["ops"][5] = "many"
        trials["batch_global"][:] = 0
        file["epochs/epoch"][0] = -5
        resultfile.set_attributes(
            file, {"core_seconds": math.nan, "tick": 0.0, "n_ranks": -1, "n_replicas": 2**31 - 1}
        )

    verdict = changed(path, tmp_path, change)
    assert not verdict.valid and {"I02", "I04", "I05", "I08", "V05"} <= set(verdict.reason_ids)
    assert all("\n" not in reason.text for reason in verdict.reasons)


@pytest.mark.parametrize("name", ["base_json", *DOCUMENTS])
def test_brackets_beyond_the_stack_are_a_reason_and_no_exception(
    path: Path, tmp_path: Path, name: str
) -> None:
    def change(file: h5py.File) -> None:
        if name == "base_json":
            # HDF5 keeps no attribute of 64 KiB and more.
            resultfile.set_attributes(file, {name: "[" * 60_000})
        else:
            file[name][()] = "[" * 100_000

    assert not changed(path, tmp_path, change).valid
    text_report(tmp_path / "changed.h5")


def test_a_huge_initial_network_does_not_keep_the_judge_busy(path: Path, tmp_path: Path) -> None:
    def change(file: h5py.File) -> None:
        data = json.loads(file.attrs["base_json"])
        data["base"]["blocks"] = [10**12]
        resultfile.set_attributes(file, {"base_json": json.dumps(data)})

    assert "I05" in changed(path, tmp_path, change).reason_ids


@pytest.mark.parametrize("seed", range(20))
def test_random_damage_is_a_verdict_or_no_result(path: Path, tmp_path: Path, seed: int) -> None:
    # 1 to 200 random bytes of a valid file: never an exception, and never valid if any content changed.
    rng = np.random.default_rng(seed)
    data = bytearray(path.read_bytes())
    for place in rng.integers(0, len(data), int(rng.integers(1, 200))):
        data[place] ^= int(rng.integers(1, 256))
    (tmp_path / "damaged.h5").write_bytes(data)
    try:
        verdict = judge(tmp_path / "damaged.h5")
    except NotAResult as error:
        assert "\n" not in str(error)
        return
    with resultfile.open_file(path) as whole, resultfile.open_file(tmp_path / "damaged.h5") as damaged:
        same = resultfile.load(whole).content_sha256 == resultfile.load(damaged).content_sha256
    assert same or not verdict.valid


def test_random_bytes_are_no_result(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(np.random.default_rng(0).bytes(1000))
    with pytest.raises(NotAResult) as caught:
        judge(tmp_path / "file")
    assert isinstance(caught.value, ValueError) and "\n" not in str(caught.value)


def test_candidates_of_the_example_are_real() -> None:
    example = example_run()
    made: dict[int, Candidate] = {}
    for candidate in example.candidates:
        parent = made[candidate.parent_id].architecture if made else candidate.architecture
        record = example.records[example.slots.index(candidate.trial_id)]
        made[candidate.trial_id] = Candidate.from_record(record, parent, candidate.trial_id)
    assert len(made) == 6


def test_a_replaced_candidate_is_dropped_and_its_key_free(tmp_path: Path) -> None:
    # Replaced while it waited, proposed again later, and trained then: one ticket, one key, one training.
    example = example_run()
    trained = example.candidates[-1]
    proposed = trained.to_record(0.5)
    example.slots += [30, 31]
    example.records += [
        proposed,
        rejection(proposed, 30, 1.0, f"stale: replaced by {trained.trial_id}", DROPPED),
    ]
    verdict = judge(written(example, tmp_path))
    assert verdict.valid, verdict

    with h5py.File(tmp_path / "result.h5") as file:
        assert file["trials/status"].asstr()[-1] == "dropped"
        assert file["trials/cause"].asstr()[-1].startswith("stale")
        keys = list(zip(file["trials/arch_hash"][...], file["trials/batch_global"][...], strict=True))
        assert keys.count(keys[-1]) == 2
