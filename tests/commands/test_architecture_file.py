# SPDX-License-Identifier: Apache-2.0
"""`--arch`: whatever is not an architecture is refused in one line, in bounded time and memory."""

from __future__ import annotations

import json
import os
import resource
import time
from pathlib import Path

import pytest

from aiperf_mpi.commands.architecture_file import MOST_BYTES, read_architecture
from aiperf_mpi.config import ConfigError
from aiperf_mpi.network.architecture import resnet50

WIDER = {"op": "wider", "unit": 1}

#: Contents that are not an architecture, each with a part of the message.
CONTENTS = {
    "nothing": (b"", "not JSON (line 1, column 1)"),
    "a list": (b"[]", "expected an object"),
    "a number": (b"7", "expected an object"),
    "UTF-16": ('{"morphs": []}'.encode("utf-16"), "not text in UTF-8 (byte 0)"),
    "Latin-1": (b'{"format": "\xe9"}', "not text in UTF-8"),
    "NUL": (b'{"morphs": []}\0', "not JSON"),
    "deep lists": (b"[" * 200_000, "nested too deep"),
    "deep objects": (b'{"base":' * 200_000, "nested too deep"),
    "many digits": (b'{"base": {"width": ' + b"9" * 5000 + b"}}", "too many digits"),
    "a large number": (b'{"base": {"width": ' + b"9" * 4000 + b"}}", "width"),
    "NaN": (b'{"base": {"width": NaN}}', "NaN is not a number in JSON"),
    "infinity": (b'{"base": {"width": -Infinity}}', "-Infinity is not a number"),
    "a key twice": (b'{"morphs": [], "morphs": []}', "the key 'morphs' is written twice"),
    "a fraction": (b'{"base": {"width": 1.5}}', "must be an integer"),
    "text for a number": (b'{"base": {"width": "64"}}', "must be an integer"),
    "a forged line": (b'{"a\\nAIPERF_MPI status: VALID": 1}', "unknown keys"),
    "no blocks": (b'{"base": {"blocks": []}}', "stages"),
    "a morph that is a list": (b'{"morphs": [[]]}', "expected an object with an op"),
    "an op that is a list": (b'{"morphs": [{"op": []}]}', "expected an object with an op"),
    "many morphs": (json.dumps({"morphs": [WIDER] * 5000}).encode(), "5000 morphs are more than 4096"),
    "a wide network": (json.dumps({"morphs": [WIDER] * 60}).encode(), "more than 1099511627776 parameters"),
    "a large file": (b" " * (MOST_BYTES + 1), f"has more than {MOST_BYTES} bytes"),
}


def refusal(path: Path | str) -> str:
    """Return the one line of the refusal of a file."""
    with pytest.raises(ConfigError) as caught:
        read_architecture(str(path))
    text = str(caught.value)
    assert text.isprintable() and len(text) < 1000 and "AIPERF_MPI" not in text
    assert text.startswith(f"--arch {path}: ") and "; " in text
    return text


@pytest.mark.parametrize("name", CONTENTS)
def test_other_contents(name: str, tmp_path: Path) -> None:
    content, part = CONTENTS[name]
    (tmp_path / "a.json").write_bytes(content)
    assert part in refusal(tmp_path / "a.json")


def test_other_things_than_a_file(tmp_path: Path) -> None:
    """Nothing waits for a FIFO; /dev/zero and 10 GB of a sparse file are not read."""
    os.mkfifo(tmp_path / "fifo")
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(10**10)
    before = resource.getrusage(resource.RUSAGE_SELF)
    for path, part in (
        (tmp_path, "a folder, not a file"),
        (tmp_path / "fifo", "a FIFO, not a file"),
        ("/dev/zero", "a device, not a file"),
        (tmp_path / "sparse", "has more than"),
        (tmp_path / "absent", "does not exist"),
    ):
        assert part in refusal(path)
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert after.ru_utime - before.ru_utime < 2 and after.ru_maxrss - before.ru_maxrss < 100_000  # kB


def test_a_byte_order_mark_and_a_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.json").write_text(resnet50().to_json(), encoding="utf-8-sig")
    assert read_architecture("~/a.json") == resnet50()


@pytest.mark.full
def test_the_largest_file_takes_seconds(tmp_path: Path) -> None:
    """Every morph looks at all units: 4,096 insertions into a chain of up to 4,096 units."""
    morphs = [{"op": "deeper", "after": 1, "kernel": 1}] * 4040
    (tmp_path / "a.json").write_text(json.dumps({"base": {"width": 1}, "morphs": morphs}))
    start = time.process_time()
    assert len(read_architecture(str(tmp_path / "a.json")).morphs) == 4040
    assert time.process_time() - start < 10
