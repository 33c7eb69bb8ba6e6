# SPDX-License-Identifier: Apache-2.0
"""The rules as data, the document that says them in words, and the checks that only official runs must
pass."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aiperf_mpi import hdf5
from aiperf_mpi.paper import OFFICIAL_SECONDS
from aiperf_mpi.results.file import score
from aiperf_mpi.results.file.resultfile import Result
from aiperf_mpi.results.file.schema import TABLES
from aiperf_mpi.results.judge import judge, pages, rules
from aiperf_mpi.results.judge.checks import official
from aiperf_mpi.results.output import process
from tests.helpers.results import official_run
from tests.helpers.results.example_run import example_run


@pytest.fixture
def result(tmp_path: Path) -> Result:
    """The content of a valid trial run."""
    hdf5.write(tmp_path / "result.h5", process.final_image(example_run().run()))
    return judge.judge_file(tmp_path / "result.h5")[0]


@pytest.mark.parametrize("page", pages.PAGES)
def test_tables_of_the_pages_are_current(page: str, root: Path) -> None:
    text = (root / page).read_text(encoding="utf-8")
    assert text == pages.rewritten(text), f"{page} is old: run python -m aiperf_mpi.results.judge.pages"


def test_pages_have_all_tables(root: Path) -> None:
    rules_page, format_page = (pages.marked((root / page).read_text("utf-8")) for page in pages.PAGES)
    assert rules_page == ["table-4", "rules", "free", "checks", "left-out"]
    assert format_page == ["attributes", *TABLES, "unchecked"]


def test_rules_page_has_classes_and_seeds(root: Path) -> None:
    text = (root / "docs" / "rules.md").read_text(encoding="utf-8")
    for name, about in (rules.CLASSES | rules.DIVISIONS).items():
        assert f"- **{name}**: {about}" in text
    assert f"seeds {', '.join(map(str, rules.SEEDS))}" in text


def test_every_common_number_is_checked_or_left_out(result: Result) -> None:
    made = {finding.id for finding in judge.judge_content(result).findings}
    made |= {judge.SEAL.id, judge.AGREES.id}
    assert {rule.id for rule in rules.RULES} == made and all(rule.why for rule in rules.RULES)
    assert made | set(rules.LEFT_OUT) >= {f"V{number:02}" for number in range(1, 22)}
    assert not made & set(rules.LEFT_OUT)


def test_a_submission_is_the_median_of_three_runs() -> None:
    assert rules.submission_score([3.0, 1.0, 2.5]) == 2.5
    assert len(set(rules.SEEDS)) == rules.REPETITIONS == 3
    for runs in ([], [1.0], [1.0, 2.0], [1.0] * 4):
        with pytest.raises(ValueError, match="3 runs"):
            rules.submission_score(runs)


# -- the arithmetic of the authors' published traces -----------------------------------------------


def test_an_epoch_of_resnet50_has_the_authors_operations() -> None:
    # Their profiler counts 7,806,583,495 operations forward and 23,053,458,315 for training; their epoch is
    # nominal, 1,280,000 x 23,053,458,315 + 50,000 x 7,806,583,495 = 29,508,426,643,200,000 +
    # 390,329,174,750,000.
    train, val = score.resnet50_operations()
    epoch = score.operations(train, val, 1_280_000, 50_000)
    assert epoch == 29_898_755_817_950_000
    assert f"{epoch:.5e}" == "2.98988e+16"
    # 2.98988e16 / 1.28e6 = 23.358 Gop for an image and its share of the validation: so much is one image a
    # second.
    assert epoch / 1_280_000 == pytest.approx(23.358e9, rel=1e-4)
    assert score.normalised(23.358e9) == pytest.approx(1.0, rel=1e-4)


def test_the_published_regulated_score_follows_from_its_error_and_rate() -> None:
    # 8 accelerators: error 24.7 %, 337.3 TFLOPS, regulated 471.6. The printed digits allow an error of 24.65
    # to 24.75 % and a rate of 337.25 to 337.35: -ln(0.2475) x 337.25 = 470.9, -ln(0.2465) x 337.35 = 472.4.
    low, high = score.regulated(0.2475, 50_000, 337.25e12), score.regulated(0.2465, 50_000, 337.35e12)
    assert (round(low / 1e12, 1), round(high / 1e12, 1)) == (470.9, 472.4)
    assert low <= 471.6e12 <= high
    assert low < score.regulated(0.247, 50_000, 337.3e12) < high


def test_a_series_of_epochs_has_the_rate_of_its_sum() -> None:
    # One accelerator at 40.21 TFLOPS takes 2.98988e16 / 40.21e12 = 743.6 s for an epoch. After five epochs
    # (3718 s) the tick at 3960 s (1.1 h) still has five of them: 5 x 2.98988e16 / 3960 = 37.75 TFLOPS.
    train, val = score.resnet50_operations()
    epoch = score.operations(train, val, 1_280_000, 50_000)
    seconds = epoch / 40.21e12
    assert seconds == pytest.approx(743.6, abs=0.1)
    ends = np.arange(1, 6) * seconds
    errors, sizes = np.array([0.9, 0.6, 0.4, 0.287, 0.3]), np.full(5, 50_000)
    times = score.tick_times(3960.0, 360.0)
    series = score.score_series(times, ends, [epoch] * 5, errors, sizes, np.ones(5, bool))
    assert [s.ops // epoch for s in series] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5]
    assert series[-1].rate == pytest.approx(37.75e12, rel=1e-3)
    assert series[-1].best_error == 0.287
    assert series[-1].regulated == pytest.approx(-math.log(0.287) * series[-1].rate)


# -- official runs ---------------------------------------------------------------------------------


def changed(result: Result, attributes: dict[str, Any], inventory: dict[str, Any] | None = None) -> set[str]:
    """Checks that a changed result does not pass, fatal or not."""
    documents = dict(result.documents)
    if inventory is not None:
        documents["system/inventory_json"] = json.dumps(inventory)
    new = Result(result.tables, result.attributes | attributes, documents, [], "")
    return {finding.id for finding in judge.judge_content(new).findings if not finding.passed}


DIGITS = "d887b026937c204d826340c4757bb1bda28885fbfa68b4af77e476171b6ec443"

#: The machine of an official run, without accelerators.
MACHINE = {
    **official_run.MACHINE,
    "nodes": [{"nodes": "0-1", "accelerators": "this node has no accelerator"}],
}


@pytest.mark.parametrize(
    ("attributes", "finds", "no_longer"),
    [
        ({"error_final": math.nan, "error_final_trial": -1}, "V03", ""),
        ({"error_final": 0.301}, "V03", ""),
        # One image to either side of the 63 of training is the slack of a small set, two are not.
        ({"error_final": 64 / 360}, "", "V03"),
        ({"error_final": 62 / 360}, "", "V03"),
        ({"error_final": 65 / 360}, "V03", ""),
        ({"error_final": 61 / 360}, "V03", ""),
        ({"error_final": 63.5 / 360}, "V03", ""),
        # The digits have a known content, and 300 of them none that is known.
        ({"dataset_sha256": DIGITS}, "", "V15"),
        ({"dataset_sha256": "a" * 64}, "V15", ""),
        ({"dataset_sha256": "a" * 64, "train_images": 300}, "", "V15"),
        ({"dataset_sha256": "a" * 63 + "g"}, "V15", ""),
        ({"end": "drained"}, "I16", ""),
        ({"tick": 8.5}, "V14", ""),  # one sample
        # Nothing was trained from 8.5 s on, so the rate at 16 s is 20 / 16 of that at 20 s: it drifts by 25
        # %.
        ({"core_seconds": 20.0}, "V14", ""),
    ],
)
def test_official_checks_measure_trial_runs_too(
    result: Result, attributes: dict[str, Any], finds: str, no_longer: str
) -> None:
    # The example is too short, and its machine, data set and program are made up.
    before = {"I16", "V15", "V18", "V19"}
    assert changed(result, {}) == before
    assert judge.judge_content(result).valid
    after = changed(result, attributes)
    assert (not finds or finds in after) and (not no_longer or no_longer not in after)


@pytest.mark.parametrize(
    ("images", "most"), [(1, 1), (360, 1), (1499, 1), (2000, 2), (2999, 2), (50_000, 50)]
)
def test_a_reloaded_model_may_differ_in_one_image_per_thousand(images: int, most: int) -> None:
    slack = official.reload_slack(images)
    assert most / images <= slack < (most + 1) / images


def test_a_machine_without_blanks_and_a_clean_commit_pass(result: Result) -> None:
    assert not {"V18", "V19"} & changed(result, {}, MACHINE)
    for blank in ("", "unknown", "HOST_PLACEHOLDER", None, "  "):
        assert "V18" in changed(result, {}, MACHINE | {"hostname": blank}), blank
        assert "V18" in changed(result, {}, MACHINE | {"nodes": [{"accelerators": [{"name": blank}]}]}), blank
    for absent in ({}, []):
        assert "V18" in changed(result, {}, MACHINE | {"nodes": absent}), absent
    for source in ({}, None, {"commit": "0" * 40, "dirty": True}, {"commit": "abc", "dirty": False}):
        assert "V19" in changed(result, {}, MACHINE | {"source": source}), source


def test_the_checks_that_only_official_runs_must_pass() -> None:
    found = {rule.id for rule in rules.RULES if rule.severity == "official"}
    assert found == {"I16", "V03", "V09", "V14", "V15", "V18", "V19"}


def test_the_shortest_official_run_is_an_hour() -> None:
    assert OFFICIAL_SECONDS == 3600
