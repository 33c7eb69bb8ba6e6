# SPDX-License-Identifier: Apache-2.0
"""Files that someone names: what is not a regular file is refused at once, and nothing is read beyond its
bound."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from aiperf_mpi.files import (
    FileError,
    credible_size,
    open_regular,
    read_bytes,
    read_text,
    size_and_data,
    wrong_path,
)
from aiperf_mpi.printable import MOST_NAME, named, plain

pytestmark = pytest.mark.timeout(20)


def _made(name: str, folder: Path) -> str:
    """Make the input `name` in a folder, and return its path."""
    path = folder / "input"
    if name == "fifo":
        os.mkfifo(path)
    elif name == "folder":
        path.mkdir()
    elif name == "socket":
        # The name of a socket has at most 107 characters, and a test's folder may be longer.
        with socket.socket(socket.AF_UNIX) as server:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            server.bind(f"/proc/self/fd/{descriptor}/input")
            os.close(descriptor)
    elif name == "loop":
        path.symlink_to(path)
    elif name == "dangling":
        path.symlink_to(folder / "nothing")
    elif name == "link to a fifo":
        os.mkfifo(folder / "other")
        path.symlink_to(folder / "other")
    elif name == "sparse":
        with path.open("wb") as file:
            file.truncate(10 << 30)
    elif name == "binary":
        path.write_bytes(b"\xff\xfe\x00")
    else:
        return name
    return str(path)


INPUTS = {
    "fifo": "a FIFO",
    "folder": "a folder",
    "socket": "a socket",
    "loop": "loop",
    "dangling": "no such file",
    "link to a fifo": "a FIFO",
    "sparse": "more than 1000 bytes",
    "binary": "UTF-8",
    "/dev/zero": "a device",
    "/dev/tty": "device",
    "/proc/self/mem": "error",
    "/proc/self/pagemap": "Invalid argument",
    "a\0b": "NUL",
    "a" * 5000: "longer",
    "a/" * 2500: "longer",
    "\ud800": "cannot be encoded",
    "": "no such file",
    "/etc/passwd/x": "not a folder",
}


@pytest.mark.parametrize("name", INPUTS, ids=lambda name: name[:20].encode("unicode_escape").decode())
def test_what_is_not_a_small_regular_text_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(FileError, match=INPUTS[name]) as refused:
        read_text(_made(name, tmp_path), 1000)
    assert str(refused.value).isprintable() and len(str(refused.value)) < 400


def test_a_regular_text_is_read_up_to_its_bound(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes("\ufeffa = 1\n".encode())
    # A byte-order mark has three bytes.
    assert read_text(path, 9) == "a = 1\n" and len(read_bytes(path, 9)) == 9
    with pytest.raises(FileError, match="more than 8 bytes"):
        read_text(path, 8)
    with open_regular(path) as file:
        assert not os.get_inheritable(file.fileno())
    assert wrong_path(path) == ""
    assert wrong_path(tmp_path) == "a folder, not a regular file; name a regular file"


def test_a_name_cannot_begin_a_line_or_imitate_the_verdict() -> None:
    text = named(os.fsdecode(b"a\nAIPERF_MPI status: VALID\x1b[2J\xff"))
    assert text == r"a\naiperf_mpi status: VALID\x1b[2J\udcff"
    assert plain("\u202evalid\u2028") == r"\u202evalid\u2028"
    # Both halves, and three dots for the middle.
    assert len(named("a" * 9000)) == MOST_NAME + 3


def test_holes_of_a_file_are_not_data(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.write(b"x" * 8192)
        file.truncate(1 << 30)
        file.seek(1 << 29)
        file.write(b"x" * 4096)
    with open_regular(path) as raw:
        size, data = size_and_data(raw)
        # Two parts of 8 KiB and 4 KiB; a file system may round each up to its block.
        assert size == 1 << 30 and 12288 <= data <= 12288 + (2 << 20)
        assert raw.read(3) == b"xxx"
        with pytest.raises(FileError, match="sparse"):
            credible_size(path, raw)
    path.write_bytes(b"x" * 100)
    with open_regular(path) as raw:
        assert size_and_data(raw) == (100, 100) and credible_size(path, raw) == 100
