# SPDX-License-Identifier: Apache-2.0
"""A source that many tests pack."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import pictures as photos
from tests.helpers import sources


@pytest.fixture(scope="session")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a source of 90 and 20 pictures in folders."""
    return sources.as_folders(tmp_path_factory.mktemp("few") / "source", photos.samples(90, 20, 90))
