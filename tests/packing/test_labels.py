# SPDX-License-Identifier: Apache-2.0
"""Labels of validation pictures: ids of the devkit are not positions of sorted synsets; files of labels."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiperf_mpi.config import ConfigError
from aiperf_mpi.packing.source import Source, open_source
from tests.helpers import sources
from tests.helpers.sources import SYNSETS

DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"


def archives(root: Path) -> Path:
    """Return archives without the devkit."""
    sources.as_archives(root, sources.samples())
    (root / DEVKIT).unlink()
    return root


def label_names(source: Source) -> dict[str, str]:
    """Return the class of each validation picture, by the name of its file."""
    return {one.name.partition("/")[2]: source.classes[one.label] for one in source.pictures["val"]}


TRUE = {one.file: one.label for one in sources.samples() if one.split == "val"}
ORDERED = [TRUE[file] for file in sorted(TRUE)]


@settings(max_examples=25)
@given(st.data())
def test_ids_of_the_devkit_become_positions_of_sorted_synsets(data: st.DataObject) -> None:
    names = st.from_regex(r"\An[0-9]{8}\Z")
    classes = data.draw(st.lists(names, min_size=1, max_size=6, unique=True))
    numbers = data.draw(st.permutations(range(1, len(classes) + 1)))
    made = sources.samples(train=1, val=2, classes=classes, make=lambda seed: b"%d" % seed)
    with tempfile.TemporaryDirectory() as folder:
        ids = dict(zip(classes, numbers, strict=True))
        source = open_source(sources.as_archives(Path(folder), made, ids))
        assert source.classes == tuple(sorted(classes))
        by_name = {one.name: one for one in made}
        for split in ("train", "val"):
            for picture in source.pictures[split]:
                sample = by_name[picture.name]
                assert picture.label == sorted(classes).index(sample.label)
                assert picture.read() == sample.data


@pytest.mark.parametrize("place", ["", "data", "ILSVRC2012_devkit_t12/data"])
def test_an_unpacked_devkit(place: str, tmp_path: Path) -> None:
    archives(tmp_path)
    for name, content in sources.devkit_files(ORDERED, sources.IDS).items():
        sources.write(tmp_path / place / name, content)
    source = open_source(tmp_path)
    assert label_names(source) == TRUE
    assert source.description["labels of val"] == "ILSVRC2012_validation_ground_truth.txt"


@pytest.mark.parametrize(
    "name, text",
    [
        ("imagenet_2012_validation_synset_labels.txt", "\n".join(ORDERED)),
        ("val_labels.txt", "".join(f"{file} {label}\r\n" for file, label in reversed(TRUE.items()))),
        ("val.txt", "\ufeff" + "".join(f"val/{file}\t{label}\n\n" for file, label in TRUE.items())),
        (
            "LOC_val_solution.csv",
            "".join(f"{file[:-5]},{label} 1 2 3 4 n1 1\n" for file, label in TRUE.items()),
        ),
    ],
)
def test_files_of_labels(name: str, text: str, tmp_path: Path) -> None:
    (archives(tmp_path) / name).write_text(text, "utf-8", newline="")
    assert label_names(open_source(tmp_path)) == TRUE


@pytest.mark.parametrize("devkit", [True, False])
def test_labels_among_the_pictures_are_not_rejected(devkit: bool, tmp_path: Path) -> None:
    sources.as_cls_loc(tmp_path, sources.samples())
    val = tmp_path / "ILSVRC" / "Data" / "CLS-LOC" / "val"
    if devkit:
        for name, content in sources.devkit_files(ORDERED, sources.IDS).items():
            sources.write(val / name, content)
    else:
        (tmp_path / "LOC_val_solution.csv").rename(val / "LOC_val_solution.csv")
    sources.write(val / "notes.txt", b"x")
    source = open_source(tmp_path)
    assert label_names(source) == TRUE and [one.name for one in source.rejected] == ["notes.txt"]


@pytest.mark.parametrize("place", ["", "ILSVRC/Data/CLS-LOC/val"])
def test_the_name_of_a_file_of_labels_is_made_printable(place: str, tmp_path: Path) -> None:
    # As a program in Latin-1 would write it.
    sources.as_cls_loc(tmp_path, sources.samples())
    (tmp_path / "LOC_val_solution.csv").rename(tmp_path / place / "val \udce9.csv")
    extra = tmp_path / "ILSVRC/Data/CLS-LOC/val" / "ILSVRC2012_val_00000009.JPEG"
    sources.write(extra, sources.jpeg(1))
    source = open_source(tmp_path)
    assert label_names(source) == TRUE and source.description["labels of val"] == "val \\udce9.csv"
    assert [(one.name, one.reason) for one in source.rejected] == [
        (extra.name, "has no label in val \\udce9.csv")
    ]


def test_a_missing_picture_does_not_shift_the_labels_of_the_others(tmp_path: Path) -> None:
    made = sources.samples()
    missing = sources.of_split(made, "val")[2]
    sources.as_cls_loc(tmp_path, [one for one in made if one != missing])
    (tmp_path / "LOC_val_solution.csv").unlink()
    (tmp_path / "val_labels.txt").write_text("\n".join(ORDERED))
    found = label_names(open_source(tmp_path))
    assert found == {file: label for file, label in TRUE.items() if file != missing.file}


def test_lines_for_pictures_without_numbers_must_be_as_many(tmp_path: Path) -> None:
    made = [one._replace(file=one.file.replace("ILSVRC2012_val_", "v")) for one in sources.samples()]
    sources.as_cls_loc(tmp_path, made)
    (tmp_path / "LOC_val_solution.csv").unlink()
    (tmp_path / "val_labels.txt").write_text("\n".join(ORDERED))
    assert [one.label for one in sources.of_split(made, "val")] == list(
        label for _, label in sorted(label_names(open_source(tmp_path)).items())
    )
    (tmp_path / "val_labels.txt").write_text("\n".join(ORDERED[1:]))
    with pytest.raises(
        ConfigError, match="val_labels.txt: has 7 labels, but there are 8 validation pictures"
    ):
        open_source(tmp_path)


@pytest.mark.parametrize(
    "text, reason",
    [
        ("449\n450\n", "line 1 has the number 449 for a class; numbers mean another class"),
        ("a.JPEG 65\n", "line 1 has the number 65 for a class"),
        (f"{SYNSETS[0]}\na.JPEG {SYNSETS[0]}\n", "line 2 has another form than the lines before it"),
        (f"a.JPEG {SYNSETS[0]}\n{SYNSETS[0]}\n", "line 2 has another form than the lines before it"),
        (f"a {SYNSETS[0]}\nb {SYNSETS[1]}\na {SYNSETS[2]}\n", "line 3 gives a a second class"),
        ("a.JPEG ../../etc\n", "line 1 is not a class, or a name and a class"),
        ("a.JPEG x\x1b[2J\n", "line 1 is not a class, or a name and a class"),
        ("\n\n", "has no labels"),
    ],
)
def test_a_file_of_labels_in_another_form_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    (archives(tmp_path) / "val_labels.txt").write_text(text)
    with pytest.raises(ConfigError) as refused:
        open_source(tmp_path)
    assert f"val_labels.txt: {reason}" in str(refused.value) and "one line for each" in str(refused.value)


def test_no_labels_and_too_many(tmp_path: Path) -> None:
    archives(tmp_path)
    with pytest.raises(
        ConfigError, match="has validation pictures, but no labels for them; put ILSVRC2012_dev"
    ):
        open_source(tmp_path)
    for name in ("val_a.txt", "val_b.csv"):
        (tmp_path / name).write_text("\n".join(ORDERED))
    with pytest.raises(ConfigError, match="has several files of labels: val_a.txt, val_b.csv; leave one"):
        open_source(tmp_path)


def test_damaged_devkits(tmp_path: Path) -> None:
    archives(tmp_path)
    whole = sources.devkit(ORDERED)
    files = sources.devkit_files(ORDERED, sources.IDS)
    unknown = sources.devkit_files(ORDERED, {**sources.IDS, SYNSETS[0]: 7})
    cases = {
        "is a devkit without meta.mat and ILSVRC2012_validation_ground_truth.txt": sources.tar_of(
            [("x", b"")]
        ),
        "is a devkit without meta.mat": sources.tar_of([list(files.items())[1]]),
        "has the id 7, for which meta.mat has no synset": sources.tar_of(
            [("meta.mat", files["meta.mat"]), list(unknown.items())[1]]
        ),
        "it is damaged, or of another format": whole[: len(whole) // 2],
    }
    for reason, content in cases.items():
        (tmp_path / DEVKIT).write_bytes(content)
        with pytest.raises(ConfigError) as refused:
            open_source(tmp_path)
        assert reason in str(refused.value) and DEVKIT in str(refused.value)
