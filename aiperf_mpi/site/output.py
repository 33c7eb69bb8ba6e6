# SPDX-License-Identifier: Apache-2.0
"""Try the folders of a run: claim the output folder as a run does, write in it, and remove it."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path

from aiperf_mpi.config import Config, ConfigError
from aiperf_mpi.config.paths import expanded, message
from aiperf_mpi.planning.finding import Finding, refusal
from aiperf_mpi.planning.folder import RunFolder
from aiperf_mpi.planning.storage import claim_output, estimate_bytes
from aiperf_mpi.site import folders

OUTPUT, SCRATCH = "output", "scratch"

#: Beginning of the id under which the output folder is claimed for a try.
_CLAIM = "doctor"


def try_output(config: Config, replicas: int) -> tuple[Path | None, tuple[Finding, ...]]:
    """Claim the output folder and try it; return it for the tries of other ranks, and what was found.

    The caller removes it (`folders.remove`); it is None where a run would be refused it.
    """
    run_id = f"{_CLAIM}-{uuid.uuid4().hex}"
    try:
        _promise(config, run_id)
        claimed = claim_output(config, replicas, run_id)
    except ConfigError as error:
        return None, (refusal(OUTPUT, str(error)),)
    path = claimed.path
    folders.undo[path] = claimed.remove
    if wrong := folders.try_files(path, "coordinator"):
        text, remedy = message("--output", path, wrong), "make room, or name another folder"
        return path, (Finding("fail", OUTPUT, text, remedy),)
    need, free = folders.size(estimate_bytes(config, replicas)), folders.size(shutil.disk_usage(path).free)
    fine = Finding("ok", OUTPUT, f"{path}: written, synced, renamed; {free} free for at most {need}")
    if wrong := folders.try_lock(path):
        text = message("--output", path, f"{wrong}; a run does not need it, but other programs on it may")
        return path, (fine, Finding("warn", OUTPUT, text, "prefer a file system with locks, if there is one"))
    return path, (fine,)


def _promise(config: Config, run_id: str) -> None:
    """Have the output folder removed also where the process ends, or waits, in the middle of the claim."""
    if config.run.output:
        path = expanded("--output", config.run.output)
        missing = tuple(one for one in (*reversed(path.parents), path) if not os.path.lexists(one))
        folders.undo[path] = RunFolder(path, run_id, missing).remove


def try_seen(folder: Path, rank: int) -> tuple[Finding, ...]:
    """Try from another host to write into the folder that rank 0 has claimed."""
    if not folder.is_dir():
        text = message("--output", folder, "this host does not see the folder that rank 0 has made")
        return (Finding("fail", OUTPUT, text, "name an --output on a file system that all nodes share"),)
    if wrong := folders.try_files(folder, f"rank-{rank}"):
        remedy = "let this user write there from all nodes (root_squash? quota?), or name another folder"
        return (Finding("fail", OUTPUT, message("--output", folder, wrong), remedy),)
    return ()


def try_scratch(config: Config, environ: Mapping[str, str] = os.environ) -> tuple[Finding, ...]:
    """Try the folder for compiled programs of this host."""
    setting, path = "parallel.cache", config.parallel.cache
    if not path:
        setting, path = "JAX_COMPILATION_CACHE_DIR", environ.get("JAX_COMPILATION_CACHE_DIR", "")
    if not path:
        try:
            setting, path = "TMPDIR", tempfile.gettempdir()
        except OSError:
            remedy = "set TMPDIR, or name a folder: --set parallel.cache=/path"
            return (Finding("fail", SCRATCH, "no folder for temporary files can be written", remedy),)
    try:
        return folders.judge_scratch(setting, expanded(setting, path))
    except ConfigError as error:
        return (refusal(SCRATCH, str(error)),)
