# SPDX-License-Identifier: Apache-2.0
"""Paths that a user gives: what they become, and the one line that says what is wrong with them."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from aiperf_mpi.config import ConfigError, load
from aiperf_mpi.config.paths import existing_folder, expanded, readable_file, reading

REMEDY = "name another one"

#: User and group that own nothing (nobody); the tests run as root, which no permission stops.
NOBODY = 65534


def refusal(action: Callable[[], object]) -> str:
    """Return the one printable line of the ConfigError that `action` raises."""
    with pytest.raises(ConfigError) as caught:
        action()
    text = str(caught.value)
    assert text.isprintable() and len(text) < 1000, text
    return text


def as_nobody(action: Callable[[], object]) -> str:
    """Return the refusal of `action` as a user without any rights."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user; as a user, no file of another one is at hand")
    groups = os.getgroups()
    try:
        os.setgroups([])
        os.setegid(NOBODY)
        os.seteuid(NOBODY)
        return refusal(action)
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


# -- what a path becomes ---------------------------------------------------------------------------


def test_paths_are_absolute_and_know_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert expanded("run.output", "~/x") == tmp_path / "home" / "x"
    assert expanded("run.output", "x y/../z") == tmp_path / "x y" / ".." / "z"
    assert expanded("run.output", "/a/~") == Path("/a/~")
    assert expanded("run.output", "~root/x").is_absolute()


def test_every_path_setting_is_expanded_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One rank reads the configuration for all, so all get the same absolute paths."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.toml").write_text('[data]\npath = "~/d"\n[parallel]\ncache = "~/c"\n', "utf-8")
    config = load("demo", ["~/c.toml"], output="~/o")
    assert (config.data.path, config.parallel.cache, config.run.output) == (
        f"{tmp_path}/d",
        f"{tmp_path}/c",
        f"{tmp_path}/o",
    )


def test_variables_are_replaced_by_their_values(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name, value in (("SCRATCH_1", "/scratch/me"), ("PART", "p"), ("AT_HOME", "~/data"), ("N", "$PART")):
        monkeypatch.setenv(name, value)
    for text, path in (
        ("$SCRATCH_1/x", "/scratch/me/x"),
        ("${SCRATCH_1}x/$PART-${PART}", "/scratch/mex/p-p"),
        ("a$PART.h5", tmp_path / "ap.h5"),
        ("~/$PART", tmp_path / "home" / "p"),
        ("$AT_HOME/x", tmp_path / "home" / "data" / "x"),
        # A value is not searched for variables, and no name follows these signs.
        ("$N/x", tmp_path / "$PART" / "x"),
        ("/a$/$1/$(date)/$", "/a$/$1/$(date)/$"),
    ):
        assert expanded("run.output", text) == Path(path), text


def test_a_name_with_a_dollar_that_exists_is_a_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A shell that completes or globs such a name gives it as it is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SET_1", "elsewhere")
    for name in ("$SET_1", "$NOWHERE_1", "a${b", "x$$y"):
        (tmp_path / name).mkdir()
        assert expanded("data.path", name) == expanded("data.path", tmp_path / name) == tmp_path / name
    # Below a folder of that name a variable with a value is replaced, and one without is a name.
    assert expanded("data.path", "$SET_1/new") == tmp_path / "elsewhere" / "new"
    assert expanded("data.path", "$NOWHERE_1/new") == tmp_path / "$NOWHERE_1" / "new"
    assert expanded("data.path", "a${b/new") == tmp_path / "a${b" / "new"
    # What was replaced stays the same.
    for text in ("$SET_1/new", "$NOWHERE_1/new", "x$$y"):
        assert expanded("data.path", once := expanded("data.path", text)) == once


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("$NOWHERE_1/x", "the variable $NOWHERE_1 in it is not set; export NOWHERE_1, or write its value"),
        ("/a/b${NOWHERE_1}c", "the variable $NOWHERE_1 in it is not set"),
        ("$EMPTY_1/x", "the variable $EMPTY_1 in it is empty"),
        ("${NOWHERE_1:-/tmp}", "${NOWHERE_1:-/tmp} is not the form of a variable; write ${NAME}"),
        ("${NOWHERE_1", "${NOWHERE_1 is not the form of a variable"),
        ("${}", "${} is not the form"),
        ("$URL_1/x", "gs://bucket/x: is a URL"),
        ("$LINE_1/x", "cannot be printed"),
    ],
)
def test_variables_without_a_usable_value(text: str, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("EMPTY_1", ""),
        ("URL_1", "gs://bucket"),
        ("LINE_1", "/a\nAIPERF_MPI status: VALID"),
    ):
        monkeypatch.setenv(name, value)
    said = refusal(lambda: expanded("data.path", text))
    assert said.startswith("data.path: ") and part in said and "AIPERF_MPI" not in said


