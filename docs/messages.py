# SPDX-License-Identifier: Apache-2.0
"""The messages of the start, from the source: docs/troubleshooting.md explains each of them.

python docs/messages.py         print the messages that the page lacks, and the rows that no source has
python docs/messages.py --all   print all messages with their places
"""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "aiperf_mpi"
SETUP = ROOT / "bin" / "setup-environment"
PAGE = Path(__file__).with_name("troubleshooting.md")

#: What takes a message: its name, and the place of the text among its arguments.
TAKERS = {
    "LaunchError": 0,
    "ConfigError": 0,
    "AgreedError": 0,
    "Unsuitable": 0,
    "Refusal": 0,
    "FileError": 1,
    "Finding": 2,
    "bound": 0,
    "end_job": 1,
    "lines": 0,
    "message": 2,
    "refusal": 1,
    "refuse": 1,
}

#: Functions that return a message, or nothing: what has led to an error of Python.
EXPLAINING = ("_without_own", "_foreign")

#: Rooms that speak only after the start, or for other commands than a run.
ELSEWHERE = (
    "crosscheck",
    "network",
    "opcount",
    "results/evidence",
    "results/judge",
    "results/report",
    "search",
)

#: What is filled in, and the least letters of a message and of a part of it that is not filled in.
FILLED, LETTERS, PART_LETTERS = "…", 8, 12

#: Most readings of one expression, whose parts may be one of several texts each.
_MOST = 24


class Module(NamedTuple):
    """The functions of the package by name, and the constants of one module."""

    functions: dict[str, ast.FunctionDef]
    constants: dict[str, list[ast.expr]]


def assigned(nodes: Iterable[ast.AST]) -> dict[str, list[ast.expr]]:
    """Return the expressions that are assigned to each name."""
    found: dict[str, list[ast.expr]] = {}
    for node in nodes:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        value = getattr(node, "value", None)
        for target in targets:
            if isinstance(target, ast.Name) and isinstance(value, ast.expr):
                found.setdefault(target.id, []).append(value)
            elif isinstance(target, ast.Tuple) and isinstance(value, ast.expr):
                # Of several values that a call returns, the first is the text.
                values = value.elts if isinstance(value, ast.Tuple) else [value]
                for one, its in zip(target.elts, values, strict=False):
                    if isinstance(one, ast.Name):
                        found.setdefault(one.id, []).append(its)
    return found


class Reader:
    """Reads the texts that expressions of one function may have."""

    def __init__(self, module: Module, function: ast.FunctionDef | None, depth: int = 0) -> None:
        self._module, self._depth = module, depth
        self._assigned = dict(module.constants)
        if function:
            self._assigned |= assigned(ast.walk(function))

    def texts(self, node: ast.expr | None) -> list[str]:
        """Return the texts that an expression may have; FILLED for what is not a constant."""
        match node:
            case ast.Constant(value=str() as text):
                return [text or FILLED]
            case ast.JoinedStr(values=parts):
                return self._joined(parts)
            case ast.FormattedValue(value=ast.Name() | ast.IfExp() as value):
                # A short text, such as the name of a variable or a plural, is filled in.
                return [text if letters(text) >= PART_LETTERS else FILLED for text in self.texts(value)]
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return self._joined([left, right])
            case ast.IfExp(body=body, orelse=orelse):
                return self.texts(body) + self.texts(orelse)
            case ast.BoolOp(values=values):
                return [text for value in values for text in self.texts(value)]
            case ast.NamedExpr(value=value):
                return self.texts(value)
            case ast.Name(id=name) if name in self._assigned and self._depth < 6:
                values, self._depth = self._assigned[name], self._depth + 1
                found = [text for value in values for text in self.texts(value)]
                self._depth -= 1
                return found or [FILLED]
            case ast.Call(func=ast.Name(id=name)) if name in self._module.functions and self._depth < 3:
                return self._returned(self._module.functions[name])
            case ast.Subscript(value=ast.Name(id=name)) if name in self._assigned:
                return [text for value in self._assigned[name] for text in self.texts(value)]
            case ast.Dict(values=values):
                return [text for value in values for text in self.texts(value)]
            case ast.Tuple(elts=[first, *_]):
                return self.texts(first)
            case ast.Starred(value=value):
                return self.texts(value)
            case ast.Call(func=ast.Attribute(attr="join"), args=[ast.GeneratorExp(elt=element)]):
                return self.texts(element)
            case _:
                return [FILLED]

    def _joined(self, parts: list[ast.expr]) -> list[str]:
        readings = ["".join(one) for one in product(*(dict.fromkeys(self.texts(part)) for part in parts))]
        return readings[:_MOST]

    def _returned(self, function: ast.FunctionDef) -> list[str]:
        inside = Reader(self._module, function, self._depth + 1)
        returned = [node.value for node in ast.walk(function) if isinstance(node, ast.Return) and node.value]
        return [text for value in returned for text in inside.texts(value)] or [FILLED]


