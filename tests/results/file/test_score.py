# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of the score, against numbers worked out by hand and the authors' published ones."""

from __future__ import annotations

import math

import numpy as np
import pytest

from aiperf_mpi.results.file import score
from aiperf_mpi.results.file.rows import DONE, DROPPED, FAILED, REJECTED, STOPPED, UNFINISHED


def series(
    t_end: list[float],
    ops: list[int],
    errors: list[float],
    times: list[float],
    counts: list[bool] | None = None,
) -> list[score.Sample]:
    sizes = np.full(len(t_end), 360)
    used = np.array([True] * len(t_end) if counts is None else counts, bool)
    return score.score_series(times, np.array(t_end), ops, np.array(errors), sizes, used)


def test_operations_are_exact_beyond_64_bits() -> None:
    # (2^64 - 1)^2 + 7 x 11: no float and no 64-bit integer holds it.
    big = 2**64 - 1
    assert score.operations(big, 7, big, 11) == 340282366920938463426481119284349108225 + 77
    row = np.array([2**63, 1, 4, 0], np.uint64)
    assert score.operations(*row) == 2**65


@pytest.mark.parametrize(
    ("core", "tick", "expected"),
    [
        (
            3600.0,
            360.0,
            [360.0 * k for k in range(1, 11)],
        ),  # the paper's hour: ten ticks, the last at core stop
        (8.5, 2.0, [2.0, 4.0, 6.0, 8.0, 8.5]),
        (1.0, 2.0, [1.0]),  # shorter than a tick: core stop alone
        (0.3, 0.1, [0.1, 0.2, 0.3]),  # 0.3/0.1 is 2.9999999999999996
        (0.7, 0.1, [0.1, 0.2, 0.1 * 3, 0.4, 0.5, 0.1 * 6, 0.7]),  # 0.7/0.1 is 6.999999999999999
        (0.0, 1.0, []),
    ],
)
def test_ticks_end_at_core_stop(core: float, tick: float, expected: list[float]) -> None:
    assert score.tick_times(core, tick) == expected


@pytest.mark.parametrize(
    ("core", "tick"), [(math.nan, 1.0), (1.0, 0.0), (1.0, -1.0), (math.inf, 1.0), (1e9, 1e-9)]
)
def test_impossible_ticks_are_refused(core: float, tick: float) -> None:
    with pytest.raises(ValueError, match="core time"):
        score.tick_times(core, tick)


def test_a_row_counts_from_the_tick_at_which_it_ended() -> None:
    # Ends at 1, 2 (exactly the first tick) and 3; sums at 2: 10 + 20, at 3.5: 60; rates 30/2 and 60/3.5.
    samples = series([3.0, 1.0, 2.0], [30, 10, 20], [0.5, math.nan, 0.25], [2.0, 3.5])
    assert [(s.t, s.ops, s.rate, s.best_error) for s in samples] == [
        (2.0, 30, 15.0, 0.25),
        (3.5, 60, 60 / 3.5, 0.25),
    ]
    # -ln(0.25) = 2 ln 2 = 1.3862943611198906
    assert samples[0].regulated == pytest.approx(1.3862943611198906 * 15.0, rel=1e-15)


def test_sums_beyond_64_bits_are_exact() -> None:
    # Four rows of 2^64 - 1: their sum 4 x 2^64 - 4 has no float, and wraps in 64 bits.
    top = 2**64 - 1
    samples = series([1.0, 1.0, 1.0, 1.0], [top] * 4, [math.nan] * 4, [1.0])
    assert samples[0].ops == 73786976294838206460
    assert samples[0].rate == float(73786976294838206460)


def test_without_an_error_there_is_no_regulated_score() -> None:
    samples = series([1.0], [10], [math.nan], [1.0])
    assert math.isnan(samples[0].best_error) and math.isnan(samples[0].regulated) and samples[0].rate == 10.0


def test_errors_of_failed_trials_do_not_count() -> None:
    samples = series([1.0, 2.0], [0, 10], [0.01, 0.5], [2.0], counts=[False, True])
    assert samples[0].best_error == 0.5


def test_no_error_at_all_counts_as_one_wrong_image() -> None:
    # -ln(0) has no value; one of 360 images wrong: -ln(1/360) = ln 360 = 5.886104031450156.
    assert score.regulated(0.0, 360, 2.0) == pytest.approx(2 * 5.886104031450156, rel=1e-15)
    assert series([1.0], [10], [0.0], [1.0])[0].regulated == pytest.approx(58.86104031450156, rel=1e-15)
    assert math.isnan(score.regulated(0.0, 0, 2.0))


@pytest.mark.parametrize("error", [math.nan, -0.1, 1.1, math.inf])
def test_what_is_no_error_gives_no_regulated_score(error: float) -> None:
    assert math.isnan(score.regulated(error, 360, 1.0))


def test_all_wrong_is_worth_nothing() -> None:
    assert score.regulated(1.0, 360, 1e12) == 0.0


def test_the_authors_published_numbers() -> None:
    # Their trace: 337.3 TOPS at an error of 24.7 % is a regulated score between 470.9 and 472.4 (printed
    # digits).
    assert 470.9 <= score.regulated(0.247, 50_000, 337.3) <= 472.4


@pytest.mark.parametrize(
    ("status", "credited"),
    [(UNFINISHED, True), (DONE, True), (STOPPED, True), (FAILED, False), (REJECTED, False), (DROPPED, False)],
)
def test_credit_depends_on_the_trials_end_and_on_core_stop(status: int, credited: bool) -> None:
    assert score.is_credited(status, 10.0, 10.0) is credited
    assert not score.is_credited(status, 10.000001, 10.0)
    assert not score.is_credited(status, math.nan, 10.0)
