# SPDX-License-Identifier: Apache-2.0
"""Read TOML that a person wrote: a regular file of bounded size, in UTF-8."""

from __future__ import annotations

import codecs
import tomllib
from pathlib import Path
from typing import Any

from aiperf_mpi.config.paths import expanded, message, readable_file, reading, status
from aiperf_mpi.config.setting import ConfigError
from aiperf_mpi.files import read_bytes
from aiperf_mpi.printable import plain

#: Most bytes of a configuration; all settings with their descriptions take less than a hundredth of it.
MOST_BYTES = 1 << 20

#: Most dots in a line. Python's reader takes quadratic time for a key of many parts.
MOST_DOTS = 64

#: Byte-order marks of encodings that are not UTF-8; those of UTF-32 begin like those of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}

_TAKES = "--config takes a TOML file"


class TomlError(ValueError):
    """A text is not TOML; the message says where and why, on one line."""


def parse(text: str) -> dict[str, Any]:
    """Return the tables of a TOML text. Raises TomlError, also for what Python's reader cannot take."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.count(".") > MOST_DOTS and not line.lstrip().startswith("#"):
            raise TomlError(f"not valid TOML: more than {MOST_DOTS} dots (at line {number})")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise TomlError(f"not valid TOML: {plain(str(error))}") from None
    except RecursionError:
        raise TomlError("not valid TOML: nested too deeply") from None
    except ValueError as error:
        # Python converts no integer of more than some thousand digits.
        reason = "a number has too many digits" if "digits" in str(error) else plain(str(error))
        raise TomlError(f"not valid TOML: {reason}") from None


def read(path: str | Path, absent: str = "check the path") -> dict[str, Any]:
    """Return the tables of a TOML file; `absent` is what to do if there is none.

    Raises ConfigError naming the file, why it cannot be read, and what to do. Never waits for a FIFO.
    """
    file = expanded("--config", path, stored=False)
    status("--config", file, f"{_TAKES}: {absent}")
    readable_file("--config", file, f"{_TAKES}: name one")
    with reading("--config", file, f"{_TAKES} of at most {MOST_BYTES} bytes"):
        content = read_bytes(file, MOST_BYTES)
    remedy = f"{_TAKES}: save it as UTF-8"
    for mark, encoding in _MARKS.items():
        if content.startswith(mark):
            raise ConfigError(message("--config", file, f"text in {encoding}, not in UTF-8", remedy))
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        reason = f"not text in UTF-8 (at byte {error.start})"
        raise ConfigError(message("--config", file, reason, remedy)) from None
    if "\0" in text:
        raise ConfigError(message("--config", file, "not text: it has NUL characters", remedy))
    try:
        return parse(text)
    except TomlError as error:
        raise ConfigError(message("--config", file, str(error), "mend the file")) from None