def messages() -> dict[str, str]:
    """Return the messages of the start, and the place in the source of each."""
    trees = {file: ast.parse(file.read_text(encoding="utf-8")) for file in sorted(PACKAGE.rglob("*.py"))}
    nodes = (node for tree in trees.values() for node in ast.walk(tree))
    functions = {node.name: node for node in nodes if isinstance(node, ast.FunctionDef)}
    found: dict[str, str] = {}
    for file, tree in trees.items():
        place = file.relative_to(PACKAGE).as_posix()
        if not place.startswith(ELSEWHERE):
            for line, text in _of(tree, Module(functions, assigned(tree.body))):
                found.setdefault(text, f"{place}:{line}")
    for line, text in of_setup():
        found.setdefault(text, f"{SETUP.name}:{line}")
    return found


def _of(tree: ast.Module, module: Module) -> Iterator[tuple[int, str]]:
    """Yield the messages of a module, with their lines."""
    inside: dict[ast.AST, ast.FunctionDef] = {}
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        inside |= {node: function for node in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name in EXPLAINING:
            for text in Reader(module, None)._returned(node):
                if letters(text) >= LETTERS:
                    yield node.lineno, plain(text)
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        if name not in TAKERS or len(node.args) <= TAKERS[name]:
            continue
        first = node.args[0]
        if name == "Finding" and isinstance(first, ast.Constant) and first.value == "ok":
            continue
        reader = Reader(module, inside.get(node))
        for text in reader.texts(node.args[TAKERS[name]]):
            if letters(text) >= LETTERS:
                yield node.lineno, plain(text)


def letters(text: str) -> int:
    """Count the letters of a text."""
    return sum(letter.isalpha() for letter in text)


def of_setup() -> Iterator[tuple[int, str]]:
    """Yield the refusals of bin/setup-environment, with their lines."""
    script = SETUP.read_text(encoding="utf-8").replace('" \\\n', '" ')
    for call in re.finditer(r'fail ((?:"(?:[^"\\]|\\.)*"\s*)+)', script):
        text = re.sub(r'"\s*"', " ", call[1].strip()).strip('"').replace("\\`", "`")
        text = re.sub(r"\$\(\([^)]*\)\)|\$\{[^}]*\}|\$\w+", FILLED, text)
        yield script[: call.start()].count("\n") + 1, plain(text)


def plain(text: str) -> str:
    """Return a message in one line, with one FILLED for what is filled in."""
    return re.sub(f"{FILLED}+", FILLED, " ".join(text.split())).strip("`")


def rows() -> list[str]:
    """Return the messages that the page explains: the first cells of its tables, in code."""
    cells = re.findall(r"^\| (`+) ?(.+?) ?\1 \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return [plain(cell.replace("\\|", "|")) for _, cell in cells]


def explains(row: str, message: str) -> bool:
    """Whether a row is about a message: FILLED in the row stands for any text."""
    return re.fullmatch(".*".join(map(re.escape, row.split(FILLED))), message) is not None


def missing() -> tuple[list[str], list[str]]:
    """Return the messages that no row explains, with their places, and the rows without a message."""
    found, have = messages(), rows()
    without = [
        f"{place}: {text}" for text, place in found.items() if not any(explains(row, text) for row in have)
    ]
    stale = [row for row in have if letters(row) < LETTERS or not any(explains(row, text) for text in found)]
    return without, stale


def main() -> None:
    """Print all messages, or what the page lacks and has too much."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--all", action="store_true", help="print all messages")
    if parser.parse_args().all:
        print("\n".join(f"{place}: {text}" for text, place in messages().items()))
        return
    without, stale = missing()
    print(
        "\n".join([*(f"not explained: {text}" for text in without), *(f"no source: {row}" for row in stale)])
    )


if __name__ == "__main__":
    main()
