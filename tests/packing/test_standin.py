# SPDX-License-Identifier: Apache-2.0
"""A source with a file STANDIN is packed as a stand-in: made-up pictures with the counts of another set."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiperf_mpi.config import ConfigError
from aiperf_mpi.data.manifest import read_manifest
from aiperf_mpi.packing import job, source, work
from tests.helpers import sources


def prepared(folder: Path, packed: Path, **options: object) -> job.Prepared:
    return job.prepare(job.Request(folder, packed, side=16, **options), lambda line: None)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", sources.FORMS)
def test_the_mark_is_seen_in_each_form_and_told(form: str, tmp_path: Path) -> None:
    folder = sources.FORMS[form](tmp_path / form, sources.samples())
    plain = source.open_source(folder)
    assert not plain.standin and not any("made up" in note for note in plain.notes)

    (folder / source.STANDIN).touch()
    marked = source.open_source(folder)
    assert marked.standin and any("made up" in note and "STANDIN" in note for note in marked.notes)
    # It is not a picture, and changes nothing else.
    assert (marked.classes, marked.rejected) == (plain.classes, plain.rejected)
    counts = [len(marked.pictures[split]) for split in marked.pictures]
    assert counts == [3 * len(sources.SYNSETS), 2 * len(sources.SYNSETS)]


def test_a_packing_does_not_go_on_when_the_mark_was_changed(tmp_path: Path) -> None:
    folder = sources.as_folders(tmp_path / "source", sources.samples())
    (folder / source.STANDIN).touch()
    begun = prepared(folder, tmp_path / "packed")
    begun.release()
    assert begun.plan.standin

    (folder / source.STANDIN).unlink()
    with pytest.raises(ConfigError, match="was begun with another mark by a file STANDIN"):
        prepared(folder, tmp_path / "packed")


def test_the_manifest_is_marked_and_a_name_does_not_hide_it(tmp_path: Path) -> None:
    folder = sources.as_folders(tmp_path / "source", sources.samples())
    (folder / source.STANDIN).touch()
    begun = prepared(folder, tmp_path / "packed", name="ILSVRC2012")
    try:
        tick = lambda progress: None  # noqa: E731
        packer = work.Packer(begun.source.pictures, begun.folder, begun.plan.layout, 1, tick)
        assert job.conclude(begun, packer.pack_all(begun.plan.tasks())).manifest is not None
    finally:
        begun.release()
    manifest = read_manifest(tmp_path / "packed")
    assert manifest.standin and manifest.name == "ILSVRC2012"

    (folder / source.STANDIN).unlink()
    with pytest.raises(ConfigError, match="has a packed set with another mark by a file STANDIN"):
        prepared(folder, tmp_path / "packed", name="ILSVRC2012")
