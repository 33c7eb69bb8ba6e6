# SPDX-License-Identifier: Apache-2.0
"""The stand-in of ImageNet: its counts, its pictures, and all parts of its benchmark at a tiny scale."""

from __future__ import annotations

import json
import re
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from aiperf_mpi.data import jpeg
from aiperf_mpi.data.manifest import read_manifest
from aiperf_mpi.packing.picture import pack
from aiperf_mpi.packing.source import STANDIN, open_source
from aiperf_mpi.packing.sources import ilsvrc
from aiperf_mpi.paper import IMAGENET_IMAGES
from benchmarks import imagenet_standin, standin_source
from benchmarks.processes import watched
from benchmarks.standin_source import Member, class_counts, class_names, members, named_picture, write_source
from tests.helpers.end_to_end.runs import QUICK_COMPILER

#: One picture of each class in each split.
TINY = 0.0001


def test_counts_and_classes_are_those_of_a_whole_copy() -> None:
    counts, names = class_counts(), class_names()
    assert counts.sum() == IMAGENET_IMAGES[0] and (counts.min(), counts.max()) == (732, 1300)
    assert names == sorted(set(names)) and ilsvrc.is_ilsvrc(names)
    labels = {
        split: [one.label for one in members(name)]
        for split, name in (("train", "train"), ("val", "validation"))
    }
    assert ilsvrc.missing(names, {split: np.array(its) for split, its in labels.items()}) == (0, "")


def test_no_two_pictures_are_equal_and_each_is_stored_as_it_is() -> None:
    made = [named_picture(one) for one in members("train", TINY)[:50]]
    # A second picture of the same variant differs by its comment alone.
    made.append(named_picture(Member(3, 4, "n_4.JPEG")))
    made.append(named_picture(Member(3, 8, "n_8.JPEG")))
    assert len(set(made)) == len(made)
    assert np.array_equal(jpeg.decode(made[-1]), jpeg.decode(made[-2]))
    for data in made:
        assert 800 < len(data) < 4000 and jpeg.decode(data).shape == (64, 64, 3)
        assert pack(data, 256, "jpeg", True).data == data


def test_a_comment_is_where_a_reader_finds_it() -> None:
    data = named_picture(Member(7, 2, "n00000007_2.JPEG"))
    place = data.index(b"\xff\xfe")
    assert (
        data[place + 4 : place + 2 + struct.unpack(">H", data[place + 2 : place + 4])[0]]
        == b"n00000007_2.JPEG"
    )


def test_a_class_is_recognised_by_its_low_frequencies() -> None:
    pictures = {
        (label, variant): jpeg.decode(standin_source.picture(label, variant)).astype(float)
        for label in range(5)
        for variant in range(2)
    }
    for label in range(5):
        distances = [np.abs(pictures[label, 0] - pictures[other, 1]).mean() for other in range(5)]
        assert int(np.argmin(distances)) == label


def test_a_source_is_marked_goes_on_and_is_not_mixed(tmp_path: Path) -> None:
    lines: list[str] = []
    write_source(tmp_path, TINY, lines.append)
    path = tmp_path / "train-00017-of-01024"
    before = path.read_bytes()
    path.unlink()
    write_source(tmp_path, TINY, lines.append)
    assert path.read_bytes() == before
    assert [int(re.findall(r"(\d+) of them", line)[0]) for line in lines] == [1024, 128, 1, 0]

    source = open_source(tmp_path)
    assert source.standin and source.is_ilsvrc and not source.rejected
    assert source.classes == tuple(class_names())
    picture = source.pictures["train"][500]
    made = next(one for one in members("train", TINY) if picture.name.endswith(f"/{one.name}"))
    assert (picture.label, picture.read()) == (made.label, named_picture(made))
    with pytest.raises(ValueError, match="name another folder"):
        write_source(tmp_path, 1.0, lines.append)


def test_a_command_is_watched_and_ends_at_its_signal(tmp_path: Path) -> None:
    code = (
        "import signal, time\n"
        "signal.signal(signal.SIGUSR1, lambda *_: exit(4))\n"
        "print('on', flush=True)\n"
        "memory = bytearray(60 << 20)\n"
        "while True: time.sleep(0.05)"
    )
    log = tmp_path / "log"
    words = [sys.executable, "-c", code]
    ended, usage = watched(words, log, 60, lambda usage: usage.peaks.get(None, 0) > 60 << 20)
    assert ended == 4 and log.read_text() == "on\n"
    assert usage.cpu_seconds > 0 and 60 << 20 < usage.peaks[None] < 200 << 20


@pytest.mark.full
@pytest.mark.timeout(600)
def test_all_parts_at_a_tiny_scale(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in QUICK_COMPILER.items():
        monkeypatch.setenv(name, value)
    small = ["model.blocks=[1,1]", "model.width=4", "data.image_size=32", "train.precision=float32"]
    words = [str(tmp_path / "all"), "--scale", str(TINY), "--core-seconds", "120", "--load-batch", "32"]
    words += [word for setting in small for word in ("--set", setting)]
    status = imagenet_standin.main([*words, "--out", str(tmp_path / "out")])
    text = capsys.readouterr().out
    assert status == 0 and "MISSED" not in text, text
    manifest = read_manifest(tmp_path / "all" / "packed")
    assert manifest.standin and manifest.images("train") == manifest.images("val") == 1000

    # Nothing is done again.
    rows = (tmp_path / "all" / "parts.json").read_text()
    assert imagenet_standin.main(words) == 0 and (tmp_path / "all" / "parts.json").read_text() == rows
    stored = json.loads((tmp_path / "out" / "imagenet_standin.json").read_text())
    assert stored["parts"]["run"]["roles"] == ["coordinator", "trainer", "generator", "generator"]
    assert set(stored["parts"]["run"]["peaks"]) == {"0", "1", "2", "3"}
    assert (tmp_path / "all" / "source" / STANDIN).exists()
