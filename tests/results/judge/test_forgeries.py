# SPDX-License-Identifier: Apache-2.0
"""The table of forgeries: each is found by its check, and a file cannot prove the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.results.forgeries import FORGERIES
from tests.helpers.results.forging import Forgery, forge

# Each test writes and judges a whole file.
pytestmark = pytest.mark.slow

#: Every third one always, all with --full.
CASES = [
    pytest.param(forgery, id=forgery.name, marks=() if number % 3 == 0 else pytest.mark.full)
    for number, forgery in enumerate(FORGERIES)
]


def test_the_table_has_forgeries_of_each_kind() -> None:
    names = [forgery.name for forgery in FORGERIES]
    assert len(names) == len(set(names)) >= 50
    assert len([forgery for forgery in FORGERIES if not forgery.finds]) >= 6


@pytest.mark.parametrize("forgery", CASES)
def test_a_forgery_is_found_or_cannot_be(forgery: Forgery, path: Path, tmp_path: Path) -> None:
    verdict = forge(forgery, tmp_path, path)
    if forgery.finds:
        assert forgery.finds in verdict.reason_ids, verdict.reasons
    else:
        assert verdict.valid, verdict.reasons
