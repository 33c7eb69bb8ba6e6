# SPDX-License-Identifier: Apache-2.0
"""The file systems that a run uses: where they are mounted, of what type, how large, and how full."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_MOUNTS = Path("/proc/self/mounts")


def file_systems(places: Mapping[str, str], mounts: Path = _MOUNTS) -> dict[str, dict[str, Any] | str]:
    """The file system of each place (name -> path; an empty path: none is needed), or why it is not known."""
    table = _mounts(mounts)
    return {
        name: _file_system(path, table) if path else "none: no path is set" for name, path in places.items()
    }


def places(output: str, data: str) -> dict[str, str]:
    """The places that every node uses: the output folder, the data set, shared memory, and temporary files
    (empty where there is no place for these)."""
    try:
        temporary = tempfile.gettempdir()
    except OSError:
        # None of the usual folders can be written, or the working directory is gone.
        temporary = ""
    return {"output": output, "data": data, "shared_memory": "/dev/shm", "temporary": temporary}


def _file_system(path: str, table: list[tuple[str, str, str]]) -> dict[str, Any] | str:
    place = Path(path).expanduser()
    # What does not exist yet will lie where its nearest parent lies.
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        stat = os.statvfs(place)
    except OSError as error:
        return f"{path}: {error.strerror}"
    real = os.path.realpath(place)
    # The mount whose path is the longest beginning of this one; of equals the last, which covers the others.
    inside = [row for row in table if real == row[1] or real.startswith(row[1].rstrip("/") + "/")]
    device, mount, kind = (
        max(enumerate(inside), key=lambda item: (len(item[1][1]), item[0]))[1]
        if inside
        else ("not told", "not told", "not told by the system")
    )
    return {
        "path": path,
        "mount": mount,
        "type": kind,
        "device": device,
        "bytes": stat.f_blocks * stat.f_frsize,
        "free_bytes": stat.f_bavail * stat.f_frsize,
    }


def _mounts(path: Path) -> list[tuple[str, str, str]]:
    """(device, mount point, type) of every mount; empty where the system shows none."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return []
    rows = [line.split() for line in lines]
    # Blanks in paths are written as \040.
    return [(row[0], row[1].replace("\\040", " "), row[2]) for row in rows if len(row) >= 3]
