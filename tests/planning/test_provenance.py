# SPDX-License-Identifier: Apache-2.0
"""What an official run will lack of the program's origin is said before it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from aiperf_mpi.config import Config, load
from aiperf_mpi.planning.provenance import before_official, hiding, provenance

COMMIT, FILES = "0123456789ab" + "0" * 28, "fedcba987654" + "0" * 52


def test_a_clean_commit_is_fine() -> None:
    found = provenance({"commit": COMMIT, "dirty": False, "why": "", "files_sha256": FILES})
    assert (found.level, found.text, found.remedy) == ("ok", "commit 0123456789ab without changes", "")


@pytest.mark.parametrize(
    ("source", "text", "remedy"),
    [
        ({"commit": "", "why": "git: fatal: detected dubious ownership"}, "fedcba987654", "safe.directory"),
        ({"commit": "", "why": "git is not installed on this host"}, "not installed", "install git"),
        ({"commit": "", "why": "git rev-parse took over 10 s"}, "took over", "faster file system"),
        ({"commit": "", "why": "git: fatal: not a git repository"}, "not a git", "from a clone with git"),
        ({"commit": COMMIT, "dirty": True, "why": "3 tracked files were changed"}, "3 tracked", "commit the"),
        ({"commit": COMMIT, "dirty": None, "why": "from an archive"}, "from an archive", "from a clone"),
        ({}, "no reason is recorded", "from a clone with git"),
    ],
)
def test_what_is_lacking_is_a_warning_with_its_remedy(source: dict[str, Any], text: str, remedy: str) -> None:
    found = provenance({"dirty": None, "files_sha256": FILES} | source if source else source)
    assert found.level == "warn" and text in found.text and remedy in found.remedy
    assert "official run" in found.text


def test_it_is_said_before_a_run_that_may_be_official() -> None:
    # The rules' own settings last an hour on ImageNet; the demo has other data, which is a fixed rule.
    (found,) = before_official(Config(), {})
    assert found.level == "warn"
    short = replace(Config(), run=replace(Config().run, time_limit=60.0))
    for config, source in ((Config(), None), (short, {}), (load(preset="demo"), {})):
        assert before_official(config, source) == []


def test_a_hidden_package_is_said() -> None:
    (found,) = hiding({"hides": "/opt/site-packages/aiperf_mpi"})
    assert found.level == "warn" and "/opt/site-packages" in found.text and "PYTHONSAFEPATH" in found.remedy
    assert hiding({"hides": ""}) == hiding(None) == []
