# SPDX-License-Identifier: Apache-2.0
"""Results of runs on packed pictures: a faultless one is valid, and each forged one is found."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from aiperf_mpi.data.manifest import JPEG, VAL, from_record
from aiperf_mpi.results.evidence.evidence import Evidence
from aiperf_mpi.results.evidence.reading import reading
from aiperf_mpi.results.file import resultfile
from aiperf_mpi.results.judge import judge
from aiperf_mpi.results.judge.judge import judge_file
from tests.helpers.results.changes import changed, written
from tests.helpers.results.example_run import example_run
from tests.helpers.results.packed_run import PICTURE, example_manifest, of_manifest, packed_run


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A valid result of a run on raw packed pictures."""
    return written(packed_run(), tmp_path_factory.mktemp("packed"))


def with_document(change: Callable[[dict[str, Any]], object]) -> Callable[[h5py.File], None]:
    """A change of the stored manifest."""

    def forge(file: h5py.File) -> None:
        dataset = file["data/manifest_json"]
        document = json.loads(dataset.asstr()[()])
        change(document)
        dataset[()] = json.dumps(document)

    return forge


def test_a_run_on_packed_pictures_is_valid_and_records_its_manifest(packed: Path) -> None:
    result, verdict = judge_file(packed)
    assert verdict.valid, verdict.reasons
    manifest, rejected = from_record(result.documents["data/manifest_json"])
    assert (manifest, rejected) == (example_manifest(), 2)
    assert result.attributes["dataset_sha256"] == manifest.sha256
    assert result.attributes["staged_bytes"] == 2 * manifest.bytes
    assert (result.attributes["staging_seconds"], result.attributes["hash_seconds"]) == (1.5, 0.5)


def test_the_bytes_of_each_node_are_known(packed: Path) -> None:
    # In replica 0 are trials 0, 4 and 9: 3 + 3 + 2.5 epochs of 22 steps (the last has 11 of them) of 64
    # pictures, 8 validations of 360. Both replicas have the same, and read a batch more than they used.
    images = (22 * 8 + 11) * 64 + 8 * 360
    found = reading(Evidence(judge_file(packed)[0]))
    assert found.nodes.tolist() == [0, 1] and found.bytes == 2 * (images + 64) * PICTURE
    np.testing.assert_allclose(found.rates, (images + 64) * PICTURE / 8.5)
    assert found.data_share == 0


def test_a_run_on_images_in_memory_reads_nothing(path: Path) -> None:
    found = reading(Evidence(judge_file(path)[0]))
    assert found.bytes == 0 and found.rates.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda d: d.update(side=48), "content_sha256"),
        (lambda d: d["splits"]["val"]["shards"][0].update(sha256="0" * 64), "content_sha256"),
        (lambda d: d["splits"]["val"]["shards"][0].update(images=350), "350"),
        (lambda d: d["splits"]["val"].update(images=350), "350 pictures of val"),
        (lambda d: d.update(rejected_count=1), "rejected_count"),
        (lambda d: d.update(version=2), "version 2"),
        (lambda d: d.pop("classes"), "classes"),
        (dict.clear, "is packed, but"),
    ],
)
def test_a_manifest_that_was_changed_is_found(
    packed: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], text: str
) -> None:
    verdict = changed(packed, tmp_path, with_document(change))
    assert not verdict.valid
    assert any(text in reason.text for reason in verdict.reasons if reason.id == "I21"), verdict.reasons


@pytest.mark.parametrize(
    ("other", "text"),
    [
        ({"side": 48}, "side 48"),
        ({"classes": tuple("abcdefghijk")}, "classes 11"),
        ({"encoding": JPEG}, ""),
        ({"name": "other"}, ""),
    ],
)
def test_the_manifest_is_that_of_the_configuration(
    tmp_path: Path, other: dict[str, object], text: str
) -> None:
    # Its hash fits: the header is that of a run on the other set.
    example = packed_run(example_manifest(**other))
    example.ranks["bytes_read"] *= 2
    verdict = judge.judge(written(example, tmp_path))
    found = [reason.text for reason in verdict.reasons if reason.id == "I21"]
    assert verdict.valid == (not text), verdict.reasons
    assert not text or any(text in one for one in found)


def test_more_pictures_than_the_set_has_are_found(tmp_path: Path) -> None:
    manifest = example_manifest()
    fewer = replace(
        manifest, splits=dict(manifest.splits) | {VAL: (replace(manifest.splits[VAL][0], images=359),)}
    )
    verdict = judge.judge(written(packed_run(fewer), tmp_path))
    assert ("I21", "attribute val_images is 360, but the manifest has 359 pictures") in [
        (reason.id, reason.text) for reason in verdict.reasons
    ]


def test_a_manifest_of_another_set_is_found(packed: Path, tmp_path: Path) -> None:
    def forge(file: h5py.File) -> None:
        resultfile.set_attributes(file, {"dataset_sha256": "0" * 64})

    assert changed(packed, tmp_path, forge).reason_ids == ("I21", "I12")


def test_a_set_in_memory_has_no_manifest(tmp_path: Path) -> None:
    example = example_run()
    example.header = replace(of_manifest(example.header, example_manifest()), dataset="digits")
    reasons = judge.judge(written(example, tmp_path)).reasons
    assert any(reason.id == "I21" and "is not packed" in reason.text for reason in reasons)


@pytest.mark.parametrize("row", [0, 2])
def test_a_rank_that_does_not_train_reads_nothing(packed: Path, tmp_path: Path, row: int) -> None:
    def forge(file: h5py.File) -> None:
        file["ranks/bytes_read"][row] = 1

    assert changed(packed, tmp_path, forge).reason_ids == ("I22", "I12")


def test_raw_pictures_that_were_not_read_are_found(packed: Path, tmp_path: Path) -> None:
    def forge(file: h5py.File) -> None:
        # A batch of 64 is read ahead: one byte less than the pictures that were used.
        file["ranks/bytes_read"][1] -= 64 * PICTURE + 1

    reasons = changed(packed, tmp_path, forge).reasons
    assert any(reason.id == "I22" and "replica 0 read" in reason.text for reason in reasons)


def test_jpeg_files_that_were_not_read_are_found(tmp_path: Path) -> None:
    example = packed_run(example_manifest(JPEG))
    example.ranks["bytes_read"][1] = 0
    reasons = judge.judge(written(example, tmp_path)).reasons
    assert [reason.id for reason in reasons] == ["I22"] and "replica 0 read 0 bytes" in reasons[0].text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("staged_bytes", -1),
        ("staged_bytes", 2 * example_manifest().bytes + 1),
        ("staging_seconds", -0.5),
        ("staging_seconds", 1e6),
        ("hash_seconds", np.nan),
    ],
)
def test_staging_that_cannot_have_been_is_found(
    packed: Path, tmp_path: Path, name: str, value: float
) -> None:
    verdict = changed(packed, tmp_path, lambda file: resultfile.set_attributes(file, {name: value}))
    assert verdict.reason_ids == ("I22", "I12")
