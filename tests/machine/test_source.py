# SPDX-License-Identifier: Apache-2.0
"""The commit of the program: from git, from a build, from an archive, and the reason where there is none."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aiperf_mpi.machine import source as module
from aiperf_mpi.machine.source import STAMP, files_sha256, source
from tests.helpers import launch

Git = Callable[..., str]

#: What an installed package needs of the repository.
BUILT_FROM = (
    "aiperf_mpi",
    "setup.py",
    "setup.cfg",
    "pyproject.toml",
    "README.md",
    "LICENSE",
    ".gitattributes",
)


def git_in(folder: Path) -> Git:
    """Return a function that runs git in `folder` as some author."""

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        command = ["git", *identity, "-C", str(folder), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    return git


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The committed package of one module in a checkout of its own."""
    folder, git = tmp_path / "package", git_in(tmp_path)
    git("init", "-q")
    folder.mkdir()
    (folder / "module.py").write_text("1\n")
    (folder / STAMP).write_text('{"commit": "$Format:%H$"}\n')
    git("add", "package")
    git("commit", "-q", "-m", "first")
    return folder


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean checkout of this repository's package."""
    folder = tmp_path_factory.mktemp("check out ü")
    for name in BUILT_FROM:
        place = launch.ROOT / name
        if place.is_dir():
            shutil.copytree(place, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(place, folder / name)
    git = git_in(folder)
    git("init", "-q")
    git("add", "-A")
    git("commit", "-q", "-m", "all")
    return folder


def test_the_commit_and_whether_the_source_differs(package: Path) -> None:
    files = files_sha256(package)
    commit = git_in(package)("rev-parse", "HEAD")
    found = source(package)
    del found["hides"]  # of the installation that runs the tests
    assert found == {"commit": commit, "dirty": False, "why": "", "files_sha256": files}
    (package / "module.py").write_text("2\n")
    changed = source(package)
    assert changed["commit"] == commit and changed["dirty"] is True and changed["files_sha256"] != files
    assert changed["why"] == "1 tracked files were changed"


def test_the_hash_is_that_of_shell_commands(package: Path) -> None:
    (package / "b").mkdir()
    (package / "b" / "set.toml").write_text("x = 1\n")
    (package / "notes.txt").write_text("not a part of the program\n")
    script = "sha256sum b/set.toml module.py | sha256sum | cut -d' ' -f1"
    printed = subprocess.run(["sh", "-c", script], cwd=package, capture_output=True, text=True, check=True)
    assert files_sha256(package) == printed.stdout.strip()


def test_a_package_in_another_checkout_has_no_commit(package: Path) -> None:
    other = package.parent / "site-packages"
    other.mkdir()
    (other / "other.py").write_text("")
    found = source(other)
    assert (found["commit"], found["dirty"]) == ("", None) and "does not track its files" in found["why"]


def test_a_folder_without_git_has_the_hash_and_a_reason(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text("1\n")
    found = source(tmp_path)
    assert found["commit"] == "" and "not a git repository" in found["why"]
    assert len(found["files_sha256"]) == 64


def test_a_host_without_git(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(package))
    assert source(package)["why"] == "git is not installed on this host"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a checkout to another user")
def test_a_checkout_of_another_user(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("HOME", str(package))
    for path in [package.parent, *package.parent.rglob("*")]:
        os.chown(path, 12345, 12345, follow_symlinks=False)
    found = source(package)
    assert found["commit"] == "" and "dubious ownership" in found["why"]


def test_a_git_that_hangs_is_left_after_its_time(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its child keeps the pipes open after git itself is killed, as a hanging file system does.
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "git"
    script.write_text("#!/bin/sh\nsleep 30 &\nwait\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(module, "_GIT_SECONDS", 0.5)
    monkeypatch.setattr(module, "_KILL_SECONDS", 0.5)
    begun = time.monotonic()
    found = source(package)
    assert "git rev-parse took over 0.5 s" in found["why"] and time.monotonic() - begun < 10


def test_variables_of_a_hook_do_not_name_another_repository(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    assert len(source(package)["commit"]) == 40


@pytest.mark.parametrize("text", ["", "[]", "{", '{"commit": 7}', "\udcff"])
def test_a_damaged_stamp_is_not_a_commit(tmp_path: Path, text: str) -> None:
    (tmp_path / STAMP).write_bytes(text.encode(errors="surrogateescape"))
    assert source(tmp_path)["commit"] == ""


def built(checkout: Path, out: Path, *command: str) -> None:
    """Run a command of the build in a checkout."""
    pytest.importorskip("setuptools")
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", *command, str(out)], cwd=checkout, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def told(package: Path) -> dict[str, Any]:
    """Return what a package says about itself, as its own interpreter finds it."""
    code = "import json; from aiperf_mpi.machine.source import source; print(json.dumps(source()))"
    environ = os.environ | {"PYTHONPATH": str(package.parent)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=package.parent, env=environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_an_installed_package_has_the_commit_it_was_built_from(checkout: Path, tmp_path: Path) -> None:
    built(checkout, tmp_path / "lib", "build_py", "--build-lib")
    commit = git_in(checkout)("rev-parse", "HEAD")
    files = files_sha256(checkout / "aiperf_mpi")
    package = tmp_path / "lib" / "aiperf_mpi"
    assert told(package) == {"commit": commit, "dirty": False, "why": "", "files_sha256": files, "hides": ""}
    with (package / "exits.py").open("a") as file:
        file.write("# changed after the installation\n")
    changed = told(package)
    assert changed["commit"] == commit and changed["dirty"] is True and "differ from those" in changed["why"]


def test_a_package_from_a_source_archive_has_the_commit_too(checkout: Path, tmp_path: Path) -> None:
    built(checkout, tmp_path, "sdist", "-d")
    (archive,) = tmp_path.glob("*.tar.gz")
    shutil.unpack_archive(archive, tmp_path / "sdist", filter="data")
    (unpacked,) = (tmp_path / "sdist").iterdir()
    built(unpacked, tmp_path / "lib", "build_py", "--build-lib")
    found = told(tmp_path / "lib" / "aiperf_mpi")
    assert found["commit"] == git_in(checkout)("rev-parse", "HEAD") and found["dirty"] is False
    # The build has not written into the checkout.
    assert not git_in(checkout)("status", "--porcelain", "--untracked-files=no")


def test_an_archive_of_git_has_the_commit_but_not_its_state(checkout: Path, tmp_path: Path) -> None:
    git_in(checkout)("archive", "-o", str(tmp_path / "all.tar"), "HEAD")
    shutil.unpack_archive(tmp_path / "all.tar", tmp_path / "archive", filter="data")
    commit = git_in(checkout)("rev-parse", "HEAD")
    found = told(tmp_path / "archive" / "aiperf_mpi")
    assert (found["commit"], found["dirty"]) == (commit, None) and "from an archive" in found["why"]
    built(tmp_path / "archive", tmp_path / "lib", "build_py", "--build-lib")
    installed = told(tmp_path / "lib" / "aiperf_mpi")
    assert (installed["commit"], installed["dirty"]) == (commit, None) and "from an archive" in installed[
        "why"
    ]


def test_every_file_of_the_package_is_hashed_or_is_the_stamp() -> None:
    names = [
        path.name
        for path in module.PACKAGE.rglob("*")
        if path.is_file() and path.suffix not in (*module._HASHED, ".pyc")
    ]
    assert names == []


def test_an_installed_package_that_is_hidden(checkout: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    built(checkout, site, "build_py", "--build-lib")
    (site / "aiperf_mpi-1.dist-info").mkdir()
    (site / "aiperf_mpi-1.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: aiperf_mpi\nVersion: 1\n"
    )
    code = "from aiperf_mpi.machine.source import source; print(source()['hides'])"

    def hidden() -> str:
        # With -c the working directory comes before PYTHONPATH, as with -m.
        environ = os.environ | {"PYTHONPATH": str(site)}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=checkout, env=environ, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert hidden() == ""
    (site / "aiperf_mpi" / "exits.py").write_text("# of another version\n")
    assert hidden() == str(site / "aiperf_mpi")
