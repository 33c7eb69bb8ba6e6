# SPDX-License-Identifier: Apache-2.0
"""Run a command on a machine that is broken in one way: with other mounts, in namespaces of its own."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import pytest


@cache
def _allowed() -> bool:
    """Return whether this user may mount in a namespace of its own."""
    command = ["unshare", "-m", "sh", "-c", "mount -t tmpfs -o size=64k tmpfs /mnt"]
    try:
        return subprocess.run(command, capture_output=True, timeout=30).returncode == 0
    except OSError:
        return False


def with_mounts(mounts: Sequence[str], command: Sequence[str | Path]) -> list[str]:
    """Return a command that runs `command` after the shell's `mounts`, in a mount namespace of its own.

    Skips the test where that is not allowed.
    """
    if not _allowed():
        pytest.skip("this user may not mount (unshare -m)")
    words = shlex.join(str(word) for word in command)
    return ["unshare", "-m", "sh", "-c", "\n".join(["set -e", *mounts, f"exec {words}"])]


def broken(
    mounts: Sequence[str], command: Sequence[str | Path], env: Mapping[str, str], timeout: float = 60
) -> subprocess.CompletedProcess[str]:
    """Run `command` to its end after the `mounts`; see `with_mounts`."""
    return subprocess.run(
        with_mounts(mounts, command),
        env=dict(env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout,
    )
