# SPDX-License-Identifier: Apache-2.0
"""Who may import what: pure modules without JAX and MPI, JAX modules without MPI, also indirectly."""

from __future__ import annotations

import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

PACKAGE = "aiperf_mpi"
JAX, MPI = ("jax", "jaxlib", "flax", "optax"), ("mpi4py",)

#: Rooms of the house, the first match counts: patterns of module names, and what must not be imported there.
ROOMS = {
    "MPI": ((f"{PACKAGE}.parallel*", f"{PACKAGE}.commands*", f"{PACKAGE}.__main__"), ()),
    "JAX": ((f"{PACKAGE}.training*", f"{PACKAGE}.crosscheck*"), MPI),
    "pure": ((PACKAGE, f"{PACKAGE}.*"), JAX + MPI),
}

#: Imports each module named on its command line with some packages blocked; says which ones failed, and why.
PROBE = """
import importlib, sys, traceback
blocked, names = sys.argv[1].split(","), sys.argv[2:]
sys.modules.update({name: None for name in blocked if name})
failed = False
for name in names:
    try:
        importlib.import_module(name)
    except Exception:
        failed = True
        print(name, traceback.format_exc(), sep="\\n")
raise SystemExit(failed)
"""


def modules(root: Path) -> dict[str, list[str]]:
    """The package's modules by room, from the files, so that a new one is covered without being named."""
    rooms: dict[str, list[str]] = {room: [] for room in ROOMS}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        room = next(room for room, (patterns, _) in ROOMS.items() if any(fnmatch(name, p) for p in patterns))
        rooms[room].append(name)
    return rooms


def test_every_package_is_seen(root: Path) -> None:
    found = modules(root)
    assert {f"{PACKAGE}.search.nas", f"{PACKAGE}.config", f"{PACKAGE}.opcount.analytical"} <= set(
        found["pure"]
    )
    assert "aiperf_mpi.training.model.resnet" in found["JAX"]
    above = (f"{PACKAGE}.parallel", f"{PACKAGE}.commands", f"{PACKAGE}.__main__")
    assert all(name.startswith(above) for name in found["MPI"])


@pytest.mark.parametrize("room", [room for room, (_, blocked) in ROOMS.items() if blocked])
def test_a_room_imports_nothing_that_is_blocked_there(room: str, root: Path) -> None:
    names, blocked = modules(root)[room], ROOMS[room][1]
    done = subprocess.run(
        [sys.executable, "-c", PROBE, ",".join(blocked), *names],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, (
        f"{room} modules need one of {', '.join(blocked)}:\n{done.stdout}{done.stderr}"
    )


def test_the_probe_finds_an_import_of_what_is_blocked(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, "json", f"{PACKAGE}.network.architecture"],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 1 and "json" in done.stdout
