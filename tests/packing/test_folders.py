# SPDX-License-Identifier: Apache-2.0
"""Trees of folders: their names, what is in them that is not a picture, and labels in a file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aiperf_mpi.config import ConfigError
from aiperf_mpi.files import FileError
from aiperf_mpi.packing.source import SourceError, open_source
from aiperf_mpi.packing.sources.pictures import MOST_BYTES
from tests.helpers import sources
from tests.helpers.sources import HOSTILE, SYNSETS, Sample


@pytest.mark.parametrize("train, val", [("Train", "validation"), ("TRAINING", "Valid"), ("train", "test")])
def test_names_of_the_folders(train: str, val: str, tmp_path: Path) -> None:
    source = open_source(sources.as_folders(tmp_path, sources.samples(), train, val))
    assert len(source.pictures["val"]) == 8 and source.description == {"train": train, "val": val}


def test_val_is_taken_before_test(tmp_path: Path) -> None:
    sources.as_folders(tmp_path, sources.samples())
    sources.write(tmp_path / "test" / SYNSETS[0] / "secret.JPEG", sources.jpeg(1))
    assert open_source(tmp_path).description["val"] == "val"


@pytest.mark.parametrize("kept", ["train", "val"])
def test_a_half_is_refused(kept: str, tmp_path: Path) -> None:
    made = sources.of_split(sources.samples(), kept)
    with pytest.raises(ConfigError, match=f"SRC: .*: has no pictures in a known form: it has {kept}; name"):
        open_source(sources.as_folders(tmp_path, made))


def test_a_packed_set_is_no_source(tmp_path: Path) -> None:
    for name in ("manifest.json", "train-00000.h5"):
        sources.write(tmp_path / name, b"")
    with pytest.raises(
        ConfigError, match=f"is a packed set already; train with --set data.path={tmp_path}, or"
    ):
        open_source(tmp_path)


def test_an_empty_folder_and_a_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="it has nothing; name the folder"):
        open_source(tmp_path)
    sources.write(tmp_path / "file.tar", b"")
    with pytest.raises(ConfigError, match=r"file\.tar: a file, not a folder; name the folder"):
        open_source(tmp_path / "file.tar")


def test_members_that_are_not_pictures_are_listed(tmp_path: Path) -> None:
    sources.as_folders(tmp_path, sources.samples())
    sources.hostile_members(tmp_path / "train" / SYNSETS[0])
    sources.write(tmp_path / "train" / "stray.JPEG", sources.jpeg(1))
    source = open_source(tmp_path)

    reasons = {one.name: one.reason for one in source.rejected}
    assert set(reasons) == {"stray.JPEG", *(f"{SYNSETS[0]}/{name}" for name in HOSTILE)}
    for name, part in HOSTILE.items():
        assert part in reasons[f"{SYNSETS[0]}/{name}"], name
    assert reasons["stray.JPEG"] == "is not in the folder of a class"
    assert {one.split for one in source.rejected} == {"train"}
    # No reason has a path of this host: the manifest is the same wherever it is made.
    assert not any("/" in one.reason for one in source.rejected)
    assert len(source.pictures["train"]) == 12 and source.description["hidden files left out"] == "2"
    assert any("2 hidden members left out" in note for note in source.notes)


def test_names_that_cannot_be_printed(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path / "train" / "a")
    sources.as_folders(tmp_path, [Sample("train", "a", "1.png", b"1"), Sample("val", "a", "1.png", b"2")])
    names = [b"new\nline.png", b"not\xffutf8.png", b"new\\nline.png", "schön 図.png".encode(), b"%s.png"]
    for number, name in enumerate(names):
        with open(os.path.join(folder, name), "wb") as file:
            file.write(b"%d" % number)
    pictures = {one.name: one.read() for one in open_source(tmp_path).pictures["train"]}
    assert pictures == {
        "a/1.png": b"1",
        "a/new\\nline.png": b"0",
        "a/not\\udcffutf8.png": b"1",
        "a/new\\\\nline.png": b"2",
        "a/schön 図.png": b"3",
        "a/%s.png": b"4",
    }


def test_pictures_in_deeper_folders_and_behind_links(tmp_path: Path) -> None:
    place = tmp_path / "src"
    sources.as_folders(place, sources.samples())
    sources.write(place / "train" / SYNSETS[1] / "more" / "deep" / "x.JPEG", b"deep")
    sources.write(tmp_path / "elsewhere" / "y.JPEG", b"linked")
    (place / "train" / SYNSETS[1] / "link").symlink_to(tmp_path / "elsewhere")
    (place / "train" / SYNSETS[1] / "z.JPEG").symlink_to(tmp_path / "elsewhere" / "y.JPEG")
    read = {one.name: one.read() for one in open_source(place).pictures["train"]}
    assert len(read) == 15
    assert read[f"{SYNSETS[1]}/more/deep/x.JPEG"] == b"deep"
    assert read[f"{SYNSETS[1]}/link/y.JPEG"] == read[f"{SYNSETS[1]}/z.JPEG"] == b"linked"


def test_a_name_without_an_ending_is_judged_by_its_content(tmp_path: Path) -> None:
    made = sources.samples()
    sources.as_folders(tmp_path, [*made, Sample("train", SYNSETS[0], "picture", sources.jpeg(1))])
    assert f"{SYNSETS[0]}/picture" in [one.name for one in open_source(tmp_path).pictures["train"]]


def test_what_cannot_be_read_says_why(tmp_path: Path) -> None:
    sources.as_folders(tmp_path, sources.samples())
    folder = tmp_path / "train" / SYNSETS[0]
    (folder / "a_empty.JPEG").touch()
    with open(folder / "a_huge.JPEG", "wb") as file:
        file.truncate(MOST_BYTES + 1)
    sources.write(folder / "a_gone.JPEG", b"x")
    pictures = {one.name.rpartition("/")[2]: one for one in open_source(tmp_path).pictures["train"]}
    with pytest.raises(SourceError, match="^has no bytes$"):
        pictures["a_empty.JPEG"].read()
    with pytest.raises(SourceError, match="^has more than 134217728 bytes, the most that is read$"):
        pictures["a_huge.JPEG"].read()
    (folder / "a_gone.JPEG").unlink()
    with pytest.raises(FileError, match="there is no such file"):
        pictures["a_gone.JPEG"].read()


@pytest.mark.parametrize("form", ["cls-loc", "folders"])
def test_a_folder_with_the_name_of_a_picture_is_no_class(form: str, tmp_path: Path) -> None:
    sources.FORMS[form](tmp_path, sources.samples())
    root = tmp_path / ("ILSVRC/Data/CLS-LOC" if form == "cls-loc" else "")
    for split in ("train", "val"):
        sources.write(root / split / "folder.JPEG" / "inside.JPEG", sources.jpeg(1))
    source = open_source(tmp_path)
    assert source.classes == SYNSETS and len(source.pictures["val"]) == 8
    assert [(one.split, one.name, one.reason) for one in source.rejected] == [
        (split, "folder.JPEG", "is a folder with the name of a picture") for split in ("train", "val")
    ]


@contextmanager
def ordinary_user() -> Iterator[None]:
    """Give up root's rights for a while, if the tests have them."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_closed_files_and_folders() -> None:
    made = sources.samples()
    # Other users may not enter pytest's folders.
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        sources.as_folders(root, made)
        (root / "train" / made[0].name).chmod(0)
        with ordinary_user(), pytest.raises(SourceError, match="^may not be read by this user$"):
            next(one for one in open_source(root).pictures["train"] if one.name == made[0].name).read()
        (root / "val" / SYNSETS[1]).chmod(0)
        try:
            with ordinary_user(), pytest.raises(ConfigError, match=f"SRC: .*{SYNSETS[1]}: .*permission"):
                open_source(root)
        finally:
            (root / "val" / SYNSETS[1]).chmod(0o755)


