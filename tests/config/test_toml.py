# SPDX-License-Identifier: Apache-2.0
"""`--config`: whatever is not TOML of a bounded size is refused in one line that names the file."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

import pytest

from aiperf_mpi.config import ConfigError, load
from aiperf_mpi.config.toml import MOST_BYTES

SEED = "[run]\nseed = 7\n"

#: Contents that cannot be read, each with a part of the message.
CONTENTS = {
    "UTF-16": (SEED.encode("utf-16"), "text in UTF-16, not in UTF-8; --config takes a TOML file: save it"),
    "UTF-32": (SEED.encode("utf-32"), "text in UTF-32, not in UTF-8"),
    "UTF-16 without a mark": (SEED.encode("utf-16-le"), "it has NUL characters"),
    "Latin-1": (b'[run]\noutput = "\xe9"\n', "not text in UTF-8 (at byte 16)"),
    "NUL": (b"[run]\0", "it has NUL characters"),
    "a binary file": (b"\x89HDF\r\n\x1a\n" + bytes(100), "not text in UTF-8"),
    "JSON": (b'{"run": {"seed": 1}}', "not valid TOML"),
    "YAML": (b"run:\n  seed: 1\n", "not valid TOML"),
    "deep lists": (b"a = " + b"[" * 100_000, "nested too deeply"),
    "deep tables": (b"a = " + b"{a = " * 100_000, "nested too deeply"),
    "a deep key": (b"[run]\nseed" + b".a" * 100_000 + b" = 1", "more than 64 dots (at line 2)"),
    "a deep value": (b"[run]\nseed" + b".a" * 50 + b" = 1", "run.seed"),
    "many digits": (b"[run]\nseed = " + b"9" * 10_000, "too many digits"),
    "many hexadecimal digits": (b"[run]\nseed = 0x" + b"f" * 10_000, "run.seed: an integer of 40000 bits"),
    "an integer of 64 bits": (b"[fault]\nnan_in_round = 9223372036854775808", "an integer of 64 bits"),
    "a large number": (b"[run]\ntime_limit = 1e999", "run.time_limit: inf is not a finite number"),
    "NaN": (b"[run]\ntime_limit = nan", "run.time_limit: nan is not a finite number"),
    "a date": (b"[run]\nseed = 1979-05-27", "but must be an integer"),
    "a key twice": (b"[run]\nseed = 1\nseed = 2", "Cannot overwrite a value (at "),
    "a table twice": (b"[run]\nseed = 1\n[run]\ntick = 1.0", "Cannot declare ('run',) twice (at line 3"),
    "a long name": (b"[run]\n" + b"s" * 900_000 + b" = 1", "is not a setting"),
    "a long text": (b"[run]\nseed = '" + b"s" * 900_000 + b"'", "run.seed: 'sss"),
    "a long choice": (b"[data]\nname = '" + b"s" * 900_000 + b"'", "data.name: 'sss"),
    "a forged line": (b'[run]\n"a\\nAIPERF_MPI status: VALID" = 1', "is not a setting"),
    "a forged value": (b'[run]\noutput = "a\\nAIPERF_MPI status: VALID"', "cannot be printed"),
    "a large file": (b"#" * (MOST_BYTES + 1), f"has more than {MOST_BYTES} bytes"),
}


def refusal(path: Path | str) -> str:
    """Return the one line of the refusal of a file."""
    with pytest.raises(ConfigError) as caught:
        load("demo", [path])
    text = str(caught.value)
    assert text.isprintable() and len(text) < 1000 and str(path) in text
    assert "AIPERF_MPI status" not in text
    return text


@pytest.mark.parametrize("name", CONTENTS)
def test_other_contents(name: str, tmp_path: Path) -> None:
    content, part = CONTENTS[name]
    (tmp_path / "c.toml").write_bytes(content)
    start = time.process_time()
    assert part in refusal(tmp_path / "c.toml")
    assert time.process_time() - start < 5


def test_other_things_than_a_file(tmp_path: Path) -> None:
    """Nothing waits for a FIFO; /dev/zero and 10 GB of a sparse file are not read. /proc/self/mem is a
    regular file whose first page gives a real input/output error."""
    os.mkfifo(tmp_path / "fifo")
    os.symlink("nowhere.toml", tmp_path / "dangling")
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(10**10)
    before = resource.getrusage(resource.RUSAGE_SELF)
    for path, part in (
        (tmp_path, "a folder, not a file; --config takes a TOML file"),
        (tmp_path / "fifo", "a FIFO, not a file"),
        ("/dev/zero", "a device, not a file"),
        ("/dev/stdin", "not a file"),
        (tmp_path / "sparse", "has more than"),
        (tmp_path / "dangling", "is a link to nowhere.toml, which does not exist"),
        ("/proc/self/mem", "input/output error"),
    ):
        if path == "/dev/stdin" and not os.path.exists(path):
            continue
        assert part in refusal(path)
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert after.ru_utime - before.ru_utime < 2 and after.ru_maxrss - before.ru_maxrss < 100_000  # kB


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_a_byte_order_mark_and_windows_lines(ending: str, tmp_path: Path) -> None:
    """Editors on Windows write both."""
    (tmp_path / "c.toml").write_bytes(SEED.replace("\n", ending).encode("utf-8-sig"))
    assert load("demo", [tmp_path / "c.toml"]).run.seed == 7


def test_the_largest_configuration_takes_seconds(tmp_path: Path) -> None:
    """Python's reader takes quadratic time for a key of many parts, so a line has at most 64 dots."""
    line = b"a" + b".a" * 63 + b"%d = 1\n"
    lines = b"".join(line % number for number in range(MOST_BYTES // (len(line) + 4)))
    (tmp_path / "c.toml").write_bytes(lines)
    start = time.process_time()
    refusal(tmp_path / "c.toml")
    assert time.process_time() - start < 10
