# SPDX-License-Identifier: Apache-2.0
"""The limits of this process's control groups on memory and processes: every level, version 1 and 2.

Batch systems and containers set a limit on a group somewhere between a process and the root of the tree; the
lowest limit of all levels holds. A group is named by its folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

#: Limits from here on mean "no limit": version 1 shows the largest multiple of a page below 2^63.
UNLIMITED = 2**60


#: The controllers whose limits are read.
MEMORY, PROCESSES = "memory", "pids"


@dataclass(frozen=True, slots=True)
class Group:
    """A control group with a limit on its memory, in bytes, or on its processes and threads.

    Attributes:
        name: its folder, or for a level that is hidden from this process, that of its innermost group.
        limit: of the group and all groups below it.
        used: what it uses and cannot give back; files that are only cached do not count.
    """

    name: str
    limit: int
    used: int

    @property
    def free(self) -> int:
        """Bytes, or processes and threads, that the group may still use."""
        return max(0, self.limit - self.used)


@dataclass(frozen=True, slots=True)
class _Mount:
    """A mounted tree of control groups: its version, the group at its top, and where it is mounted."""

    version: int
    top: str
    point: str


def groups_with_limit(root: Path = Path("/"), controller: str = MEMORY) -> tuple[Group, ...]:
    """Return the groups of this process that limit its memory (or PROCESSES), from the innermost out.

    Files of the system are read below `root`. What cannot be read counts as no limit.
    """
    paths = _paths(_lines(root / "proc" / "self" / "cgroup"), controller)
    found: list[Group] = []
    for mount in _mounts(_lines(root / "proc" / "self" / "mountinfo"), controller):
        if mount.version not in paths:
            continue
        levels = list(_levels(root, mount, paths[mount.version]))
        read = _group if controller == MEMORY else _processes
        found += filter(None, (read(folder, mount.version, root) for folder in levels))
        if mount.version == 1 and levels and controller == MEMORY:
            found += _hidden(levels[0], found, root)
    return tuple(found)


def _paths(lines: list[str], controller: str) -> dict[int, str]:
    """Return the path of this process's group by version: of the controller, or of version 2."""
    paths: dict[int, str] = {}
    for line in lines:
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if hierarchy == "0" and not controllers:
            paths[2] = path
        elif controller in controllers.split(","):
            paths[1] = path
    return paths


def _mounts(lines: list[str], controller: str) -> Iterator[_Mount]:
    """Yield the mounted trees of a controller, from the lines of mountinfo."""
    for line in lines:
        fields, _, rest = line.partition(" - ")
        before, after = fields.split(" "), rest.split(" ")
        if len(before) < 5 or len(after) < 3:
            continue
        version = {"cgroup": 1, "cgroup2": 2}.get(after[0])
        if version == 2 or (version == 1 and controller in after[2].split(",")):
            yield _Mount(version, _plain(before[3]), _plain(before[4]))


def _plain(text: str) -> str:
    """Undo the escapes of mountinfo, such as `\\040` for a space."""
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text


def _levels(root: Path, mount: _Mount, path: str) -> Iterator[Path]:
    """Yield the folders of the groups of `path`, from the innermost to the top of the mount."""
    top = root / mount.point.lstrip("/")
    try:
        below = PurePosixPath(path).relative_to(mount.top)
    except ValueError:
        # The group is outside of what is mounted here, as in some containers: the top is all that is seen.
        below = PurePosixPath()
    if ".." in below.parts:
        below = PurePosixPath()
    folder = top / below
    while True:
        if folder.is_dir():
            yield folder
        if folder == top:
            return
        folder = folder.parent


def _group(folder: Path, version: int, root: Path) -> Group | None:
    """Return the memory of one group, None if it has no limit."""
    names = ("memory.max", "memory.current") if version == 2 else _NAMES_1
    limit = _number(folder / names[0])
    if limit is None or limit >= UNLIMITED:
        return None
    stat = _stat(folder)
    cached = [stat.get(f"{prefix}{kind}_file", 0) for prefix in (_PREFIX[version],) for kind in _CACHED]
    used = max(0, (_number(folder / names[1]) or 0) - sum(cached))
    return Group(f"/{folder.relative_to(root)}", limit, used)


def _processes(folder: Path, version: int, root: Path) -> Group | None:
    """Return the processes and threads of one group, None if it has no limit; both versions are alike."""
    limit = _number(folder / "pids.max")
    if limit is None:
        return None
    return Group(f"/{folder.relative_to(root)}", limit, _number(folder / "pids.current") or 0)


_NAMES_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes")

#: How memory.stat names the sums over a group and all below it, and the kinds of files in the cache.
_PREFIX, _CACHED = {1: "total_", 2: ""}, ("active", "inactive")


def _hidden(innermost: Path, found: list[Group], root: Path) -> Iterator[Group]:
    """Yield the limit of a level that no mount shows; version 1 tells the lowest of all levels."""
    stat = _stat(innermost)
    lowest = stat.get("hierarchical_memory_limit", UNLIMITED)
    if lowest < min([UNLIMITED, *(group.limit for group in found)]):
        used = sum(stat.get(f"total_{kind}", 0) for kind in ("rss", "shmem"))
        yield Group(f"above /{innermost.relative_to(root)}", lowest, used)


def _stat(folder: Path) -> dict[str, int]:
    """Return the numbers of a group's memory.stat."""
    pairs = (line.split() for line in _lines(folder / "memory.stat"))
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def _number(path: Path) -> int | None:
    """Return the number in a file of the kernel; None without one, as for `max`."""
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdigit() else None


def _lines(path: Path) -> list[str]:
    """Return the lines of a file of the kernel; none if it cannot be read."""
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []
