# SPDX-License-Identifier: Apache-2.0
"""TFRecords: labels from 1, framing, checksums, records in other forms, and damaged files."""

from __future__ import annotations

import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import google_crc32c
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiperf_mpi.config import ConfigError
from aiperf_mpi.packing.source import SourceError, open_source
from aiperf_mpi.packing.sources import crc32c
from tests.helpers import sources
from tests.helpers.sources import SYNSETS, Sample, example, record, refusal_within_bounds

FIRST = "train-00000-of-00001"


def one_file(root: Path, *records: bytes) -> Path:
    """Write a whole set whose one training file has these records."""
    sources.as_tfrecords(root, sources.samples(), train=1, val=1)
    (root / FIRST).write_bytes(b"".join(records))
    return root


# -- checksums -------------------------------------------------------------------------------------


def test_the_published_values_of_crc32c() -> None:
    # RFC 3720, B.4: 32 bytes of zeros, of ones, and ascending; the check value of the polynomial.
    assert crc32c.by_table(bytes(32)) == 0x8A9136AA
    assert crc32c.by_table(b"\xff" * 32) == 0x62A8AB43
    assert crc32c.by_table(bytes(range(32))) == 0x46DD794E
    assert crc32c.by_table(b"123456789") == 0xE3069283


@given(st.binary(max_size=300))
def test_the_table_agrees_with_the_library(data: bytes) -> None:
    assert crc32c.by_table(data) == google_crc32c.value(data)


# -- labels and names ------------------------------------------------------------------------------


@settings(max_examples=25)
@given(st.lists(st.from_regex(r"\An[0-9]{8}\Z"), min_size=1, max_size=6, unique=True), st.integers(1, 3))
def test_labels_count_from_one_in_the_records_and_from_zero_here(classes: list[str], files: int) -> None:
    made = sources.samples(train=2, val=1, classes=classes, make=lambda seed: b"%d" % seed)
    with tempfile.TemporaryDirectory() as folder:
        source = open_source(sources.as_tfrecords(Path(folder), made, train=files))
        of_name = {one.name: one for one in made}
        for split in ("train", "val"):
            for picture in source.pictures[split]:
                sample = of_name[picture.name]
                # as_tfrecords gives 1 to the first of the sorted classes.
                assert picture.label == 1 + sorted(classes).index(sample.label) - 1
                assert picture.read() == sample.data
        assert len(source.pictures["train"]) == 2 * len(classes)


@pytest.mark.parametrize("packed", [True, False])
def test_records_without_synsets_have_their_numbers_as_classes(packed: bool, tmp_path: Path) -> None:
    numbers = [10, 9, 2, 0]
    records = [
        record(example({"image/class/label": number, "image/encoded": b"\xff\xd8\xff%d" % number}, packed))
        for number in numbers
    ]
    (tmp_path / FIRST).write_bytes(b"".join(records))
    (tmp_path / "validation-00000-of-00001").write_bytes(b"".join(records))
    source = open_source(tmp_path)
    assert source.classes == ("000000", "000002", "000009", "000010")
    assert [(one.name, one.label) for one in source.pictures["train"]] == [
        (f"000000/{FIRST}-000003", 0),
        (f"000002/{FIRST}-000002", 1),
        (f"000009/{FIRST}-000001", 2),
        (f"000010/{FIRST}-000000", 3),
    ]


def test_records_without_numbers_have_their_synsets_as_classes(tmp_path: Path) -> None:
    features = {"image/filename": b"a.JPEG", "image/encoded": b"\xff\xd8\xff"}
    records = [record(example({**features, "image/class/synset": name.encode()})) for name in SYNSETS[::-1]]
    for name in (FIRST, "validation-00000-of-00001"):
        (tmp_path / name).write_bytes(b"".join(records))
    source = open_source(tmp_path)
    assert source.classes == SYNSETS
    assert [(one.name, one.label) for one in source.pictures["val"]] == [
        (f"{name}/a.JPEG", label) for label, name in enumerate(SYNSETS)
    ]


def test_files_in_folders_of_the_splits(tmp_path: Path) -> None:
    sources.as_tfrecords(tmp_path / "flat", sources.samples())
    for file in (tmp_path / "flat").iterdir():
        sources.write(tmp_path / "src" / file.name.partition("-")[0] / file.name, file.read_bytes())
    source = open_source(tmp_path / "src")
    assert source.form == "tfrecords" and len(source.pictures["train"]) == 12
    assert source.description["files"] == "3 for train, 2 for val"


def test_a_class_with_two_labels_is_refused(tmp_path: Path) -> None:
    made = sources.samples(train=1)
    records = [record(sources.example_of(one, 5)) for one in made[:1]]
    with pytest.raises(
        ConfigError, match=rf"byte \d+: {SYNSETS[0]} has the label 1, but 5 before; make the files"
    ):
        open_source(one_file(tmp_path, *records))


def test_labels_that_contradict_the_synsets_are_refused(tmp_path: Path) -> None:
    def of(number: int, **synset: bytes) -> bytes:
        named = {f"image/class/{key}": value for key, value in synset.items()}
        return record(example({**named, "image/class/label": number, "image/encoded": b"\xff\xd8\xff"}))

    for records, words in (
        ((of(1, synset=b"n1"), of(2, synset=b"n1")), "n1 has the label 2, but 1 before"),
        ((of(1, synset=b"n1"), of(1, synset=b"n2")), "n2 has the label 1, as n1 has"),
        ((of(1, synset=b"n1"), of(1), of(2, synset=b"n2")), "000001 has the label 1, as n1 has"),
    ):
        with pytest.raises(ConfigError, match=rf"{FIRST}: record at byte \d+: {words}; make the files again"):
            open_source(one_file(tmp_path, *records))


def test_a_file_beyond_the_number_of_files_is_refused(tmp_path: Path) -> None:
    sources.as_tfrecords(tmp_path, sources.samples())
    (tmp_path / "train-00003-of-00003").write_bytes((tmp_path / "train-00000-of-00003").read_bytes())
    with pytest.raises(ConfigError, match="has the file train-00003-of-00003, whose number is not below 3"):
        open_source(tmp_path)


def test_records_that_cannot_be_pictures_are_listed(tmp_path: Path) -> None:
    good = sources.example_of(Sample("train", SYNSETS[0], "good.JPEG", b"good"), 1)
    label = {"image/class/label": 1, "image/class/synset": SYNSETS[0].encode()}
    records = [
        good,
        good,
        b"\xff" * 20,
        example({"image/encoded": b"x"}),
        example({**label, "image/filename": b"none.JPEG"}),
        example({**label, "image/filename": b"Thumbs.db", "image/encoded": b"\xd0\xcf"}),
        example({**label, "image/filename": b"._x.JPEG", "image/encoded": b"x"}),
        example({**label, "image/filename": b"/some/where/empty.JPEG", "image/encoded": b""}),
    ]
    source = open_source(one_file(tmp_path, *map(record, records)))
    at = [sum(len(record(one)) for one in records[:index]) for index in range(len(records))]
    assert {one.name: one.reason for one in source.rejected} == {
        f"{SYNSETS[0]}/good.JPEG": "is the second member of this name",
        f"{FIRST}, record at byte {at[2]}": "has a number without end: it is not an Example",
        f"{FIRST}, record at byte {at[3]}": "has neither image/class/synset nor image/class/label",
        f"{SYNSETS[0]}/none.JPEG": f"has no image/encoded: {FIRST}, record at byte {at[4]}",
        f"{SYNSETS[0]}/Thumbs.db": "is not a picture, by its name and its first bytes",
    }
    empty, found = source.pictures["train"]
    assert (empty.name, found.name) == (f"{SYNSETS[0]}/empty.JPEG", f"{SYNSETS[0]}/good.JPEG")
    assert found.read() == b"good" and source.description["hidden files left out"] == "1"
    with pytest.raises(SourceError, match="^has no bytes$"):
        empty.read()


# -- damaged files ---------------------------------------------------------------------------------


def test_a_wrong_checksum_of_a_picture_names_file_and_offset(tmp_path: Path) -> None:
    made = [Sample("train", SYNSETS[0], f"{number}.JPEG", b"picture %d" % number) for number in range(3)]
    records = [record(sources.example_of(one, 1)) for one in made]
    content = bytearray(b"".join(records))
    content[content.index(b"picture 1")] ^= 1
    pictures = open_source(one_file(tmp_path, bytes(content))).pictures["train"]
    assert [pictures[index].read() for index in (0, 2)] == [b"picture 0", b"picture 2"]
    with pytest.raises(
        SourceError, match=f"^has a wrong checksum: {FIRST}, record at byte {len(records[0])}$"
    ):
        pictures[1].read()


