# SPDX-License-Identifier: Apache-2.0
"""Say before a run what its result will lack of the program's origin: an official one needs its commit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiperf_mpi.config import Config
from aiperf_mpi.config.classes import fixed_departures
from aiperf_mpi.planning.finding import Finding

_SUBJECT = "program"

#: What to do, by a word of the reason why git does not tell the commit; the last entry is for any other.
_REMEDIES = (
    ("dubious ownership", "run `git config --global --add safe.directory` with the folder of the checkout"),
    ("git is not installed", "install git on this host, or `pip install .` in a clone where git is"),
    ("took over", "run from a faster file system, or install the package with pip from a clone"),
    ("", "run from a clone with git, or install the package with pip from a clone"),
)


def provenance(source: Mapping[str, Any]) -> Finding:
    """Return what is known of the program's commit: a warning if an official run would lack it.

    `source` is that of the inventory (`aiperf_mpi.machine.source.source`).
    """
    commit, why = str(source.get("commit") or ""), str(source.get("why") or "no reason is recorded")
    files = str(source.get("files_sha256") or "not known")
    if not commit:
        remedy = next(text for word, text in _REMEDIES if word in why)
        return Finding(
            "warn",
            _SUBJECT,
            f"the commit of the program is not known, which an official run needs: {why}; the result has the "
            f"hash of its files ({files[:12]})",
            remedy,
        )
    if source.get("dirty"):
        return Finding(
            "warn",
            _SUBJECT,
            f"the program differs from its commit {commit[:12]}, which an official run may not: {why}",
            "commit the changes, or install the package anew from a clean clone",
        )
    if source.get("dirty") is None:
        return Finding(
            "warn",
            _SUBJECT,
            f"an official run needs to know if the program differs from its commit {commit[:12]}: {why}",
            _REMEDIES[-1][1],
        )
    return Finding("ok", _SUBJECT, f"commit {commit[:12]} without changes")


def before_official(config: Config, source: Mapping[str, Any] | None) -> list[Finding]:
    """Return what is known of the program's commit if the run may be official by its settings; else nothing.

    `source` is None on ranks that do not describe the program.
    """
    if source is None or fixed_departures(config):
        return []
    return [provenance(source)]


def hiding(source: Mapping[str, Any] | None) -> list[Finding]:
    """Return a warning if the package that runs hides another one that is installed."""
    if not source or not (hidden := source.get("hides")):
        return []
    text = f"the program's files are of the folder in which the run begins, not of the package in {hidden}"
    return [
        Finding("warn", _SUBJECT, text, "to run that one, begin in another folder, or set PYTHONSAFEPATH=1")
    ]
