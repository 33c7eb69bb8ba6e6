# SPDX-License-Identifier: Apache-2.0
"""Disguised HDF5 files, made with knowledge of the format and with hashes that fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from aiperf_mpi.__main__ import main
from aiperf_mpi.results.file import resultfile
from aiperf_mpi.results.file.schema import ATTRIBUTES, DOCUMENTS, TABLES
from aiperf_mpi.results.judge import judge
from aiperf_mpi.results.judge.judge import NotAResult
from tests.helpers.results.changes import changed

# Each test writes and judges a whole file.
pytestmark = pytest.mark.slow


def other_file(file: h5py.File) -> str:
    """Return a copy of `file` next to it, in which a column can change without the hash."""
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
    # 80 TB of zeros without a byte in the file: reading them would end the judge.
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
    external_group,
    external_storage,
    never_written,
    zip_bomb,
    text_bomb,
    another_root_attribute,
    another_column,
    other_units,
    rows_numbered_otherwise,
    references,
    cycle,
]
MORE = [
    external_column,
    soft_column,
    soft_scale,
    virtual,
    compressed,
    another_group,
    another_document,
    another_attribute,
    other_description,
    no_scale,
    scale_of_another_table,
    attribute_of_references,
    big_endian,
    fixed_strings,
    array_attribute,
    empty_attribute,
    dataset_in_place_of_a_group,
    group_in_place_of_a_column,
]


@pytest.mark.parametrize(
    "disguise",
    [*DISGUISES, *(pytest.param(f, marks=pytest.mark.full) for f in MORE)],
    ids=lambda function: function.__name__,
)
def test_a_file_that_is_not_what_it_seems_is_found(
    path: Path, tmp_path: Path, disguise: Callable[[h5py.File], object]
) -> None:
    # The hash of a bomb cannot be computed; the judge must not try.
    bomb = disguise in (never_written, zip_bomb, text_bomb, cycle)
    verdict = changed(path, tmp_path, disguise, rehash=not bomb)
    assert "I01" in verdict.reason_ids, verdict.reasons


def test_an_attribute_that_stands_there_twice_is_found(path: Path, tmp_path: Path) -> None:
    """HDF5 refuses to write two attributes of one name, so one is renamed in its bytes."""
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
def test_another_file_gives_one_line_and_exit_code_2(
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
            file.write_text("AIPERF_MPI score_ops: 9.900000e+99 op/s\n")
        case "other HDF5":
            with h5py.File(file, "w") as data:
                data.attrs["schema"] = "aiperf_mpi.result"
    for words in (
        ["verify"],
        ["verify", "--json"],
        ["report"],
        ["compare"],
        ["report", "--html", str(tmp_path / "o")],
    ):
        assert main([*words, str(file)]) == 2
        printed = capsys.readouterr()
        assert printed.out == "" and printed.err.count("\n") == 1 and "Traceback" not in printed.err
    assert not (tmp_path / "o").exists()


def test_not_a_result_is_a_value_error() -> None:
    assert issubclass(NotAResult, ValueError)
