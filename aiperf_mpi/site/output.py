# SPDX-License-Identifier: Apache-2.0
"""Try the folders of a run: claim the output folder as a run does, write in it, and remove it."""

from __future__ import annotations

import os
import re
import shutil
import uuid
from contextlib import suppress
from pathlib import Path

from aiperf_mpi.config import Config, ConfigError
from aiperf_mpi.config.paths import message
from aiperf_mpi.config.programs import cache_place
from aiperf_mpi.planning.finding import Finding, refusal
from aiperf_mpi.planning.folder import RunFolder
from aiperf_mpi.planning.storage import FILE_REMEDY, claim_output, estimate_bytes, file_limit
from aiperf_mpi.site import folders

OUTPUT, SCRATCH = "output", "scratch"

#: Beginning of the id under which the output folder is claimed for a try.
_CLAIM = "doctor"

#: Names of the files that the tries of all ranks write there.
_TRIED = re.compile(r"(coordinator|rank-[0-9]+)(\.tmp)?")


class _Late(Exception):
    """A try was given up, and its folder given back, before the folder was made."""


def try_output(config: Config, replicas: int) -> tuple[Path | None, tuple[Finding, ...]]:
    """Claim the output folder and try it; return it for the tries of other ranks, and what was found.

    The caller removes it (`folders.remove`); it is None where a run would be refused it. A try that goes on
    after its folder was given back removes it itself.
    """
    if wrong := _of_process(config):
        return None, wrong
    promised: list[Path] = []

    def announce(folder: RunFolder) -> None:
        if folder.path in promised and folder.path not in folders.undo:
            give_back(folder)
            raise _Late
        promised.append(folder.path)
        folders.undo[folder.path] = lambda: give_back(folder)

    try:
        claimed = claim_output(config, replicas, f"{_CLAIM}-{uuid.uuid4().hex}", announce)
    except (ConfigError, _Late) as error:
        for path in promised:
            folders.undo.pop(path, None)
        return None, (refusal(OUTPUT, str(error)),)
    try:
        return claimed.path, _try_claimed(config, replicas, claimed.path)
    finally:
        if claimed.path not in folders.undo:
            give_back(claimed)


def give_back(folder: RunFolder) -> None:
    """Remove the files that tries have in a folder that was claimed for them, and what the claim created."""
    if not folder.lost():
        with suppress(OSError):
            for name in filter(_TRIED.fullmatch, os.listdir(folder.path)):
                os.unlink(folder.path / name)
    folder.remove()


def _try_claimed(config: Config, replicas: int, path: Path) -> tuple[Finding, ...]:
    """Write, sync, rename and lock in the output folder, and return what was found."""
    if wrong := folders.try_files(path, "coordinator"):
        return (
            Finding("fail", OUTPUT, message("--output", path, wrong), "make room, or name another folder"),
        )
    need, free = folders.size(estimate_bytes(config, replicas)), folders.size(shutil.disk_usage(path).free)
    fine = Finding("ok", OUTPUT, f"{path}: written, synced, renamed; {free} free for at most {need}")
    if wrong := folders.try_lock(path):
        text = message("--output", path, f"{wrong}; a run does not need it, but other programs on it may")
        return (fine, Finding("warn", OUTPUT, text, "prefer a file system with locks, if there is one"))
    return (fine,)


def try_seen(folder: Path, rank: int) -> tuple[Finding, ...]:
    """Try from another host to write into the folder that rank 0 has claimed."""
    if not folder.is_dir():
        text = message("--output", folder, "this host does not see the folder that rank 0 has made")
        return (Finding("fail", OUTPUT, text, "name an --output on a file system that all nodes share"),)
    if wrong := folders.try_files(folder, f"rank-{rank}"):
        remedy = "let this user write there from all nodes (root_squash? quota?), or name another folder"
        return (Finding("fail", OUTPUT, message("--output", folder, wrong), remedy),)
    return ()


def try_scratch(config: Config) -> tuple[Finding, ...]:
    """Try the folder for compiled programs of this host."""
    if wrong := _of_process(config):
        return wrong
    try:
        setting, path, given = cache_place(config.parallel.cache)
    except ConfigError as error:
        return (refusal(SCRATCH, str(error)),)
    return (*(() if given else _ignored(path)), *folders.judge_scratch(setting, path))


def _ignored(used: Path) -> tuple[Finding, ...]:
    """Return a warning where Python does not use the folder that TMPDIR names, but `used`."""
    told = os.environ.get("TMPDIR", "")
    if not told or os.path.abspath(told) == os.path.abspath(used):
        return ()
    text = message(
        "TMPDIR", told, f"does not exist, is full or cannot be written, so {used} is used in its place"
    )
    return (Finding("warn", SCRATCH, text, "make this folder on each host, name another, or unset TMPDIR"),)


def _of_process(config: Config) -> tuple[Finding, ...]:
    """Return what is wrong with every folder, by the limit on files and the umask of this process."""
    if wrong := file_limit(config, config.parallel.trainers_per_node):
        return (Finding("fail", OUTPUT, wrong, FILE_REMEDY),)
    if folders.masked():
        text = "the umask of this process takes the permissions of its own user from files that it makes"
        return (Finding("fail", OUTPUT, text, "umask 022, before the launcher and on each host"),)
    return ()
