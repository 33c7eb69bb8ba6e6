# SPDX-License-Identifier: Apache-2.0
"""Find the commit of the program that runs, whether its files differ from it, and their hash.

The commit comes from the build of an installed package, from git in a checkout, or from the archive that git
made. The first one is in `commit.json`: the build writes it (`setup.py`), and git replaces the
placeholder in it when it makes an archive. This module needs the standard library alone, as the build
imports it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from aiperf_mpi.probe import NotKnown, probe, reason

#: The folder of this package, and the file in it that holds the commit.
PACKAGE = Path(__file__).resolve().parents[1]
STAMP = "commit.json"

#: The files of the package whose contents are hashed, by the ends of their names.
_HASHED = (".py", ".toml", ".json", ".html")

#: Seconds for all questions to git, for reading the package's files, and until a killed git is given up.
_GIT_SECONDS, _FILES_SECONDS, _KILL_SECONDS = 10.0, 30.0, 1.0

#: Variables of a caller (a hook, a script) that would point git to another repository.
_GIT_VARIABLES = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY")

_COMMIT = re.compile("[0-9a-f]{40}([0-9a-f]{24})?")


class GitError(Exception):
    """git cannot tell; the message is the reason."""


def source(package: Path = PACKAGE) -> dict[str, Any]:
    """Describe the program whose package is in `package`; never raises.

    `commit` is "" if it is not known. `dirty` is true if files differ from the commit, None if that is not
    known. `why` is the reason for either, else "". `files_sha256` is the hash of the package's files, or
    the reason why it is not known; it names the program where the commit is missing. `hides` is the folder of
    an installed package with other files, which would run if the run had begun in another folder, else "".
    """
    files = probe("the hash of the package's files", files_sha256, package, seconds=_FILES_SECONDS)
    found = probe("the commit of the program", _commit, package, files, seconds=3 * _GIT_SECONDS)
    if isinstance(found, NotKnown):
        found = _described("", None, found)
    hides = probe("the installed package", _hidden, package, files, seconds=_FILES_SECONDS)
    return {**found, "files_sha256": files, "hides": "" if isinstance(hides, NotKnown) else hides}


def files_sha256(package: Path = PACKAGE) -> str:
    """Return the SHA-256 of the package's files: of the lines that `sha256sum` prints, sorted by path.

    Compiled files, the stamp of the commit and files of other kinds do not count. Raises OSError.
    """
    paths = sorted(
        path.relative_to(package).as_posix()
        for path in package.rglob("*")
        if path.suffix in _HASHED and path.name != STAMP and path.is_file()
    )
    lines = (f"{hashlib.sha256((package / path).read_bytes()).hexdigest()}  {path}\n" for path in paths)
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def _commit(package: Path, files: str) -> dict[str, Any]:
    """Return the commit from the build, from git or from the archive, in this order."""
    stamp = read_stamp(package)
    if "files_sha256" in stamp:
        return _of_build(stamp, files)
    try:
        return _of_git(package)
    except GitError as error:
        if _COMMIT.fullmatch(commit := str(stamp.get("commit"))):
            return _described(
                commit, None, f"the files are from an archive of the commit, which shows no changes ({error})"
            )
        return _described("", None, str(error))


def _hidden(package: Path, files: str) -> str:
    """Return the folder of an installed package that `package` hides and that has other files; "" if none."""
    for installed in metadata.distributions(name="aiperf_mpi"):
        place = Path(str(installed.locate_file("aiperf_mpi"))).resolve()
        if place != package and place.is_dir() and files_sha256(place) != files:
            return str(place)
    return ""


def read_stamp(package: Path) -> Mapping[str, Any]:
    """Return what the build or git's archive wrote into the package; empty if there is nothing usable."""
    try:
        stamp = json.loads((package / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def _of_build(stamp: Mapping[str, Any], files: str) -> dict[str, Any]:
    """Return the commit that the build recorded; changed if the files are not those that were built."""
    commit, why = str(stamp.get("commit") or ""), str(stamp.get("why") or "")
    if isinstance(files, NotKnown):
        return _described(commit, None, files)
    if files != stamp["files_sha256"]:
        return _described(commit, True, "files of the installed package differ from those that were built")
    return _described(commit, stamp.get("dirty"), why)


def _of_git(package: Path) -> dict[str, Any]:
    """Return the commit of the checkout that tracks the package. Raises GitError with the reason."""
    deadline = time.monotonic() + _GIT_SECONDS
    commit = _git(package, deadline, "rev-parse", "--verify", "HEAD")
    try:
        # A package installed inside another project's checkout is not part of its source.
        _git(package, deadline, "ls-files", "--error-unmatch", ".")
    except GitError:
        raise GitError(f"the git checkout around {package} does not track its files") from None
    try:
        status = _git(package, deadline, "status", "--porcelain", "--untracked-files=no")
    except GitError as error:
        return _described(commit, None, f"whether files were changed is not known: {error}")
    changed = len(status.splitlines())
    return _described(commit, bool(changed), f"{changed} tracked files were changed" if changed else "")


def _described(commit: str, dirty: bool | None, why: str) -> dict[str, Any]:
    return {"commit": commit, "dirty": dirty, "why": str(why)}


def _git(folder: Path, deadline: float, *arguments: str) -> str:
    """Return what git prints about `folder`. Raises GitError if it fails, is missing, or takes too long."""
    if (program := shutil.which("git")) is None:
        raise GitError("git is not installed on this host")
    environ = {name: value for name, value in os.environ.items() if name not in _GIT_VARIABLES}
    environ |= {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    try:
        process = subprocess.Popen(
            [program, "-C", str(folder), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environ,
        )
    except OSError as error:
        raise GitError(f"git does not start: {reason(error)}") from None
    try:
        out, err = process.communicate(timeout=max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        # It may hang in a file system, or its children hold the pipes: it is left then.
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=_KILL_SECONDS)
        raise GitError(f"git {arguments[0]} took over {_GIT_SECONDS:g} s in {folder}") from None
    if process.returncode:
        text = next(iter(err.decode(errors="replace").strip().splitlines()), "")[:200]
        raise GitError(f"git: {text or f'exit code {process.returncode}'}")
    return out.decode(errors="replace").strip()
