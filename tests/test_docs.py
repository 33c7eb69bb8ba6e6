# SPDX-License-Identifier: Apache-2.0
"""The documents name files that exist, and their picture of the rooms is that of today's code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs import rooms

#: Names between backquotes that end like a file of the repository.
_FILE = re.compile(r"`([\w./-]+\.(?:py|md|toml|sh|slurm|pbs))`")

#: Links of Markdown to files.
_LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")

DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md", "benchmarks/README.md")


def documents(root: Path) -> list[Path]:
    """Return the documents of the repository."""
    return sorted(path for pattern in DOCUMENTS for path in root.glob(pattern))


def missing(document: Path, text: str, root: Path) -> list[str]:
    """Return the files that a document names and that do not exist.

    A name is one from the root, from the package, from tests/ or the document's folder. A bare name may be a
    file of any folder, as in "`history.py`" after its folder was named.
    """
    names = set(_FILE.findall(text)) | set(_LINK.findall(text))
    places = (root, root / rooms.PACKAGE, root / "tests", document.parent)
    bare = {
        path.name
        for folder in (root / rooms.PACKAGE, root / "tests", root / "benchmarks")
        for path in folder.rglob("*.py")
    }
    return sorted(
        name for name in names if not any((place / name).exists() for place in places) and name not in bare
    )


def test_the_picture_of_the_rooms_is_todays(root: Path) -> None:
    page = rooms.PAGE.read_text(encoding="utf-8")
    assert page == rooms.page_with(rooms.picture(root), page), "run: python docs/rooms.py --write"


def test_the_glossary_is_short_and_in_order(root: Path) -> None:
    text = (root / "docs" / "architecture.md").read_text(encoding="utf-8").partition("## Glossary")[2]
    words = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")][1:]
    assert 25 <= len(words) <= 40 and words == sorted(words, key=str.lower)


def test_every_file_that_a_document_names_exists(root: Path) -> None:
    found = {
        str(document.relative_to(root)): names
        for document in documents(root)
        if (names := missing(document, document.read_text(encoding="utf-8"), root))
    }
    assert found == {}


@pytest.mark.parametrize("name", ["search/nowhere.py", "nowhere.md", "docs/rooms.pyx.py"])
def test_a_missing_file_is_found(name: str, root: Path) -> None:
    assert missing(root / "README.md", f"see `{name}` and [this]({name})", root) == [name]
