# SPDX-License-Identifier: Apache-2.0
"""Describe the file systems that a run uses: mount point, type, size and free space."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from aiperf_mpi.probe import NotKnown, probe

_NO_PLACE = "none: no path is set"

_UNKNOWN = "not reported by the system"


class Mount(NamedTuple):
    """A mounted file system: its device, mount point and type."""

    device: str
    path: str
    kind: str


def file_systems(places: Mapping[str, str]) -> dict[str, dict[str, Any] | str]:
    """Describe the file system of each place (name -> path), or say why it is not known; never raises.

    A network file system whose server is dead would keep its caller for ever, so it has a few seconds.
    An empty path means that the run does not need this place.
    """
    table = probe("the mounted file systems", _mounts)
    table = table if isinstance(table, list) else []
    return {
        name: probe(f"the file system of {path}", _file_system, path, table) if path else _NO_PLACE
        for name, path in places.items()
    }


def places(output: str, data: str) -> dict[str, str]:
    """Return the paths that every node uses: output folder, data set, shared memory and temporary files.

    The path of temporary files is empty if no folder for them can be written.
    """
    temporary = probe("the folder of temporary files", tempfile.gettempdir)
    if isinstance(temporary, NotKnown):
        # None of the usual folders can be written, or the working directory is gone.
        temporary = ""
    return {"output": output, "data": data, "shared_memory": "/dev/shm", "temporary": temporary}


def _file_system(path: str, table: list[Mount]) -> dict[str, Any] | str:
    """Describe the file system of `path`, or of its nearest existing parent; a text if it cannot be read."""
    place = Path(path).expanduser()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        stat = os.statvfs(place)
    except OSError as error:
        return f"{path}: {error.strerror}"

    # The mount with the longest path is the most specific; of equal paths, the last mount covers the others.
    mount = Mount(_UNKNOWN, _UNKNOWN, _UNKNOWN)
    real, longest = os.path.realpath(place), -1
    for candidate in table:
        root = candidate.path.rstrip("/")
        if (real == candidate.path or real.startswith(root + "/")) and len(candidate.path) >= longest:
            mount, longest = candidate, len(candidate.path)
    return {
        "path": path,
        "mount": _storable(mount.path),
        "type": mount.kind,
        "device": _storable(mount.device),
        "bytes": stat.f_blocks * stat.f_frsize,
        "free_bytes": stat.f_bavail * stat.f_frsize,
    }


def _mounts() -> list[Mount]:
    """Return every mount in mounting order; an empty list if the system shows none."""
    try:
        table = psutil.disk_partitions(all=True)
    except (OSError, psutil.Error):
        return []
    # psutil returns an empty device for a mount without one.
    return [Mount(entry.device or "none", entry.mountpoint, entry.fstype) for entry in table]


def _storable(name: str) -> str:
    """Return a file name whose bytes that are not UTF-8 are replaced, so that HDF5 can store it."""
    return os.fsencode(name).decode(errors="replace")
