# SPDX-License-Identifier: Apache-2.0
"""Attacks on the judge by somebody who knows the format, HDF5 and the program, and makes every hash fit.

Three kinds: files that are not what they seem to HDF5, text that speaks with the program's voice, and rows that are
changed together so that they agree with one another.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from aiperf_mpi.__main__ import main
from aiperf_mpi.results import judge, resultfile
from aiperf_mpi.results.judge import NotAResult, Verdict
from aiperf_mpi.results.schema import ATTRIBUTES, DOCUMENTS, FAILED, TABLES, UNFINISHED
from aiperf_mpi.search.record import OUTCOME
from tests.agreement import command
from tests.results.example_run import Example, example_run
from tests.results.test_judge import changed, written

#: A line as the verdict of the best official run of all times would have it.
LIE = "AIPERF_MPI score_ops: 9.900000e+99 op/s"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A valid result."""
    target = written(example_run(), tmp_path_factory.mktemp("result"))
    assert judge.judge(target).valid
    return target


# -- files that are not what they seem --------------------------------------------------------------------------------


def other_file(file: h5py.File) -> str:
    """A copy of `file` beside it, in which a column may change behind everybody's back."""
    name = Path(file.filename).with_name("other.h5")
    with h5py.File(name, "w") as other:
        for item in file:
            file.copy(item, other)
    return str(name)


def external_group(file: h5py.File) -> None:
    name = other_file(file)
    del file["messages"]
    file["messages"] = h5py.ExternalLink(name, "/messages")


def external_column(file: h5py.File) -> None:
    name = other_file(file)
    del file["epochs/train_loss"]
    file["epochs/train_loss"] = h5py.ExternalLink(name, "/epochs/train_loss")


def soft_column(file: h5py.File) -> None:
    file.move("epochs/train_loss", "epochs/hidden")
    file["epochs/train_loss"] = h5py.SoftLink("/epochs/hidden")


def soft_scale(file: h5py.File) -> None:
    file.move("epochs/epoch_row", "epochs/hidden")
    file["epochs/epoch_row"] = h5py.SoftLink("/epochs/hidden")


def stored_as(file: h5py.File, path: str, **how: object) -> h5py.Dataset:
    """A dataset in place of another one, with its rows and descriptions, stored in another way."""
    old = file[path]
    values, attributes = old[...], {n: old.attrs[n] for n in ("description", "units") if n in old.attrs}
    del file[path]
    new = file.create_dataset(path, values.shape, values.dtype, **how)  # type: ignore[arg-type]
    for name, text in attributes.items():
        new.attrs[name] = text
    table = TABLES[path.split("/")[0]]
    new.dims[0].attach_scale(file[f"{table.name}/{table.scale}"])
    if not how.get("external"):
        new[...] = values
    return new


def external_storage(file: h5py.File) -> None:
    size = file["epochs/train_loss"].size * 8
    raw = Path(file.filename).with_name("raw")
    raw.write_bytes(file["epochs/train_loss"][...].tobytes())
    stored_as(file, "epochs/train_loss", external=[(str(raw), 0, size)])


def virtual(file: h5py.File) -> None:
    values = file["epochs/train_loss"][...]
    layout = h5py.VirtualLayout(values.shape, values.dtype)
    layout[:] = h5py.VirtualSource(other_file(file), "epochs/train_loss", values.shape, values.dtype)
    del file["epochs/train_loss"]
    file["epochs"].create_virtual_dataset("train_loss", layout)


def compressed(file: h5py.File) -> None:
    stored_as(file, "epochs/train_loss", chunks=(4,), compression="gzip")


def never_written(file: h5py.File) -> None:
    # 80 TB of zeros that no byte of the file stands for: reading it would end the judge.
    for name in TABLES["epochs"].names:
        kind = file["epochs"][name].dtype
        del file["epochs"][name]
        file["epochs"].create_dataset(name, (10**13,), kind)


def zip_bomb(file: h5py.File) -> None:
    # 4 GB of zeros in chunks of 4 kB.
    del file["messages/sent"]
    file["messages"].create_dataset("sent", (2**29,), "<i8", chunks=(2**24,), compression="gzip")
    file["messages/sent"].id.write_direct_chunk((0,), b"\x78\x9c\x03\x00\x00\x00\x00\x01")


