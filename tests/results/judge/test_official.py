# SPDX-License-Identifier: Apache-2.0
"""An official result is VALID and has a score; a departure makes it INVALID or a trial, with its reason."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from aiperf_mpi import hdf5
from aiperf_mpi.data.manifest import JPEG, TRAIN, LabelFacts, Manifest
from aiperf_mpi.results.file.resultfile import Result
from aiperf_mpi.results.judge import judge
from aiperf_mpi.results.output import package, process
from aiperf_mpi.results.report.verdict import verdict_json, verdict_lines
from tests.helpers.results.example_run import Example
from tests.helpers.results.official_run import LABELS, MACHINE, RULES, SHAPE, imagenet_manifest, official_run

DECLARED = (
    "declared.device='Other X1'",
    "declared.peak_ops=9e14",
    "declared.source='data sheet of the X1'",
    "declared.vouched_by='A. Person, a centre'",
)


def verdict_of(example: Example, folder: Path, rules: Any = RULES) -> judge.Verdict:
    """The verdict on the file that the writer makes of an example; its JSON has the form of result.json."""
    hdf5.write(folder / "result.h5", process.final_image(example.run(), rules=RULES))
    verdict = judge.judge(folder / "result.h5", rules=rules)
    jsonschema.validate(json.loads(verdict_json(verdict)), package.summary_schema())
    return verdict


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """The content of the official example."""
    path = tmp_path_factory.mktemp("official") / "result.h5"
    hdf5.write(path, process.final_image(official_run().run(), rules=RULES))
    return judge.judge_file(path, rules=RULES)[0]


def changed(result: Result, attributes: dict[str, Any] | None = None, **documents: str) -> judge.Verdict:
    """The verdict on the example with other attributes, and documents by the last part of their names."""
    names = {path.rpartition("/")[2]: path for path in result.documents}
    texts = result.documents | {names[name]: text for name, text in documents.items()}
    new = Result(result.tables, result.attributes | (attributes or {}), texts, [], "")
    return judge.judge_content(new, RULES)


def of_manifest(result: Result, manifest: Manifest, labels: LabelFacts | None = LABELS) -> judge.Verdict:
    """The verdict on the example with another packed set, whose hash the file states."""
    return changed(result, {"dataset_sha256": manifest.sha256}, manifest_json=manifest.to_record(labels))


def with_machine(result: Result, **entries: object) -> judge.Verdict:
    """The verdict on the example with other entries of the inventory."""
    return changed(result, inventory_json=json.dumps(dict(MACHINE) | entries))


def moved(counts: tuple[int, ...], fro: int, to: int) -> tuple[int, ...]:
    """Counts of classes with one picture in another class."""
    each = list(counts)
    each[fro], each[to] = each[fro] - 1, each[to] + 1
    return tuple(each)


def test_an_official_result_is_valid_and_prints_its_score(tmp_path: Path) -> None:
    verdict = verdict_of(official_run(), tmp_path)
    assert (verdict.valid, verdict.cls, verdict.division) == (True, "official", "closed"), verdict.reasons
    assert all(finding.passed for finding in verdict.findings)
    lines = verdict_lines(verdict)
    assert verdict.score_ops == verdict.rate > 0 and math.isnan(verdict.trial_rate_ops)
    assert any(line.startswith("AIPERF_MPI score_ops: ") for line in lines)
    assert any(line.startswith("AIPERF_MPI score_regulated: ") for line in lines)

    # The names of the example's classes and pictures are made up: the benchmark's own rules see that.
    strict = judge.judge(tmp_path / "result.h5")
    assert not strict.valid and {"V15", "I12"} == set(strict.reason_ids)
    assert [reason.text for reason in strict.reasons if reason.id == "V15"] == [
        "the packed set: its classes are not the sorted ones of ILSVRC2012",
        "the packed set: names and classes of its validation pictures are not those of ILSVRC2012",
    ]


def test_either_encoding_is_official(result: Result) -> None:
    assert of_manifest(result, imagenet_manifest(JPEG)).score_ops > 0


#: Changes of a finished result, the check that finds each, and a part of its reason.
DEPARTURES: dict[str, tuple[Callable[[Result], judge.Verdict], str, str]] = {
    "one class fewer": (
        lambda r: of_manifest(r, imagenet_manifest(classes=imagenet_manifest().classes[:-1])),
        "I21",
        "has classes 999, but the configuration 1000",
    ),
    "another class": (
        lambda r: of_manifest(r, imagenet_manifest(classes=(*imagenet_manifest().classes[:-1], "n15075141"))),
        "V15",
        "its classes are not the sorted ones of ILSVRC2012",
    ),
    "one image missing": (
        lambda r: of_manifest(r, without_one(imagenet_manifest())),
        "I21",
        "ImageNet has other counts than (1281166, 50000) pictures of 1000 classes",
    ),
    "an image without a label": (
        lambda r: of_manifest(
            r, imagenet_manifest(), replace(LABELS, train=(*LABELS.train[:-1], LABELS.train[-1] - 1))
        ),
        "I21",
        "attribute train_images is 1281167, but 1281166 pictures have labels",
    ),
    "an image in another class": (
        lambda r: of_manifest(r, imagenet_manifest(), replace(LABELS, train=moved(LABELS.train, 5, 7))),
        "V15",
        "class 7 has 1301 training pictures instead of 732 to 1300",
    ),
    "a validation image in another class": (
        lambda r: of_manifest(r, imagenet_manifest(), replace(LABELS, val=moved(LABELS.val, 0, 999))),
        "V15",
        "class 0 and 1 more have 49 validation pictures instead of 50",
    ),
    "two validation labels exchanged": (
        lambda r: of_manifest(r, imagenet_manifest(), replace(LABELS, val_sha256="0" * 64)),
        "V15",
        "names and classes of its validation pictures are not those of ILSVRC2012",
    ),
    "labels not recorded": (
        lambda r: of_manifest(r, imagenet_manifest(), None),
        "V15",
        "the classes and labels of the packed pictures are not recorded",
    ),
    "another archive": (
        lambda r: of_manifest(
            r, imagenet_manifest(source={"form": "archives", "md5 of ILSVRC2012_img_val.tar": "0" * 32})
        ),
        "V15",
        "ILSVRC2012_img_val.tar has the MD5 " + "0" * 32,
    ),
    "a set that is not packed": (
        lambda r: changed(r, manifest_json="{}"),
        "I21",
        "the data set 'imagenet' is packed, but /data/manifest_json is empty",
    ),
    "3,599 s of an hour": (
        lambda r: changed(r, {"core_seconds": 3599.0}),
        "I16",
        "the core time is 3599.0 s",
    ),
    "drained": (lambda r: changed(r, {"end": "drained"}), "I16", "it ended by 'drained'"),
    "an error of 0.301": (
        lambda r: changed(r, {"error_final": 0.301}),
        "V03",
        "its error is 0.301000, but an official result has at most 0.3",
    ),
    "not loaded again": (
        lambda r: changed(r, {"error_final": math.nan, "error_final_trial": -1}),
        "V03",
        "the best model was not loaded again",
    ),
    "a dirty commit": (
        lambda r: with_machine(r, source={"commit": "0" * 40, "dirty": True, "why": "2 files were changed"}),
        "V19",
        "the program has changes that no commit holds: 2 files were changed",
    ),
    "no commit": (lambda r: with_machine(r, source=None), "V19", "the commit of the program is unknown"),
    "a machine without a name": (
        lambda r: with_machine(r, hostname="unknown"),
        "V18",
        "/system/inventory_json does not name hostname",
    ),
}


def without_one(manifest: Manifest) -> Manifest:
    """A manifest with one training picture less."""
    first, *others = manifest.splits[TRAIN]
    return replace(
        manifest, splits=dict(manifest.splits) | {TRAIN: (replace(first, images=first.images - 1), *others)}
    )


@pytest.mark.parametrize("name", DEPARTURES)
def test_a_single_departure_is_invalid_with_its_reason(name: str, result: Result) -> None:
    change, check, text = DEPARTURES[name]
    verdict = change(result)
    assert not verdict.valid and math.isnan(verdict.score_ops), name
    assert any(reason.id == check and text in reason.text for reason in verdict.reasons), verdict.reasons


@pytest.mark.parametrize(
    ("example", "reason"),
    [
        (
            lambda: official_run(shape=replace(SHAPE, epoch_seconds=3599 / 29.5)),
            "run.time_limit = 3599.0 (fixed: at least 3600.0; authors' README, section 2)",
        ),
        (lambda: official_run(sets=("result.max_error=0.301",)), "result.max_error = 0.301 (fixed: 0.3;"),
        (
            lambda: official_run(imagenet_manifest(side=288), sets=("data.stored_size=288",)),
            "data.stored_size = 288 (fixed: 256; docs/rules.md)",
        ),
        (lambda: official_run(imagenet_manifest(standin=True)), "the data set is a stand-in"),
        (lambda: official_run(sets=("run.official=false",)), "not all that an official run needs was there"),
    ],
)
def test_a_departure_that_is_known_before_the_run_makes_a_trial(
    example: Callable[[], Example], reason: str, tmp_path: Path
) -> None:
    made = example()
    # Larger pictures have more bytes.
    made.ranks["bytes_read"] *= 2
    verdict = verdict_of(made, tmp_path)
    assert (verdict.valid, verdict.cls) == (True, "trial"), verdict.reasons
    assert math.isnan(verdict.score_ops) and verdict.trial_rate_ops > 0
    assert len(made.header.departures) == 1 and made.header.departures[0].startswith(reason)


def test_a_trial_that_claims_to_be_official_is_found(tmp_path: Path) -> None:
    made = official_run(imagenet_manifest(standin=True))
    made.header = replace(made.header, cls="official", departures=())
    verdict = verdict_of(made, tmp_path)
    assert not verdict.valid and verdict.cls == "trial" and "V01" in verdict.reason_ids


def test_devices_without_a_known_peak_need_a_declared_one(tmp_path: Path) -> None:
    other = replace(SHAPE, device="Other X1")
    machine = dict(MACHINE) | {"nodes": [{"nodes": "0-1", "accelerators": [{"name": "Other X1"}]}]}
    made = official_run(shape=other, inventory=machine)
    verdict = verdict_of(made, tmp_path)
    assert not verdict.valid and verdict.cls == "official"
    assert any(r.id == "V10" and "or a declared one" in r.text for r in verdict.reasons), verdict.reasons

    made = official_run(shape=other, inventory=machine, sets=DECLARED)
    (tmp_path / "declared").mkdir()
    verdict = verdict_of(made, tmp_path / "declared")
    assert verdict.valid and verdict.score_ops > 0, verdict.reasons
    assert any("AIPERF_MPI peak: declared, not in the table" in line for line in verdict_lines(verdict))


def test_an_error_of_0_301_in_training_is_invalid(tmp_path: Path) -> None:
    # 0.301 of 50,000 pictures are 15,050.
    made = official_run(shape=replace(SHAPE, wrong=lambda epoch, number: max(40_000 // (epoch + 1), 15_050)))
    verdict = verdict_of(made, tmp_path)
    assert not verdict.valid and verdict.reason_ids == ("V03",), verdict.reasons
    assert np.isclose(verdict.error_final, 0.301)