@pytest.mark.parametrize("home", [None, "", "nowhere"])
def test_a_user_without_a_home_is_told_to_write_the_path(home: str | None) -> None:
    """Python's own expansion raises RuntimeError here, or gives a relative path."""
    code = (
        "import os, pwd\n"
        "from aiperf_mpi.config import ConfigError, load; load('demo')\n"
        "os.setgroups([]); os.setresuid(54321, 54321, 54321)\n"
        "try: load('demo', output='~/x')\n"
        "except ConfigError as error: print(error)"
    )
    if os.geteuid() != 0:
        pytest.skip("only root can become a user without an entry")
    env = {key: value for key, value in os.environ.items() if key != "HOME"}
    if home is not None:
        env["HOME"] = home
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert "run.output: ~/x: ~ cannot be expanded: HOME is not set, empty" in done.stdout, done.stderr
    assert "write the whole path, from /" in done.stdout


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("~nobody-of-this-name/x", "there is no user nobody-of-this-name"),
        ("gs://bucket/x", "is a URL"),
        ("file:///tmp/x", "is a URL"),
        ("a\nAIPERF_MPI status: VALID", "cannot be printed"),
        ("a\0b", "cannot be printed"),
        ("a\x1b[2J", "cannot be printed"),
        ("caf\udce9", "cannot be printed or are not UTF-8"),
        ("", "the path is empty"),
    ],
)
def test_paths_that_no_result_can_store(text: str, part: str) -> None:
    said = refusal(lambda: expanded("data.path", text))
    assert said.startswith("data.path: ") and part in said and "AIPERF_MPI" not in said


def test_a_removed_working_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    said = refusal(lambda: expanded("--config", "x.toml"))
    assert "the working directory was removed; write the whole path" in said
    assert expanded("--config", "/x.toml") == Path("/x.toml")


# -- what is wrong with a place --------------------------------------------------------------------


def test_other_things_than_a_file_or_folder(tmp_path: Path) -> None:
    """Each is named as what it is, and a FIFO is never waited for."""
    (tmp_path / "file").write_text("x")
    os.mkfifo(tmp_path / "fifo")
    os.symlink("nowhere", tmp_path / "dangling")
    os.symlink("loop", tmp_path / "loop")
    for name, file_part, folder_part in (
        ("fifo", "a FIFO, not a file", "a FIFO, not a folder"),
        ("/dev/zero", "a device, not a file", "a device, not a folder"),
        ("", "a folder, not a file", ""),
        ("file", "", "a file, not a folder"),
        ("file/below", "a part of the path is a file", "a part of the path is a file"),
        ("absent", "does not exist", "does not exist"),
        ("dangling", "is a link to nowhere, which does not exist", "is a link to nowhere, which does not"),
        ("dangling/x", "is a link to nowhere", "is a link to nowhere"),
        ("loop", "links form a loop", "links form a loop"),
        ("n" * 300, "the name is longer than", "the name is longer than"),
        ("d/" * 2500, "the name is longer than", "the name is longer than"),
    ):
        place = tmp_path / name
        for check, part in ((readable_file, file_part), (existing_folder, folder_part)):
            if not part:
                check("data.path", place, REMEDY)
                continue
            said = refusal(lambda check=check, place=place: check("data.path", place, REMEDY))  # type: ignore[misc]
            assert said.startswith("data.path: ") and part in said and "; " in said


def test_what_a_user_may_not_read(tmp_path: Path) -> None:
    # pytest closes its folders below the system's one for temporary files.
    for path in (tmp_path, *tmp_path.parents):
        if path.is_relative_to(tempfile.gettempdir()) and path != Path(tempfile.gettempdir()):
            os.chmod(path, 0o755)
    closed, file = tmp_path / "closed", tmp_path / "file"
    (closed / "inner").mkdir(parents=True)
    file.write_text("x")
    closed.chmod(0o700)
    file.chmod(0o600)
    said = as_nobody(lambda: readable_file("data.path", file, REMEDY))
    assert f"data.path: {file}: user {NOBODY} has no permission for it; get permission for it" in said
    said = as_nobody(lambda: readable_file("data.path", closed / "inner" / "x", REMEDY))
    assert f"user {NOBODY} may not enter the folder {closed}; get permission" in said
    assert "has no permission" in as_nobody(lambda: existing_folder("data.path", closed, REMEDY))
    closed.chmod(0o744)
    assert "may not enter" in as_nobody(lambda: existing_folder("data.path", closed, REMEDY))


@pytest.mark.parametrize("number", sorted(errno.errorcode))
def test_every_error_of_the_system_has_a_reason_and_a_remedy(number: int, tmp_path: Path) -> None:
    def fail() -> None:
        with reading("data.path", tmp_path, REMEDY):
            raise OSError(number, os.strerror(number), str(tmp_path / "x"))

    said = refusal(fail)
    assert said.startswith(f"data.path: {tmp_path}/x: ") and len(said.split("; ")) == 2


def test_every_failure_of_a_reading_library_is_a_refusal(tmp_path: Path) -> None:
    """Damaged files of the formats that data sets come in, each read by its real library."""
    damaged = tmp_path / "damaged"
    damaged.write_bytes(b"\x93NUMPY\x01\x00v\x00{'descr'" + bytes(300))

    def archive() -> None:
        np.savez(tmp_path / "whole.npz", x=np.arange(1000))
        content = (tmp_path / "whole.npz").read_bytes()
        damaged.write_bytes(content[:300] + b"\xff" * 100 + content[400:])
        np.load(damaged)["x"].sum()

    def memory() -> None:
        np.empty(2**55, np.uint8)

    for library in (
        lambda: np.load(damaged),
        lambda: h5py.File(damaged),
        lambda: zlib.decompress(b"no stream"),
        archive,
        memory,
    ):

        def read(library: Callable[[], object] = library) -> None:
            with reading("data.path", damaged, REMEDY):
                library()

        said = refusal(read)
        assert said.startswith(f"data.path: {damaged}: ") and "; " in said
    assert "memory" in said


def test_a_locale_without_utf_8_is_the_remedy(tmp_path: Path) -> None:
    words = ["--output", f"{tmp_path}/l\u00e4ufe", "--check"]
    environ = {**os.environ, "LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "aiperf_mpi", *words], env=environ, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2 and "set PYTHONUTF8=1, or a UTF-8 locale" in done.stderr