def test_classes_of_one_split_alone_are_said(tmp_path: Path) -> None:
    made = [*sources.samples(), Sample("val", "n00000001", "x.JPEG", sources.jpeg(1))]
    sources.as_folders(tmp_path, made)
    (tmp_path / "train" / "n99999999").mkdir()
    source = open_source(tmp_path)
    assert source.classes == ("n00000001", *SYNSETS, "n99999999")
    assert list(source.notes) == [
        "2 classes have no pictures for train: n00000001, n99999999",
        "1 class has no pictures for val: n99999999",
    ]


def test_cls_loc_is_found_from_each_of_its_folders(tmp_path: Path) -> None:
    sources.as_cls_loc(tmp_path, sources.samples())
    for place in ("", "ILSVRC", "ILSVRC/Data", "ILSVRC/Data/CLS-LOC"):
        source = open_source(tmp_path / place)
        assert source.form == "cls-loc" and len(source.pictures["val"]) == 8
        assert source.description["labels of val"] == "LOC_val_solution.csv"


@pytest.mark.parametrize("place", ["", "Data", "ILSVRC/Data"])
def test_labels_above_the_layout_are_of_something_else(place: str, tmp_path: Path) -> None:
    sources.as_cls_loc(tmp_path / "made", sources.samples())
    root = tmp_path / "data" / place / "CLS-LOC"
    root.parent.mkdir(parents=True)
    (tmp_path / "made/ILSVRC/Data/CLS-LOC").rename(root)
    (tmp_path / "made/LOC_val_solution.csv").rename(tmp_path / "val.csv")
    for folder in (tmp_path / "data", root):
        with pytest.raises(ConfigError, match="has validation pictures, but no labels for them"):
            open_source(folder)


def test_a_validation_picture_without_a_label_is_rejected(tmp_path: Path) -> None:
    sources.as_cls_loc(tmp_path, sources.samples())
    sources.write(tmp_path / "ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_00000009.JPEG", sources.jpeg(1))
    [rejected] = open_source(tmp_path).rejected
    assert rejected.name == "ILSVRC2012_val_00000009.JPEG"
    assert rejected.reason == "has no label in LOC_val_solution.csv"


def test_a_split_without_pictures_says_the_first_reason(tmp_path: Path) -> None:
    sources.as_cls_loc(tmp_path, sources.samples())
    (tmp_path / "LOC_val_solution.csv").write_text("ImageId,PredictionString\nother,n01440764 1 2 3 4\n")
    with pytest.raises(ConfigError, match="for val: 8 members rejected, the first: ILSVRC2012_val_0"):
        open_source(tmp_path)
