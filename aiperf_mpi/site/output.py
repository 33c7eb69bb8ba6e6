# SPDX-License-Identifier: Apache-2.0
"""Try the output folder of a run without making it: write in its nearest parent, or in it if it exists."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from aiperf_mpi.config import Config, ConfigError
from aiperf_mpi.config.paths import because, expanded, message
from aiperf_mpi.planning.finding import Finding
from aiperf_mpi.planning.storage import default_output, estimate_bytes
from aiperf_mpi.site import folders

SUBJECT = "output"

#: What to do about a folder that cannot be written.
_ANOTHER = "name another folder: --output FOLDER"


def path_of(config: Config) -> Path:
    """Return the absolute path of the output folder. Raises ConfigError where no folder can have it."""
    return expanded("--output", config.run.output or default_output())


def try_output(config: Config, replicas: int) -> tuple[Path | None, tuple[Finding, ...]]:
    """Try the output folder; return a new folder for the tries of other ranks, and what was found.

    The caller removes the folder (`folders.remove`); it is None where none can be made.
    """
    try:
        path = path_of(config)
    except ConfigError as error:
        return None, (Finding("fail", SUBJECT, str(error)),)
    place = folders.nearest(path)
    if not place.is_dir():
        return None, (Finding("fail", SUBJECT, f"--output {path}: {place} is a file", _ANOTHER),)
    try:
        if place == path and any(path.iterdir()):
            text = f"--output {path}: not empty; a run writes into a new folder"
            return None, (Finding("fail", SUBJECT, text, "name another one"),)
        folder = folders.make(place)
    except OSError as error:
        reason, remedy = because(error, place, _ANOTHER)
        text = message("--output", path, f"cannot be made: {reason}")
        return None, (Finding("fail", SUBJECT, text, remedy),)
    return folder, _tried(config, replicas, path, folder)


def _tried(config: Config, replicas: int, path: Path, folder: Path) -> tuple[Finding, ...]:
    """Write into the new folder, and compare the free space with what the run may write."""
    if wrong := folders.try_files(folder, "coordinator"):
        return (Finding("fail", SUBJECT, f"--output {path}: {wrong}", f"make room, or {_ANOTHER}"),)
    need, free = estimate_bytes(config, replicas), shutil.disk_usage(folder).free
    if need > free:
        text = f"--output {path}: the run may write {folders.size(need)}, but {folders.size(free)} are free"
        remedy = (
            "make room, name a folder on another file system, or lower result.keep_checkpoints or "
            "search.max_parameters"
        )
        return (Finding("fail", SUBJECT, text, remedy),)
    fine = Finding(
        "ok",
        SUBJECT,
        f"{path}: written, synced, renamed; {folders.size(free)} free for at most {folders.size(need)}",
    )
    if wrong := folders.try_lock(folder):
        text = f"--output {path}: {wrong}: two runs cannot see that they write into one folder"
        return fine, Finding("warn", SUBJECT, text, "give each run an --output of its own")
    return (fine,)


def try_seen(folder: Path, rank: int) -> tuple[Finding, ...]:
    """Try from another host to write into the folder that rank 0 made."""
    if not folder.is_dir():
        text = f"does not see {folder.parent}, in which rank 0 has made a folder"
        return (Finding("fail", SUBJECT, text, "name an --output on a file system that all nodes share"),)
    if wrong := folders.try_files(folder, f"rank-{rank}"):
        remedy = "let this user write there from all nodes (root_squash? quota?), or " + _ANOTHER
        return (Finding("fail", SUBJECT, f"{folder.parent}: {wrong}", remedy),)
    return ()


def scratch(config: Config, environ: dict[str, str] | None = None) -> tuple[Finding, ...]:
    """Try the folder for compiled programs of this host."""
    import tempfile

    values = os.environ if environ is None else environ
    if config.parallel.cache:
        try:
            return folders.judge_scratch("parallel.cache", expanded("parallel.cache", config.parallel.cache))
        except ConfigError as error:
            return (Finding("fail", "scratch", str(error)),)
    if given := values.get("JAX_COMPILATION_CACHE_DIR"):
        if "://" in given:
            return (Finding("ok", "scratch", f"JAX_COMPILATION_CACHE_DIR: {given}: not a folder, not tried"),)
        return folders.judge_scratch("JAX_COMPILATION_CACHE_DIR", Path(given))
    return folders.judge_scratch("TMPDIR", Path(tempfile.gettempdir()))
