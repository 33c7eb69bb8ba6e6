# SPDX-License-Identifier: Apache-2.0
"""The house: which folder may import which, where JAX and MPI are, and how large things may be."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs import rooms

PACKAGE = rooms.PACKAGE

#: What a room of each kind may not import, also indirectly.
JAX, MPI = ("jax", "jaxlib", "flax", "optax"), ("mpi4py",)
BLOCKED = {"": JAX + MPI, "jax": MPI}

#: Most files of a folder, lines of a file, of a class and of a function.
MOST_FILES, MOST_LINES, MOST_CLASS_LINES, MOST_FUNCTION_LINES = 14, 400, 200, 60

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


def definitions(file: Path) -> Iterator[tuple[str, int, int]]:
    """Yield the name of each class and function in a file, its number of lines, and how many it may have."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            most = MOST_CLASS_LINES if isinstance(node, ast.ClassDef) else MOST_FUNCTION_LINES
            yield node.name, (node.end_lineno or 0) - node.lineno + 1, most


def test_every_folder_is_a_room(root: Path) -> None:
    known = rooms.modules(root)
    assert {rooms.room_of(module, file) for module, file in known.items()} == set(rooms.ROOMS)


def test_imports_between_rooms_run_down(root: Path) -> None:
    assert rooms.upward(rooms.modules(root)) == []


def test_an_upward_import_is_found(root: Path, tmp_path: Path) -> None:
    # A single file imports a room, in a function, and a room imports one above it.
    ground, room = tmp_path / "ground.py", tmp_path / "room.py"
    ground.write_text(f"def late():\n    from {PACKAGE}.search import nas\n")
    room.write_text(f"from {PACKAGE}.results.judge.judge import judge\n")
    known = rooms.modules(root) | {f"{PACKAGE}.ground": ground, f"{PACKAGE}.network.room": room}
    assert [line.partition(":")[0] for line in rooms.upward(known)] == [
        f"{PACKAGE}.ground imports {PACKAGE}.search.nas",
        f"{PACKAGE}.network.room imports {PACKAGE}.results.judge.judge",
    ]


@pytest.mark.parametrize("kind", BLOCKED)
def test_a_room_imports_nothing_that_is_blocked_there(kind: str, root: Path) -> None:
    known = rooms.modules(root)
    names = [name for name, file in known.items() if rooms.ROOMS[rooms.room_of(name, file)] == kind]
    command = [sys.executable, "-c", PROBE, ",".join(BLOCKED[kind]), *names]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=240)
    problems = f"modules need one of {', '.join(BLOCKED[kind])}:\n{done.stdout}{done.stderr}"
    assert names and done.returncode == 0, problems


def test_the_probe_finds_a_blocked_import(root: Path) -> None:
    command = [sys.executable, "-c", PROBE, "json", f"{PACKAGE}.network.architecture"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=240)
    assert done.returncode == 1 and "json" in done.stdout


def test_every_folder_says_what_is_in_it(root: Path) -> None:
    for folder in {file.parent for file in rooms.modules(root).values()}:
        purpose = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
        assert purpose and len(purpose.splitlines()[0]) >= 20, f"{folder}: no docstring in __init__.py"


def test_no_folder_is_crowded(root: Path) -> None:
    folders = [file.parent for file in rooms.modules(root).values() if file.name != "__init__.py"]
    counts = {str(folder.relative_to(root)): folders.count(folder) for folder in set(folders)}
    assert {folder: count for folder, count in counts.items() if count > MOST_FILES} == {}


def test_no_file_class_or_function_is_too_long(root: Path) -> None:
    long = []
    for name, file in rooms.modules(root).items():
        if (lines := len(file.read_text(encoding="utf-8").splitlines())) > MOST_LINES:
            long.append(f"{name}: {lines} lines, at most {MOST_LINES}")
        long += [
            f"{name}.{defined}: {lines} lines, at most {most}"
            for defined, lines, most in definitions(file)
            if lines > most
        ]
    assert long == []