def test_without_the_library_pictures_are_not_checked_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = sources.samples()
    sources.as_tfrecords(tmp_path, made)
    checked = open_source(tmp_path)
    assert checked.description["checksums"] == "of records and lengths"
    monkeypatch.setattr(crc32c, "FAST", False)
    source = open_source(tmp_path)
    assert source.description["checksums"] == "of lengths"
    assert any("install google-crc32c" in note for note in source.notes)
    assert [one.read() for one in source.pictures["val"]] == [one.read() for one in checked.pictures["val"]]
    (tmp_path / "train-00000-of-00003").write_bytes(bytes(100))
    with pytest.raises(ConfigError, match="byte 0: the checksum of a record's length is wrong"):
        open_source(tmp_path)


def test_a_file_that_is_cut_off_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    records = [record(sources.example_of(one, 1)) for one in sources.samples(classes=SYNSETS[:1], val=0)]
    whole = b"".join(records)
    one_file(tmp_path)
    for size in [1, 11, 12, 100, len(records[0]) + 5, len(whole) - 1]:
        (tmp_path / FIRST).write_bytes(whole[:size])
        begin = len(records[0]) if len(records[0]) <= size < 2 * len(records[0]) else None
        with pytest.raises(ConfigError, match=rf"{FIRST}: byte \d+: the file is cut off; copy") as refused:
            open_source(tmp_path)
        assert begin is None or f"byte {begin}: " in str(refused.value)


@pytest.mark.parametrize("length", [1 << 62, (1 << 64) - 1, (128 << 20) + 1])
def test_lengths_allocate_nothing(length: int, tmp_path: Path) -> None:
    head = struct.pack("<Q", length)
    one_file(tmp_path, head + struct.pack("<I", crc32c.masked(head)))
    with open(tmp_path / FIRST, "ab") as file:
        # A sparse file, so that the last length is within it.
        file.truncate(200 << 20)
    refusal = refusal_within_bounds(lambda: open_source(tmp_path))
    assert "byte 0: the file is cut off" in refusal or f"byte 0: a record has {length} bytes" in refusal


def test_a_missing_file_and_files_of_two_sets(tmp_path: Path) -> None:
    sources.as_tfrecords(tmp_path, sources.samples())
    (tmp_path / "train-00001-of-00003").rename(tmp_path / "kept")
    with pytest.raises(ConfigError, match="lacks 1 of 3 files for train: number 1 is the first; copy all"):
        open_source(tmp_path)
    (tmp_path / "kept").rename(tmp_path / "train-00001-of-00004")
    with pytest.raises(
        ConfigError, match="has files of several sets: train-00000-of-00003, train-00002-of-0"
    ):
        open_source(tmp_path)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    one_file(tmp_path, b"\x1f\x8b\x08" + bytes(500))
    with pytest.raises(ConfigError, match="byte 0: the checksum of a record's length is wrong; .* unpacked"):
        open_source(tmp_path)
    (tmp_path / FIRST).unlink()
    (tmp_path / FIRST).mkdir()
    with pytest.raises(ConfigError, match=f"{FIRST}: a folder, not a regular file"):
        open_source(tmp_path)


@settings(max_examples=80)
@given(st.data())
def test_changed_bytes_are_refused_rejected_or_found_when_read(data: st.DataObject) -> None:
    made = sources.samples(train=2, val=1, make=lambda seed: b"%d" % seed)
    with tempfile.TemporaryDirectory() as folder:
        root = sources.as_tfrecords(Path(folder), made, train=1, val=1)
        content = bytearray((root / FIRST).read_bytes())
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] ^= data.draw(st.integers(1, 255))
        (root / FIRST).write_bytes(content)
        begun, kept = time.process_time(), []

        def open_and_read() -> None:
            source = open_source(root)
            for picture in source.pictures["train"]:
                try:
                    kept.append(picture.read())
                except SourceError as error:
                    assert "has a wrong checksum" in str(error) or "has no bytes" in str(error)

        refusal = refusal_within_bounds(open_and_read)
        assert time.process_time() - begun < 5
        # No changed picture is taken, and at most the changed one is lost.
        assert set(kept) <= {one.data for one in made if one.split == "train"}
        assert refusal or len(kept) >= 7


def test_without_the_package_a_table_computes_checksums() -> None:
    program = (
        "import sys; sys.modules['google_crc32c'] = None\n"
        "from aiperf_mpi.packing.sources import crc32c\n"
        "print(crc32c.FAST, crc32c.masked(b'123456789'))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["False", str(crc32c.masked(b"123456789"))], done.stderr
