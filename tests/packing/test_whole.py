# SPDX-License-Identifier: Apache-2.0
"""ILSVRC2012 is recognised by its classes, and a copy that is not whole is refused with what it lacks."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aiperf_mpi.config import ConfigError
from aiperf_mpi.data.manifest import Rejected
from aiperf_mpi.packing.source import Source, check_whole, open_source
from aiperf_mpi.packing.sources import ilsvrc
from aiperf_mpi.packing.sources.pictures import Member, Pictures
from tests.helpers import sources

#: 1000 names as synsets have; the first and the last are those of ILSVRC2012.
CLASSES = ("n01440764", *(f"n0{number:07d}" for number in range(2_000_000, 2_000_998)), "n15075141")


class NoReader:
    def read(self, member: bytes, place: object) -> bytes:
        raise AssertionError("no picture is read")


def pictures(split: str, counts: np.ndarray) -> Pictures:
    """Return pictures with these counts in the classes."""
    members = [
        Member(f"{CLASSES[label]}/{number:04d}.JPEG".encode())
        for label, count in enumerate(counts)
        for number in range(count)
    ]
    return Pictures(split, members, {name: label for label, name in enumerate(CLASSES)}, NoReader())


def whole() -> dict[str, np.ndarray]:
    """Return counts of each class whose sums are those of ILSVRC2012."""
    train = np.full(1000, 1281)
    train[0], train[1] = 732, 1300
    # 1000 x 1281 + (732 - 1281) + (1300 - 1281) = 1,280,470, which is 697 fewer than 1,281,167.
    train[2:699] += 1
    assert train.sum() == 1_281_167
    return {"train": train, "val": np.full(1000, 50)}


def missing(counts: dict[str, np.ndarray]) -> tuple[int, str]:
    """Return what a copy with these counts lacks."""
    labels = {split: np.repeat(np.arange(1000), its) for split, its in counts.items()}
    return ilsvrc.missing(CLASSES, labels)


def a_few() -> Source:
    """Return one training picture of each class, and all of validation."""
    made = {"train": pictures("train", np.ones(1000, int)), "val": pictures("val", np.full(1000, 50))}
    return Source("folders", CLASSES, made, (), {}, ilsvrc.is_ilsvrc(CLASSES))


def test_the_classes_are_recognised() -> None:
    assert ilsvrc.is_ilsvrc(CLASSES)
    assert not ilsvrc.is_ilsvrc(CLASSES[:-1])
    assert not ilsvrc.is_ilsvrc(("n01440763", *CLASSES[1:]))
    assert not ilsvrc.is_ilsvrc((*CLASSES[:500], "n0200049x", *CLASSES[501:]))
    assert not ilsvrc.is_ilsvrc([])


def test_a_whole_copy_lacks_nothing() -> None:
    assert missing(whole()) == (0, "")


@pytest.mark.parametrize(
    "split, change, number, words",
    [
        ("train", {3: -7}, 7, "train has 1281160 pictures instead of 1281167"),
        ("train", {3: 7}, 7, "train has 1281174 pictures instead of 1281167"),
        (
            "val",
            {3: -1},
            1,
            "val has 49999 pictures instead of 50000; 1 class of val: n02000002 has 49 instead of 50",
        ),
        ("val", {3: -1, 4: 1}, 2, "2 classes of val: n02000002 has 49, n02000003 has 51 instead of 50"),
        ("train", {0: -1, 2: 1}, 1, "1 class of train: n01440764 has 731 instead of 732 to 1300"),
        # 717 fewer in all; the class without pictures lacks 732 at least.
        (
            "train",
            {0: -732, 2: 15},
            732,
            "train has 1280450 pictures instead of 1281167; "
            "1 class of train: n01440764 has 0 instead of 732 to 1300",
        ),
    ],
)
def test_what_lacks_is_named(split: str, change: dict[int, int], number: int, words: str) -> None:
    counts = whole()
    for label, by in change.items():
        counts[split][label] += by
    assert missing(counts) == (number, words)


def test_an_incomplete_copy_is_refused_unless_so_many_may_lack() -> None:
    few = a_few()
    with pytest.raises(ConfigError) as refused:
        check_whole(Path("/data"), few)
    # 1000 of 1,281,167 are there: 1,280,167 lack.
    assert str(refused.value) == (
        "SRC: /data: is not the whole of ILSVRC2012: train has 1000 pictures instead of 1281167; 1000 "
        "classes of train: n01440764 has 1, n02000000 has 1, n02000001 has 1, ... instead of 732 to 1300; "
        "complete it, or pass --max-rejected 1280167 to pack what there is"
    )
    check_whole(Path("/data"), few, most=1_280_167)
    with pytest.raises(ConfigError):
        check_whole(Path("/data"), few, most=1_280_166)

    rejected = Rejected("val", "x.JPEG", "is a FIFO, not a regular file")
    with pytest.raises(ConfigError, match="; 1 member rejected, the first: x.JPEG is a FIFO, .* 1280167 to"):
        check_whole(Path("/data"), replace(few, rejected=(rejected,)))


def test_another_set_is_never_incomplete(tmp_path: Path) -> None:
    check_whole(tmp_path, open_source(sources.as_folders(tmp_path, sources.samples())))


def test_pictures_take_little_memory() -> None:
    tracemalloc.start()
    kept = pictures("val", np.full(1000, 50))
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert taken / len(kept) < 100
