# SPDX-License-Identifier: Apache-2.0
"""Every form of a source gives the same names, labels and bytes for the same pictures."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from aiperf_mpi.packing.source import Source, open_source
from tests.helpers import sources
from tests.helpers.sources import FORMS, Sample

FORM = pytest.mark.parametrize("form", FORMS)


def content(source: Source) -> dict[str, list[tuple[str, int, bytes]]]:
    """Return names, labels and bytes of the pictures of each split, in the source's order."""
    return {
        split: [(one.name, one.label, one.read()) for one in pictures]
        for split, pictures in source.pictures.items()
    }


def expected(made: list[Sample]) -> dict[str, list[tuple[str, int, bytes]]]:
    labels = sorted({one.label for one in made})
    return {
        split: sorted((one.name, labels.index(one.label), one.data) for one in made if one.split == split)
        for split in ("train", "val")
    }


@FORM
def test_names_labels_and_bytes(form: str, tmp_path: Path) -> None:
    made = sources.samples()
    source = open_source(FORMS[form](tmp_path / "src", made))
    assert source.form == form and source.classes == tuple(sorted(sources.SYNSETS))
    assert content(source) == expected(made)
    assert source.rejected == () and source.notes == () and not source.is_ilsvrc


@FORM
def test_what_was_found_can_be_sent_to_another_process(form: str, tmp_path: Path) -> None:
    source = open_source(FORMS[form](tmp_path / "src", sources.samples()))
    assert content(pickle.loads(pickle.dumps(source))) == content(source)


@FORM
def test_a_picture_is_made_when_it_is_asked_for(form: str, tmp_path: Path) -> None:
    pictures = open_source(FORMS[form](tmp_path / "src", sources.samples())).pictures["train"]
    assert pictures[-1].name == pictures[len(pictures) - 1].name
    assert [one.name for one in pictures[1:4]] == [pictures[index].name for index in (1, 2, 3)]
    assert [one.label for one in pictures] == pictures.labels.tolist()
    with pytest.raises(IndexError):
        pictures[len(pictures)]
