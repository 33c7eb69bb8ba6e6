# SPDX-License-Identifier: Apache-2.0
"""What an official run needs is known before its core time: each missing thing is one line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from aiperf_mpi.config import Config, load
from aiperf_mpi.results.evidence.requirements import Known, class_lines, missing, missing_before_data
from aiperf_mpi.site import official
from tests.helpers.results.official_run import LABELS, MACHINE, RULES, SETS, imagenet_manifest

KNOWN = Known(load("imagenet", sets=SETS), imagenet_manifest().to_record(LABELS), "8 x NVIDIA H200", MACHINE)


def changed(**settings: Any) -> Config:
    """The configuration of the example with other settings of section `run`."""
    return replace(KNOWN.config, run=replace(KNOWN.config.run, **settings))


def without(*names: str) -> dict[str, Any]:
    """The inventory without some entries."""
    return {name: value for name, value in MACHINE.items() if name not in names}


def test_nothing_is_missing() -> None:
    assert missing(KNOWN, RULES) == []
    # Whether a run says that it is official does not bear on what it lacks.
    assert missing(replace(KNOWN, config=changed(official=False)), RULES) == []


@pytest.mark.parametrize(
    ("change", "begins"),
    [
        (
            lambda: replace(KNOWN, config=changed(time_limit=3599.0)),
            "run.time_limit = 3599.0 (fixed: at least",
        ),
        (lambda: replace(KNOWN, config=changed(tick=60.0)), "run.tick = 60.0 (fixed: 360.0;"),
        (
            lambda: replace(KNOWN, manifest=imagenet_manifest(side=224).to_record(LABELS)),
            "data.stored_size =",
        ),
        (
            lambda: replace(KNOWN, manifest=imagenet_manifest(standin=True).to_record(LABELS)),
            "the data set is",
        ),
        (lambda: replace(KNOWN, manifest=imagenet_manifest().to_record()), "the classes and labels of the"),
        (
            lambda: replace(KNOWN, manifest=imagenet_manifest().to_record(replace(LABELS, val_sha256="0"))),
            "the packed set: names and classes of its validation pictures",
        ),
        (
            lambda: replace(
                KNOWN, device="8 x Other X1", inventory=without("nodes") | {"nodes": [{"nodes": "0"}]}
            ),
            "8 x Other X1: an official run's devices have a peak rate in",
        ),
        (
            lambda: replace(KNOWN, inventory=without("hostname")),
            "/system/inventory_json does not name hostname",
        ),
        (lambda: replace(KNOWN, inventory=without("source")), "the commit of the program is not known"),
        (
            lambda: replace(KNOWN, inventory=dict(MACHINE) | {"source": {"commit": "0" * 40, "dirty": True}}),
            "the program differs from its commit 000000000000",
        ),
    ],
)
def test_each_missing_thing_is_one_line(change: Callable[[], Known], begins: str) -> None:
    (line,) = missing(change(), RULES)
    assert line.startswith(begins) and "\n" not in line


def test_settings_and_program_are_known_before_the_data() -> None:
    assert missing_before_data(KNOWN.config, MACHINE["source"]) == []
    short, none = missing_before_data(changed(time_limit=60.0), None)
    assert short.startswith("run.time_limit") and none.startswith("the commit of the program is not known")


def test_a_trial_says_what_it_lacks_and_one_on_purpose_says_it_shortly() -> None:
    assert class_lines([]) == ["this run is official: nothing is missing before its core time"]
    assert class_lines(["a", "b"]) == [
        "this run is a trial; an official run would need this to be mended:",
        "a",
        "b",
    ]
    (line,) = class_lines([str(number) for number in range(7)])
    assert line == "this run is a trial, by 0 and 6 more things (run.official=true lists them)"


def test_doctor_refuses_a_trial_that_is_said_to_be_official() -> None:
    (fine,) = official.judge(KNOWN.config)
    assert fine.level == "ok" and "no setting is in the way" in fine.text
    (short,) = official.judge(changed(time_limit=60.0))
    assert short.level == "fail" and "--time-limit 3600 at least" in short.text
    (trial,) = official.judge(changed(time_limit=60.0, official=False))
    assert (trial.level, trial.text) == ("ok", short.text)
