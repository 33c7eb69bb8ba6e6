# SPDX-License-Identifier: Apache-2.0
"""docs/troubleshooting.md explains every message of the start, and no other."""

from __future__ import annotations

import ast
import importlib.util
import sys
from types import ModuleType

import pytest

from tests.helpers import launch


@pytest.fixture(scope="module")
def page() -> ModuleType:
    """Return docs/messages.py as a module."""
    spec = importlib.util.spec_from_file_location("messages", launch.ROOT / "docs" / "messages.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_every_message_is_explained_and_every_row_is_a_message(page: ModuleType) -> None:
    without, stale = page.missing()
    listed = "\n".join(without)
    assert not without, f"add rows to docs/troubleshooting.md (python docs/messages.py):\n{listed}"
    assert not stale, f"rows of messages that no source has: {stale}"
    # The collection has not become empty: a change of the calls would hide messages.
    assert len(page.messages()) > 120


def test_each_row_has_a_cause_and_a_remedy(page: ModuleType) -> None:
    lines = [line for line in page.PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert len(lines) == len(page.rows())
    for line in lines:
        cells = [cell.strip() for cell in line.replace("\\|", "").strip("|").split("|")]
        assert len(cells) == 3 and all(len(cell) > 2 for cell in cells), line


SOURCE = """
FORMAT = "take another value"
REASONS = {1: ("the first reason is long", ""), 2: ("the second reason is long", "")}

def why(number):
    return REASONS[number]

def check(path, words):
    problem = f"the path {path} cannot be read"
    if words:
        problem = "the words " + "are not known" + f"; {FORMAT}"
    raise ConfigError(problem)

def other(path, error):
    hint = f"; did you mean {error}?" if error else ""
    raise ConfigError(message("--config", path, *why(error)))

def third(rank):
    findings.append(Finding("ok", "subject", "everything is as it should be"))
    return Finding("warn", "subject", f"rank {rank} is {'very slow' if rank else 'slow'} on this host")
"""


def test_messages_are_read_from_the_source(page: ModuleType) -> None:
    tree = ast.parse(SOURCE)
    functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    found = {text for _, text in page._of(tree, page.Module(functions, page.assigned(tree.body)))}
    assert found == {
        "the path … cannot be read",
        "the words are not known; take another value",
        "the first reason is long",
        "the second reason is long",
        "rank … is … on this host",
    }
    assert page.explains("the words …; …", "the words are not known; take another")
    assert not page.explains("the words", "the words are not known; take another")
