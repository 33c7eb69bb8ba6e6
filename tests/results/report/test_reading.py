# SPDX-License-Identifier: Apache-2.0
"""What a report says of the data set: its manifest, staging, and the bytes that each node read."""

from __future__ import annotations

import json
from pathlib import Path

from aiperf_mpi.data.manifest import JPEG
from aiperf_mpi.results.report.compare import compare, entry, to_json, to_text
from aiperf_mpi.results.report.html import html_report
from aiperf_mpi.results.report.text import text_report
from tests.helpers.results.changes import written
from tests.helpers.results.example_run import Example, example_run
from tests.helpers.results.packed_run import PICTURE, example_manifest, packed_run


def section(example: Example, folder: Path) -> str:
    """The section on the data of an example's report, with single spaces."""
    text = text_report(written(example, folder), width=160)
    return " ".join(text.partition("\nData\n")[2].partition("\n\n")[0].split())


def test_a_packed_set_is_described_with_its_staging(tmp_path: Path) -> None:
    text = section(packed_run(), tmp_path)
    for part in (
        "data set images images 1,437 to train, 360 to validate packed set pictures",
        "pictures raw, 40 x 40, 10 classes",
        "1,437 + 360 pictures in 3 shards, 8.6 MB not in the set 2 pictures source form: folders",
        f"hash of the content {example_manifest().sha256}",
        "copied to the nodes 17.3 MB over all nodes, in 1.5 s on the slowest hashes checked in 0.5 s",
    ):
        assert part in text, text


def test_the_rates_of_the_nodes_are_shown(tmp_path: Path) -> None:
    example = packed_run()
    # The second node, the trainer of rank 3, reads a megabyte a second more.
    example.ranks["bytes_read"][3] += 8_500_000
    least = ((22 * 8 + 11) * 64 + 8 * 360 + 64) * PICTURE / 8.5e6
    # Of the trainers' 20 s, 2 s of one are spent on waiting.
    example.ranks["phase_seconds"][1, 1] += 2.0
    example.ranks["phase_seconds"][1, -1] -= 2.0
    text = section(example, tmp_path)
    rates = f"{least + 0.5:.3f} MB/s in the core time (mean; least {least:.3f} on node 0, largest"
    assert (
        f"{rates} {least + 1:.3f} on node 1)" in text
        and "waiting for data 10.00% of the trainers' time" in text
    ), text
    assert f"node read MB/s 0 {least * 8.5:.1f} MB {least:.3f} 1" in text


def test_images_in_memory_are_not_read(tmp_path: Path) -> None:
    text = section(example_run(), tmp_path)
    assert "data set digits" in text and "read by each node nothing: the images are in memory" in text


def test_packed_pictures_that_were_not_read_are_not_in_memory(tmp_path: Path) -> None:
    example = packed_run(example_manifest(JPEG))
    example.ranks["bytes_read"] = 0
    text = section(example, tmp_path)
    assert "read by each node 0.000 MB/s" in text and "in memory" not in text


def test_a_standin_is_named(tmp_path: Path) -> None:
    example = packed_run(example_manifest(standin=True, name="ILSVRC2012"))
    assert "packed set ILSVRC2012, a stand-in with made-up pictures" in section(example, tmp_path)


def test_the_page_has_the_section(tmp_path: Path) -> None:
    page = html_report(written(packed_run(), tmp_path))
    assert "<h2>Data</h2>" in page and "raw, 40 x 40, 10 classes" in page and "least 8.4" in page


def test_runs_on_packed_sets_are_compared(tmp_path: Path) -> None:
    entries = []
    for name, manifest in (
        ("raw", example_manifest()),
        ("jpeg", example_manifest(JPEG)),
        ("other", example_manifest(name="others")),
    ):
        example = packed_run(manifest)
        example.header = type(example.header)(**(example.header.__dict__ | {"run_id": name}))
        (tmp_path / name).mkdir()
        entries.append(entry(written(example, tmp_path / name)))
    comparison = compare(entries)
    assert all(item.verdict.valid for item in entries), [item.verdict.reasons for item in entries]
    text = to_text(comparison)
    assert "read, a node" in text and "8.421 MB/s" in text and "jpeg" in text
    # Encodings may differ, sets may not.
    assert "not the same work: packed set differs (pictures, side 40, others, side 40)" in " ".join(
        text.split()
    )
    runs = json.loads(to_json(comparison))["runs"]
    assert [run["data"]["encoding"] for run in runs] == ["raw", "jpeg", "raw"]
    assert "data" not in json.loads(to_json(compare([entry(written(example_run(), tmp_path))])))["runs"][0]
