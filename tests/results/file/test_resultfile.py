# SPDX-License-Identifier: Apache-2.0
"""The result file: layout rules, foreign readers, whole or absent."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from aiperf_mpi import hdf5
from aiperf_mpi.results.file import resultfile
from aiperf_mpi.results.file.resultfile import NotAResult
from aiperf_mpi.results.file.schema import ATTRIBUTES, DOCUMENTS, DTYPES, TABLES
from aiperf_mpi.results.file.tables import build
from aiperf_mpi.results.output import process
from tests.helpers.results.example_run import example_run


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished result."""
    file = tmp_path_factory.mktemp("result") / "result.h5"
    hdf5.write(file, process.final_image(example_run().run()))
    return file


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of a run that just began: all tables are empty."""
    example = example_run()
    example.slots, example.records = [], []
    example.epochs, example.trials, example.ranks = example.epochs[:0], example.trials[:0], example.ranks[:0]
    example.final = None
    file = tmp_path_factory.mktemp("result") / "empty.h5"
    hdf5.write(file, process.final_image(example.run(stopped=False)))
    return file


def test_columns_are_those_of_the_schema_with_units_and_scales(path: Path) -> None:
    with h5py.File(path) as file:
        assert set(file) == {*TABLES, "config", "data", "system"}
        for name, table in TABLES.items():
            group = file[name]
            assert list(group) == [*dict.fromkeys((table.scale, *table.names))], (
                "columns in the schema's order"
            )
            scale = group[table.scale]
            assert scale.is_scale and scale.attrs["NAME"] == table.scale.encode()
            for column in table.columns:
                dataset = group[column.name]
                assert dataset.ndim == 1 and dataset.shape == scale.shape
                assert dataset.attrs.get("units", "") == column.units
                assert dataset.attrs["description"] == column.description
                if column.name != table.scale:
                    assert dataset.dims[0][0] == scale
                if column.dtype == "str":
                    info = h5py.check_string_dtype(dataset.dtype)
                    assert info.length is None and info.encoding == "utf-8"
                else:
                    assert dataset.dtype == np.dtype(DTYPES[column.dtype])


def test_no_column_of_schema_1_0_may_go() -> None:
    of_1_0 = {
        "trials": "trial_id parent_id replica round batch_per_device batch_global kernel_size epochs "
        "epochs_max "
        "patience seed lr arch_hash group arch_json morphs status cause precision train_ops_per_image "
        "val_ops_per_image train_samples val_samples ops ops_credited ops_f64 ops_credited_f64 t_start t_end "
        "best_error predicted_error morph_max_abs_diff opcount_methods resumed "
        "t_first_step trace_seconds compile_seconds micro_batch accumulation jaxpr_ops xla_ops xla_model_ops",
        "epochs": "trial_id epoch steps t_start t_end train_samples val_samples ops ops_credited lr "
        "train_loss "
        "val_loss val_error partial",
        "score_series": "t cumulative_ops cumulative_ops_f64 rate best_error regulated",
        "ranks": "rank node replica local_rank role hostname device wall_seconds seconds_init seconds_data "
        "seconds_search seconds_compile seconds_train seconds_validate seconds_communicate seconds_io "
        "seconds_idle "
        "device_uuid cpus numa clock_offset clock_uncertainty",
    }
    for table, names in of_1_0.items():
        assert set(names.split()) <= set(TABLES[table].names)


def test_rules_for_foreign_readers_hold_everywhere(path: Path) -> None:
    with h5py.File(path) as file:
        units = [column.units for table in TABLES.values() for column in table.columns]
        units += [attribute.units for attribute in ATTRIBUTES]
        assert not any("since" in unit for unit in units), "xarray takes `s since ...` for a date"
        assert {attribute.name for attribute in ATTRIBUTES} == set(file.attrs)
        for attribute in ATTRIBUTES:
            value = file.attrs[attribute.name]
            assert (
                isinstance(value, str) if attribute.dtype == "str" else value.dtype == DTYPES[attribute.dtype]
            )
        assert file.attrs["complete"].dtype == np.uint8
        for document in DOCUMENTS:
            assert isinstance(file[document].asstr()[()], str)


@pytest.mark.parametrize("which", ["path", "empty"])
def test_pandas_reads_every_table(which: str, request: pytest.FixtureRequest) -> None:
    with h5py.File(request.getfixturevalue(which)) as file:
        for name, table in TABLES.items():
            frame = pd.DataFrame({key: values[...] for key, values in file[name].items()})
            assert set(table.names) <= set(frame.columns)
    if which == "path":
        assert len(frame) > 0


@pytest.mark.parametrize("engine", ["h5netcdf", "netcdf4"])
@pytest.mark.parametrize("which", ["path", "empty"])
def test_xarray_reads_every_table(which: str, engine: str, request: pytest.FixtureRequest) -> None:
    file = request.getfixturevalue(which)
    for name, table in TABLES.items():
        with xr.open_dataset(file, group=name, engine=engine) as data:
            assert set(data.sizes) == {table.scale}
            assert set(table.names) <= set(data.variables)
            frame = data.to_dataframe().reset_index()
            if which == "path":
                assert len(frame) > 0
                expected = h5py.File(file)[name][table.names[0]]
                values = expected.asstr()[...] if table.columns[0].dtype == "str" else expected[...]
                assert frame[table.names[0]].tolist() == values.tolist()
    with xr.open_dataset(file, engine=engine) as root:
        assert root.attrs["schema"] == "aiperf_mpi.result"


@pytest.mark.skipif(shutil.which("h5dump") is None, reason="h5dump is not installed")
@pytest.mark.parametrize("which", ["path", "empty"])
def test_h5dump_reads_the_whole_file(which: str, request: pytest.FixtureRequest) -> None:
    done = subprocess.run(["h5dump", request.getfixturevalue(which)], capture_output=True, text=True)
    assert done.returncode == 0 and "error" not in done.stderr
    for name in TABLES:
        assert f'GROUP "{name}"' in done.stdout
    assert 'ATTRIBUTE "content_sha256"' in done.stdout and 'DATASET "ops_credited"' in done.stdout


def test_what_was_written_is_read_back(path: Path) -> None:
    content = build(example_run().run())
    with resultfile.open_file(path) as file:
        result = resultfile.load(file)
    assert result.problems == [] and result.documents == content.documents
    for name, columns in content.tables.items():
        for column, values in columns.items():
            assert np.array_equal(values, result.tables[name][column], equal_nan=values.dtype.kind == "f")
    assert result.attributes["content_sha256"] == result.content_sha256 != ""
    assert (result.attributes["complete"], result.attributes["valid"]) == (1, 1)


def test_columns_of_different_lengths_are_not_written() -> None:
    content = build(example_run().run())
    content.tables["epochs"]["lr"] = content.tables["epochs"]["lr"][:-1]
    with pytest.raises(ValueError, match="/epochs/lr has 17 rows, but the table 18"):
        resultfile.new_file(content)


def test_the_content_hash_covers_values_names_and_attributes(path: Path, tmp_path: Path) -> None:
    def digest(change: str) -> str:
        copy = tmp_path / "copy.h5"
        shutil.copy(path, copy)
        with h5py.File(copy, "r+") as file:
            match change:
                case "value":
                    file["epochs/train_loss"][0] += 1e-9
                case "text":
                    file["trials/cause"][0] = "x"
                case "attribute":
                    file["trials/lr"].attrs["units"] = "s"
                case "name":
                    file.move("ranks/hostname", "ranks/host")
                case "dataset":
                    del file["system/inventory_json"]
                case "more":
                    file["more"] = 1
                case "complete":
                    file.attrs["complete"] = np.uint8(0)
            return resultfile.content_hash(file)

    whole = digest("nothing")
    changed = [digest(change) for change in ("value", "text", "attribute", "name", "dataset", "more")]
    assert len({whole, *changed}) == 7
    assert digest("complete") == whole


def test_a_result_is_whole_or_absent(tmp_path: Path) -> None:
    # Under a file-size limit the new file does not fit; the old one stays as it was and nothing else is left.
    target = tmp_path / "result.h5"
    hdf5.write(target, b"old")
    script = (
        "import sys\nfrom pathlib import Path\nfrom aiperf_mpi import hdf5\n"
        "try: hdf5.write(Path(sys.argv[1]), b'x' * 100_000)\n"
        "except OSError as error: print(error.strerror)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, target],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
    )
    assert done.stdout == "File too large\n"
    assert target.read_bytes() == b"old" and os.listdir(tmp_path) == ["result.h5"]
    hdf5.write(target, b"new")
    assert target.read_bytes() == b"new" and os.listdir(tmp_path) == ["result.h5"]


def test_what_is_no_result_is_refused_in_one_line(path: Path, tmp_path: Path) -> None:
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    files = {
        "empty": b"",
        "text": b"AIPERF_MPI status: VALID\n",
        "random": rng.bytes(5000),
        "signature": b"\x89HDF\r\n\x1a\n" + rng.bytes(5000),
        "truncated": data[: len(data) // 2],
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with h5py.File(tmp_path / "other", "w") as file:
        file["x"] = 1
    for name in (*files, "other", "missing"):
        with pytest.raises(NotAResult) as caught:
            resultfile.open_file(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


def test_wrong_forms_are_named(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.h5"
    shutil.copy(path, copy)
    with h5py.File(copy, "r+") as file:
        for name, data in (
            ("trials/round", np.zeros(6, "f4")),
            ("trials/status", np.zeros(6)),
            ("trials/lr", np.zeros((6, 1))),
            ("epochs/steps", np.zeros(3, "<i4")),
        ):
            del file[name]
            file[name] = data
        del file["ranks/role"]
        file.create_group("ranks/role")
        del file["score_series/t"], file.attrs["seed"]
        file.attrs["tick"] = "2.0"
    with resultfile.open_file(copy) as file:
        problems = "\n".join(resultfile.load(file).problems)
    for text in (
        "/trials/round is float32, but must be i4",
        "/trials/status is float64, but must be strings",
        "/trials/lr has 2 dimensions",
        "/epochs has columns of different lengths: [3, 18]",
        "/ranks/role is not a dataset",
        "/score_series/t cannot be read",
        "attribute seed cannot be read",
        "attribute tick is str, but must be f8",
    ):
        assert text in problems
