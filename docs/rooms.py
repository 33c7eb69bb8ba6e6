# SPDX-License-Identifier: Apache-2.0
"""The rooms of the package: its folders in the order of their imports, and the picture of them.

    python docs/rooms.py            print the picture (Mermaid)
    python docs/rooms.py --write    write it into docs/architecture.md

`tests/test_layering.py` holds the order, and that the picture is that of today's code.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "aiperf_mpi"

#: The rooms from the roof down: each may import only those below it. The value says what it may import else:
#: "" neither JAX nor MPI, also indirectly; "jax" no MPI; "mpi" both. The last room is the single files.
ROOMS = {
    "__main__": "mpi",
    "commands": "jax",
    "parallel": "mpi",
    "parallel.coordinator": "mpi",
    "parallel.trainer": "mpi",
    "parallel.generator": "mpi",
    "parallel.replica": "mpi",
    "parallel.shared": "mpi",
    "parallel.launch": "mpi",
    "site": "",
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
    "environment": "",
    "planning.estimate": "",
    "planning": "",
    "packing": "",
    "packing.sources": "",
    "data": "",
    "trials": "",
    "config": "",
    "config.presets": "",
    "opcount": "",
    "network": "",
    "links": "",
    "machine": "",
    "": "",
}

#: The page with the picture, and the lines around it.
PAGE = Path(__file__).with_name("architecture.md")
BEGIN, END = "<!-- rooms: made by docs/rooms.py -->", "<!-- end of rooms -->"


def modules(root: Path) -> dict[str, Path]:
    """Return the file of each module of the package of the repository at `root`, by its full name."""
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
    """Yield the modules of the package that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == PACKAGE:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in known else node.module


def room_imports(known: dict[str, Path]) -> dict[str, set[str]]:
    """Return the other rooms that each room imports."""
    found: dict[str, set[str]] = {room: set() for room in ROOMS}
    for module, file in known.items():
        room = room_of(module, file)
        found[room] |= {room_of(target, known[target]) for target in imports(file, known)} - {room}
    return found


def upward(known: dict[str, Path]) -> list[str]:
    """Return the imports that do not run down the order of ROOMS, a line each."""
    order, found = list(ROOMS), []
    for module, file in known.items():
        room = room_of(module, file)
        for target in imports(file, known):
            other = room_of(target, known[target])
            if other != room and order.index(other) <= order.index(room):
                found.append(f"{module} imports {target}: {other or 'the ground'} is not below {room}")
    return found


def direct(edges: dict[str, set[str]]) -> dict[str, set[str]]:
    """Return the arrows to draw: an import that a path of other arrows shows too is left out."""

    def reached(room: str) -> set[str]:
        return edges[room].union(*(reached(other) for other in edges[room]))

    return {
        room: {other for other in others if not any(other in reached(via) for via in others - {other})}
        for room, others in edges.items()
    }


def picture(root: Path) -> str:
    """Return the rooms and their arrows as a Mermaid flowchart."""
    known = modules(root)
    rooms = [room for room in ROOMS if room and room not in ("results", "config.presets")]
    edges = {room: others - {"", "config.presets"} for room, others in room_imports(known).items()}
    lines = ["flowchart TD"]
    for room in rooms:
        label = room.replace(".", "/") + ("/" if room != "__main__" else "")
        kind = {"mpi": ":::mpi", "jax": ":::jax"}.get(ROOMS[room], "")
        lines.append(f'    {_id(room)}["{label}"]{kind}')
    lines += [
        f"    {_id(room)} --> {_id(other)}"
        for room, others in direct(edges).items()
        for other in sorted(others, key=list(ROOMS).index)
    ]
    lines += [
        "    classDef default fill:#ffffff,stroke:#888888,color:#111",
        "    classDef mpi fill:#dbe9f6,stroke:#3465a4,color:#111",
        "    classDef jax fill:#fdebd0,stroke:#b9770e,color:#111",
    ]
    return "\n".join(lines)


def _id(room: str) -> str:
    """Return a room's name as Mermaid takes it for a node."""
    return room.strip("_").replace(".", "_")


def page_with(drawn: str, page: str) -> str:
    """Return the page with a picture between its two marks; raises ValueError for a page without them."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE.name} has no place for the picture: {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n```mermaid\n{drawn}\n```\n{END}{after}"


def main() -> None:
    """Print the picture, or write it into the page."""
    parser = argparse.ArgumentParser(description="Draw the rooms of the package and their imports.")
    parser.add_argument("--write", action="store_true", help=f"write the picture into docs/{PAGE.name}")
    write = parser.parse_args().write
    drawn = picture(PAGE.parent.parent)
    if write:
        PAGE.write_text(page_with(drawn, PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(drawn)


if __name__ == "__main__":
    main()
