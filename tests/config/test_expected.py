# SPDX-License-Identifier: Apache-2.0
"""The expected outcome of a preset: in each preset's file, no setting, and printed."""

from __future__ import annotations

import math
import tomllib
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest

from aiperf_mpi.config import from_toml, load, preset_expectation, preset_names
from aiperf_mpi.config.expected import Expected, expected_of
from tests.helpers.results.agreement import command


@pytest.mark.parametrize("name", preset_names())
def test_each_preset_says_what_to_expect(name: str) -> None:
    expected = preset_expectation(name)
    least, most = expected.trials
    assert 1 <= least <= most and 0 < expected.error <= 1
    # A run takes its core time and some minutes more.
    assert 0 < expected.minutes - load(name).run.time_limit / 60 <= 15
    assert expected.machine and expected.basis.startswith(("measured", "estimated"))
    assert "expected" not in load(name).to_toml()


@pytest.mark.parametrize("name", preset_names())
def test_a_copy_of_a_preset_is_a_configuration(name: str, tmp_path: Path) -> None:
    copy = tmp_path / "mine.toml"
    copy.write_text((files("aiperf_mpi.config.presets") / f"{name}.toml").read_text())
    config = load(files=[copy])
    assert replace(config, run=replace(config.run, preset=name)) == load(name)


def test_an_outcome_is_compared_with_it() -> None:
    expected = Expected("a machine", 4, (4, 14), 0.06, "measured")
    assert expected.holds(3.5, 4, 0.06) and expected.holds(1, 14, 0.0)
    assert not expected.holds(4.1, 4, 0.05) and not expected.holds(3, 3, 0.05)
    assert not expected.holds(3, 15, 0.05) and not expected.holds(3, 5, 0.07)
    assert str(expected) == "on a machine: 4 to 14 trials, an error of at most 0.06, in 4 minutes (measured)"
    unknown = Expected("a machine", 75, (2, 2), 1.0, "estimated")
    assert str(unknown) == "on a machine: 2 trials, in 75 minutes (estimated)"
    # A run without a validation has no error.
    assert unknown.holds(70, 2, math.nan)


def test_a_wrong_expectation_is_refused() -> None:
    with pytest.raises(KeyError):
        expected_of({})
    with pytest.raises(TypeError):
        expected_of({"expected": {"machine": "x", "minuets": 4, "trials": [1, 2]}})


def test_check_prints_it_and_the_precision_and_a_configuration() -> None:
    """`demo` trains on a device of the CPU by its own setting, so that no device is asked for."""
    checked = command("run", "--preset", "demo", "--check")
    first, second, *rest = checked.stdout.splitlines()
    assert first == f"# expected of preset demo {preset_expectation('demo')}"
    assert second == (
        "# train.precision is float32 on this host (1 x cpu): auto: XLA widens operands of 16 bits on CPUs "
        "to float32"
    )
    assert from_toml(checked.stdout) == from_toml("\n".join(rest)) and tomllib.loads(checked.stdout)

    # One that a person sets asks no device either.
    own = command("run", "--set", "train.precision=float16", "--check").stdout.splitlines()
    assert own[0] == "# train.precision is float16: set by train.precision" and own[1] == "[run]"


def test_estimate_prints_it() -> None:
    words = " ".join(command("estimate", "--preset", "demo", "--nodes", "1").stdout.split())
    assert f"Expected of preset demo {preset_expectation('demo')}" in words
