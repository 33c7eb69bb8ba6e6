# SPDX-License-Identifier: Apache-2.0
"""The house: which folder may import which, where JAX and MPI are, and how large a folder may be."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "aiperf_mpi"

#: The folders from the roof down: each may import only those below it, and what its second word allows.
#: "": neither JAX nor MPI, also indirectly; "jax": no MPI; "mpi": both.
ROOMS = {
    "__main__": "mpi",
    "commands": "mpi",
    "parallel": "mpi",
    "parallel.coordinator": "mpi",
    "parallel.trainer": "mpi",
    "parallel.generator": "mpi",
    "parallel.replica": "mpi",
    "parallel.shared": "mpi",
    "parallel.launch": "mpi",
    "results": "",
    "results.output": "",
    "results.report": "",
    "results.judge": "",
    "results.judge.checks": "",
    "results.evidence": "",
    "results.file": "",
    "crosscheck": "jax",
    "search": "",
    "training": "jax",
    "training.steps": "jax",
    "training.model": "jax",
    "planning": "",
    "data": "",
    "trials": "",
    "config": "",
    "config.presets": "",
    "opcount": "",
    "network": "",
    "machine": "",
    # Single files on the ground: they import no folder.
    "": "",
}

#: What a room of each kind may not import, also indirectly.
JAX, MPI = ("jax", "jaxlib", "flax", "optax"), ("mpi4py",)
BLOCKED = {"": JAX + MPI, "jax": MPI}

#: Most files of a folder.
MOST_FILES = 14

#: Import each module named on the command line with some packages blocked; print those that fail, and why.
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


def modules(root: Path) -> dict[str, Path]:
    """Return the file of each module of the package, by the module's name without the package's."""
    files = sorted((root / PACKAGE).rglob("*.py"))
    names = (".".join(file.relative_to(root).with_suffix("").parts) for file in files)
    return {name.removesuffix(".__init__"): file for name, file in zip(names, files, strict=True)}


def room_of(module: str, file: Path) -> str:
    """Return the room of a module: its folder, as a key of ROOMS; `__main__` is one of its own."""
    if module == f"{PACKAGE}.__main__":
        return "__main__"
    folder = module if file.name == "__init__.py" else module.rpartition(".")[0]
    return folder.removeprefix(PACKAGE).removeprefix(".")


def imports(file: Path, known: dict[str, Path]) -> Iterator[str]:
    """Yield the package's modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == PACKAGE:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in known else node.module


def upward(known: dict[str, Path], order: list[str]) -> list[str]:
    """Return the imports of a room that is not below the importing one."""
    found = []
    for module, file in known.items():
        room = room_of(module, file)
        for target in imports(file, known):
            below = room_of(target, known[target])
            if below != room and order.index(below) <= order.index(room):
                found.append(f"{module} imports {target}: {room or 'the ground'} is not above {below}")
    return found


def test_every_folder_is_a_room(root: Path) -> None:
    known = modules(root)
    assert {room_of(module, file) for module, file in known.items()} == set(ROOMS)


def test_imports_between_rooms_run_down(root: Path) -> None:
    assert not upward(modules(root), list(ROOMS))


def test_an_upward_import_is_found(root: Path, tmp_path: Path) -> None:
    # The ground imports a room in a function, and a room imports one above it.
    ground, room = tmp_path / "ground.py", tmp_path / "room.py"
    ground.write_text(f"def late():\n    from {PACKAGE}.search import nas\n")
    room.write_text(f"from {PACKAGE}.results.judge.judge import judge\n")
    known = modules(root) | {f"{PACKAGE}.ground": ground, f"{PACKAGE}.network.room": room}
    assert [line.partition(":")[0] for line in upward(known, list(ROOMS))] == [
        f"{PACKAGE}.ground imports {PACKAGE}.search.nas",
        f"{PACKAGE}.network.room imports {PACKAGE}.results.judge.judge",
    ]


@pytest.mark.parametrize("kind", BLOCKED)
def test_a_room_imports_nothing_that_is_blocked_there(kind: str, root: Path) -> None:
    names = [name for name, file in modules(root).items() if ROOMS[room_of(name, file)] == kind]
    done = subprocess.run(
        [sys.executable, "-c", PROBE, ",".join(BLOCKED[kind]), *names],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=240,
    )
    problems = f"modules need one of {', '.join(BLOCKED[kind])}:\n{done.stdout}{done.stderr}"
    assert names and done.returncode == 0, problems


def test_the_probe_finds_a_blocked_import(root: Path) -> None:
    command = [sys.executable, "-c", PROBE, "json", f"{PACKAGE}.network.architecture"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=240)
    assert done.returncode == 1 and "json" in done.stdout


def test_every_folder_says_what_is_in_it(root: Path) -> None:
    for folder in {file.parent for file in modules(root).values()}:
        purpose = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
        assert purpose and len(purpose.splitlines()[0]) >= 20, f"{folder}: no docstring in __init__.py"


def test_no_folder_is_crowded(root: Path) -> None:
    folders = [file.parent for file in modules(root).values() if file.name != "__init__.py"]
    counts = {str(folder.relative_to(root)): folders.count(folder) for folder in set(folders)}
    assert {folder: count for folder, count in counts.items() if count > MOST_FILES} == {}