def text_bomb(file: h5py.File) -> None:
    # Every row points to the one string of 4 MB: 18 rows here, a million in an attack.
    causes = file["trials/cause"]
    causes[0] = "x" * 4_000_000
    file.flush()
    offset, rows = causes.id.get_offset(), causes.shape[0]
    with open(file.filename, "r+b") as raw:
        raw.seek(offset)
        first = raw.read(16)
        raw.write(first * (rows - 1))


def another_root_attribute(file: h5py.File) -> None:
    file.attrs["score_ops_official"] = 9.9e99


def another_group(file: h5py.File) -> None:
    file.create_group("score").create_dataset("score_ops", data=9.9e99)


def another_column(file: h5py.File) -> None:
    file["trials"].create_dataset("score_ops", data=np.full(6, 9.9e99))


def another_document(file: h5py.File) -> None:
    file.create_dataset("system/verdict", data="VALID")


def another_attribute(file: h5py.File) -> None:
    file["trials/ops"].attrs["score_ops"] = 9.9e99


def other_units(file: h5py.File) -> None:
    file["epochs/ops"].attrs["units"] = "kop"


def other_description(file: h5py.File) -> None:
    file["score_series"].attrs["description"] = "the score of an official run"


def rows_numbered_otherwise(file: h5py.File) -> None:
    file["epochs/epoch_row"][3] = 77


def no_scale(file: h5py.File) -> None:
    file["epochs/ops"].dims[0].detach_scale(file["epochs/epoch_row"])


def scale_of_another_table(file: h5py.File) -> None:
    file["trials/ops"].dims[0].attach_scale(file["epochs/epoch_row"])


def references(file: h5py.File) -> None:
    kind = h5py.ref_dtype
    stored = file["trials/ops"]
    rows = len(stored)
    del file["trials/ops"]
    file["trials"].create_dataset("ops", data=[file["trials"].ref] * rows, dtype=kind)


def attribute_of_references(file: h5py.File) -> None:
    file.attrs["total_ops"] = file["trials"].ref


def big_endian(file: h5py.File) -> None:
    values = file["epochs/ops"][...]
    del file["epochs/ops"]
    file["epochs"].create_dataset("ops", data=values.astype(">u8"))


def fixed_strings(file: h5py.File) -> None:
    values = file["trials/status"].asstr()[...]
    del file["trials/status"]
    file["trials"].create_dataset("status", data=np.array([v.encode() for v in values], "S16"))


def array_attribute(file: h5py.File) -> None:
    file.attrs["core_seconds"] = np.full(1000, 8.5)


def empty_attribute(file: h5py.File) -> None:
    file.attrs["core_seconds"] = h5py.Empty("f8")


def dataset_in_place_of_a_group(file: h5py.File) -> None:
    del file["messages"]
    file["messages"] = 1.0


def group_in_place_of_a_column(file: h5py.File) -> None:
    del file["epochs/ops"]
    file["epochs"].create_group("ops")


def cycle(file: h5py.File) -> None:
    del file["messages/sent"]
    file["messages/sent"] = file["/"]


#: One of each kind always, all with --full.
DISGUISES = [
    external_group, external_storage, never_written, zip_bomb, text_bomb, another_root_attribute, another_column,
    other_units, rows_numbered_otherwise, references, cycle,
]  # fmt: skip
MORE = [
    external_column, soft_column, soft_scale, virtual, compressed, another_group, another_document, another_attribute,
    other_description, no_scale, scale_of_another_table, attribute_of_references, big_endian, fixed_strings,
    array_attribute, empty_attribute, dataset_in_place_of_a_group, group_in_place_of_a_column,
]  # fmt: skip


@pytest.mark.parametrize("disguise", [*DISGUISES, *(pytest.param(f, marks=pytest.mark.full) for f in MORE)],
                         ids=lambda function: function.__name__)  # fmt: skip
def test_a_file_that_is_not_what_it_seems_is_found(
    path: Path, tmp_path: Path, disguise: Callable[[h5py.File], object]
) -> None:
    # No hash fits bombs, as nobody can compute it; the judge must not try.
    bomb = disguise in (never_written, zip_bomb, text_bomb, cycle)
    verdict = changed(path, tmp_path, disguise, rehash=not bomb)
    assert "I01" in verdict.reason_ids, verdict.reasons


def test_an_attribute_that_stands_there_twice_is_found(path: Path, tmp_path: Path) -> None:
    """HDF5 refuses to write two attributes of one name, so one is renamed behind its back, byte by byte."""
    copy = tmp_path / "twice.h5"
    with h5py.File(path) as old, h5py.File(copy, "w") as new:
        for item in old:
            old.copy(item, new)
        resultfile.set_attributes(new, {a.name: old.attrs[a.name] for a in ATTRIBUTES})
        new.attrs["score_opz"] = 9.9e99
    data = copy.read_bytes()
    assert data.count(b"score_opz\0") == 1
    copy.write_bytes(data.replace(b"score_opz\0", b"score_ops\0"))
    verdict = judge.judge(copy)
    assert "an attribute twice: 'score_ops'" in str(verdict.reasons)


@pytest.mark.parametrize("target", ["links", "random", "empty", "folder", "text", "other HDF5"])
def test_what_is_no_result_is_one_line_and_exit_code_2(
    target: str, tmp_path: Path, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    match target:
        case "links":
            # Every table is a link to a table of a valid result elsewhere.
            with h5py.File(file, "w") as data:
                for name in DOCUMENTS:
                    data[name] = h5py.ExternalLink(str(path), name)
        case "random":
            file.write_bytes(b"\x89HDF\r\n\x1a\n" + np.random.default_rng(1).bytes(5000))
        case "empty":
            file.touch()
        case "folder":
            file.mkdir()
        case "text":
            file.write_text(f"{LIE}\n")
        case "other HDF5":
            with h5py.File(file, "w") as data:
                data.attrs["schema"] = "aiperf_mpi.result"
    for words in (["verify"], ["verify", "--json"], ["report"], ["compare"], ["report", "--html", str(tmp_path / "o")]):
        assert main([*words, str(file)]) == 2
        said = capsys.readouterr()
        assert said.out == "" and said.err.count("\n") == 1 and "Traceback" not in said.err
    assert not (tmp_path / "o").exists()


# -- text that speaks with the program's voice ------------------------------------------------------------------------


def said_of(file: Path) -> tuple[int, str]:
    """The exit code of `verify`, and all that verify, report, compare and the HTML page say of a file."""
    said, code = [], -1
    page = file.with_suffix(".html")
    for words in (["verify"], ["report"], ["compare"], ["report", "--html", str(page)]):
        done = command(*words, file)
        code = done.returncode if words == ["verify"] else code
        said += [done.stdout, done.stderr]
    return code, "\n".join([*said, page.read_text(encoding="utf-8")])


def test_no_text_of_a_file_is_taken_for_a_line_of_the_verdict(path: Path, tmp_path: Path) -> None:
    """Every text in the file says a score, on a line of its own and behind an escape that wipes the screen."""
    loud = f"\x1b[2J\r\n{LIE}\u2028\u202e<script>alert(1)</script>"

    def change(file: h5py.File) -> None:
        for table in TABLES.values():
            for column in table.columns:
                if column.dtype == "str":
                    file[table.name][column.name][...] = loud
        resultfile.set_attributes(file, {a.name: loud for a in ATTRIBUTES if a.dtype == "str"})
        for name in DOCUMENTS:
            file[name][()] = loud

    assert not changed(path, tmp_path, change).valid
    code, said = said_of(tmp_path / "changed.h5")
    assert code == 3 and "INVALID" in said
    assert "AIPERF_MPI score" not in said and "\x1b" not in said and "\r" not in said and "\u202e" not in said
    assert "<script" not in (tmp_path / "changed.html").read_text(encoding="utf-8") and "Traceback" not in said
    assert not re.search(r"(?m)^AIPERF_MPI \w*(?:score_ops|trial_rate)", said)

    # The same where no check looks, so that the file stays valid: its own rate is said, and no other.
    def words(file: h5py.File) -> None:
        resultfile.set_attributes(file, {"end_cause": loud, "aiperf_mpi_version": loud})
        file["trials/cause"][...] = loud
        file["ranks/hostname"][...] = [name + loud for name in file["ranks/hostname"].asstr()[...]]
        file["ranks/device_uuid"][...] = [why + loud for why in file["ranks/device_uuid"].asstr()[...]]

    assert changed(path, tmp_path, words).valid
    code, said = said_of(tmp_path / "changed.h5")
    assert code == 0 and "AIPERF_MPI score" not in said and "\x1b" not in said
    assert len(set(re.findall(r"AIPERF_MPI trial_rate_ops: (.*)", said))) == 1


def test_no_command_says_a_score_or_rate_of_an_invalid_file(path: Path, tmp_path: Path) -> None:
    """A file that calls itself a valid official run with a score, in every attribute and in its series."""
    def change(file: h5py.File) -> None:
        values = {"class": "official", "division": "closed", "valid": 1, "invalid_reasons": "[]", "score_ops": 9.9e99,
                  "score_regulated": 9.9e99, "trial_rate_ops": 9.9e99, "unscored_rate_ops": 9.9e99}  # fmt: skip
        resultfile.set_attributes(file, values)
        for name in ("rate", "regulated", "cumulative_ops_f64"):
            file["score_series"][name][...] = 9.9e99

    assert not changed(path, tmp_path, change).valid
    code, said = said_of(tmp_path / "changed.h5")
    # The rate that the rows give is said under the name of a rate that does not count; what the file claims stands in
    # reasons only, and its series nowhere.
    assert code == 3 and "unscored_rate_ops" in said
    assert not re.search(r"AIPERF_MPI (score|trial_rate)|<dt>(score|trial_rate)|[Ss]core \(op/s\)", said)
    claims = [line for line in said.splitlines() if "9.9e+99" in line or "9.900000e+99" in line]
    assert claims and all("but the rows give" in line or "instead of" in line for line in claims), claims

    # The archive for a ranking is refused without a number.
    folder = tmp_path / "run"
    folder.mkdir()
    (tmp_path / "changed.h5").rename(folder / "result.h5")
    submit = [sys.executable, "-m", "aiperf_mpi.results.submit", str(folder), "--output", str(tmp_path / "a.tar.gz")]
    done = subprocess.run(submit, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 3 and done.stdout == "" and not (tmp_path / "a.tar.gz").exists()


# -- rows that agree with one another ---------------------------------------------------------------------------------


def judged(change: Callable[[Example], object], folder: Path) -> Verdict:
    """The verdict on what a dishonest rank reports: the writer makes every sum, series and hash of it fit."""
    example = example_run()
    change(example)
    return judge.judge(written(example, folder))


def rows_of(example: Example, trial: int) -> np.ndarray:
    return np.flatnonzero(example.epochs["trial_id"] == trial)


def samples_moved(example: Example) -> None:
    # Two steps of an epoch count in the one before it: the sum stays.
    first, second = rows_of(example, 0)[:2]
    for name, unit in (("steps", 1), ("train_samples", 64)):
        example.epochs[name][first] += 2 * unit
        example.epochs[name][second] -= 2 * unit
    example.epochs["partial"][[first, second]] = 1


def middle_epoch_cut(example: Example) -> None:
    # A quick epoch of half the steps in the middle of a trial, honestly marked as partial.
    row = rows_of(example, 0)[1]
    example.epochs["steps"][row], example.epochs["train_samples"][row] = 11, 704
    example.epochs["val_samples"][row], example.epochs["partial"][row] = 0, 1
    example.epochs["val_error"][row] = example.epochs["val_loss"][row] = np.nan
    trial = example.trial(0)
    example.trials["train_samples"][trial] -= 704
    example.trials["val_samples"][trial] -= 360


def failed_as_unfinished(example: Example) -> None:
    # A failed trial would earn nothing; as one that core stop cut short it would. Its outcome in the history is gone.
    example.trials["status"][example.trial(0)] = UNFINISHED
    example.trials["cause"][example.trial(0)] = b"core stop"
    outcome = next(i for i, r in enumerate(example.records) if r["kind"] == OUTCOME and r["trial"] == 0)
    del example.slots[outcome], example.records[outcome]


def stopped_without_patience(example: Example) -> None:
    # Its losses still fall, so its patience cannot have ended it after three epochs.
    example.trials["status"][example.trial(0)] = judge.STOPPED


def trained_beyond_its_patience(example: Example) -> None:
    # Losses that do not move end a trial after patience + 1 epochs.
    example.epochs["val_loss"][rows_of(example, 0)] = 1.0
    example.trials["patience"][:] = 1


def shifted_before_core_start(example: Example) -> None:
    own = rows_of(example, 0)
    example.epochs["t_start"][own] -= 0.2
    example.epochs["t_end"][own] -= 0.2
    example.trials["t_start"][example.trial(0)] -= 0.2


def shifted_over_a_tick(example: Example) -> None:
    # The second epoch claims to have ended before the tick at 2 s; then the third overlaps the first.
    row = rows_of(example, 0)[1]
    example.epochs["t_start"][row] = 0.5


def late_work_in_time(example: Example) -> None:
    # The epoch that core stop cut short, claimed whole within the same time, ends behind core stop.
    row = rows_of(example, 9)[-1]
    example.epochs["t_end"][row] += 0.6
    example.trials["t_end"][example.trial(9)] += 0.6
    example.core_seconds += 0.7


def two_trials_at_once(example: Example) -> None:
    example.epochs["t_start"][rows_of(example, 4)] -= 3
    example.epochs["t_end"][rows_of(example, 4)] -= 3
    for name in ("t_start", "t_end"):
        example.trials[name][example.trial(4)] -= 3


def error_of_half_an_image(example: Example) -> None:
    row = rows_of(example, 0)[2]
    example.epochs["val_error"][row] = 10.5 / 360
    example.trials["best_error"][example.trial(0)] = 10.5 / 360
    example.final = (0, 10.5 / 360)


@pytest.mark.parametrize(("lie", "finds"), [
    (samples_moved, "I09"), (middle_epoch_cut, "I18"), (failed_as_unfinished, "I18"),
    (stopped_without_patience, "I18"), (trained_beyond_its_patience, "I13"), (shifted_before_core_start, "V12"),
    (shifted_over_a_tick, "V12"), (late_work_in_time, "V02"), (two_trials_at_once, "V12"),
    (error_of_half_an_image, "I09"),
], ids=lambda value: getattr(value, "__name__", value))  # fmt: skip
def test_rows_that_agree_with_one_another_are_found(
    lie: Callable[[Example], object], finds: str, tmp_path: Path
) -> None:
    verdict = judged(lie, tmp_path)
    assert finds in verdict.reason_ids, verdict.reasons


def test_architectures_of_equal_counts_cannot_be_swapped_alone(path: Path, tmp_path: Path) -> None:
    """Every column of the network of two trials, but not their seeds: these follow from the networks."""
    def change(file: h5py.File) -> None:
        for name in ("arch_json", "arch_hash", "group", "morphs", "parent_id", "kernel_size", "train_ops_per_image",
                     "val_ops_per_image"):  # fmt: skip
            values = file["trials"][name][...]
            values[[1, 2]] = values[[2, 1]]
            file["trials"][name][...] = values

    assert "V16" in changed(path, tmp_path, change).reason_ids


def test_an_error_of_whole_images_is_left_to_the_checkpoint(tmp_path: Path) -> None:
    """One image less in every place agrees with all rows. The checkpoint does not: V03 measures it again."""
    def lie(example: Example) -> None:
        best = int(np.nanargmin(example.epochs["val_error"]))
        better = 40 / 360
        example.epochs["val_error"][best] = better
        trial = int(example.epochs["trial_id"][best])
        example.trials["best_error"][example.trial(trial)] = better

    verdict = judged(lie, tmp_path)
    found = {finding.id: finding for finding in verdict.findings}
    assert not found["V03"].passed and "was claimed in training" in str(found["V03"].wrong)


def test_a_failed_trial_cannot_be_the_best_one(tmp_path: Path) -> None:
    def lie(example: Example) -> None:
        example.trials["status"][example.trial(6)] = FAILED

    assert "I08" in judged(lie, tmp_path).reason_ids


@pytest.mark.parametrize("run_id", ["../../home", "a/b", "", "a\nb", "x" * 65])
def test_a_run_cannot_choose_its_place_in_the_archive(run_id: str, path: Path, tmp_path: Path) -> None:
    verdict = changed(path, tmp_path, lambda file: resultfile.set_attributes(file, {"run_id": run_id}))
    assert "I03" in verdict.reason_ids


def test_summary_of_an_invalid_run_has_no_score(path: Path, tmp_path: Path) -> None:
    changed(path, tmp_path, lambda file: resultfile.set_attributes(file, {"score_ops": 1e99, "valid": 1}))
    done = command("verify", "--json", tmp_path / "changed.h5")
    data = json.loads(done.stdout)
    assert done.returncode == 3 and data["status"] == "INVALID"
    assert data["score_ops"] is data["score_regulated"] is data["trial_rate_ops"] is None


def test_not_a_result_is_a_value_error() -> None:
    assert issubclass(NotAResult, ValueError)
