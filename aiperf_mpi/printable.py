# SPDX-License-Identifier: Apache-2.0
"""Make text safe to print: that of a file, a file's name or an environment variable.

A line break in the name of a run or of a file would begin a new line with any content, such as a score. An
escape sequence would wipe the verdict from the terminal. Every such text passes through `plain` or `named`.
"""

from __future__ import annotations

import os
import re

#: Every line of the verdict on standard output begins with this; a site's tooling finds each key once.
PREFIX = "AIPERF_MPI"

#: PREFIX, but not the beginning of a name such as AIPERF_MPI_CACHE.
_LINE = re.compile(f"{PREFIX}(?!_[A-Z])")

#: Most characters of a path in a message, and of a whole message; the middle of a longer one is left out.
MOST_NAME, MOST_LINE = 240, 2000


def plain(text: str) -> str:
    """Return `text` on one line, with Python's escapes for unprintable characters and PREFIX in small
    letters.

    PREFIX in the name of an environment variable stays: messages name such variables.
    """
    if not text.isprintable():
        text = "".join(
            c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text
        )
    return _LINE.sub(PREFIX.lower(), text)


def named(path: str | bytes | os.PathLike[str]) -> str:
    """Return a path as a message names it: plain, and without its middle if it is longer than MOST_NAME."""
    return _shortened(plain(os.fsdecode(path)), MOST_NAME) or "(empty name)"


def one_line(text: str) -> str:
    """Return a message as it is printed: plain, and without its middle if it is longer than MOST_LINE."""
    return _shortened(plain(text), MOST_LINE)


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most // 2]}...{text[-(most // 2) :]}"


def counted(number: int, thing: str) -> str:
    """Return a number with its noun, in the plural unless it is 1: `1 replica`, `2 replicas`."""
    return f"{number} {thing}{'' if number == 1 else 's'}"
