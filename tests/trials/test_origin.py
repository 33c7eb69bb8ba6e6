# SPDX-License-Identifier: Apache-2.0
"""Records keep what chose a candidate, and what was expected of it."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from aiperf_mpi.network.architecture import Architecture
from aiperf_mpi.trials import record as rec
from aiperf_mpi.trials.candidate import Candidate
from aiperf_mpi.trials.origin import CHOSEN_BY, TUNED_BY, UNKNOWN, Origin, expectation, origin_of
from tests.helpers.trials.candidates import SMALL, child


@pytest.mark.parametrize("chosen_by", CHOSEN_BY)
@pytest.mark.parametrize("tuned_by", TUNED_BY)
def test_both_records_of_a_candidate_keep_its_origin(chosen_by: str, tuned_by: str) -> None:
    # 0.1 is not a float32: the origin holds what the record can.
    origin = Origin(chosen_by, tuned_by, expectation(0.1, 0.025))
    candidate = dataclasses.replace(child(), trial_id=4, origin=origin)
    for record in (candidate.to_record(1.0), candidate.outcome(rec.DONE, 2.0, best_error=0.2)):
        assert rec.check(record) and origin_of(record) == origin
    parent = Architecture(SMALL)
    assert Candidate.from_record(candidate.to_record(1.0), parent, 4) == candidate


def test_a_record_of_an_earlier_version_has_no_origin() -> None:
    # Its spare bytes are zeros.
    assert origin_of(rec.new_record()) == UNKNOWN == child().origin
    assert origin_of(child().to_record(0.0)) == UNKNOWN


def test_codes_of_a_later_version_are_not_known() -> None:
    record = rec.new_record()
    record["chosen_by"], record["tuned_by"] = len(CHOSEN_BY), 255
    assert origin_of(record) == UNKNOWN


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="not in tuple"):
        dataclasses.replace(child(), origin=Origin("guessed")).to_record(0.0)


@pytest.mark.parametrize("numbers", [(math.nan, 0.1), (0.1, math.inf), (1e60, 0.1)])
def test_only_finite_numbers_are_expected(numbers: tuple[float, float]) -> None:
    with np.errstate(over="ignore"):
        assert expectation(*numbers) is None
