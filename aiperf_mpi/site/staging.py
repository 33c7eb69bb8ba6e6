# SPDX-License-Identifier: Apache-2.0
"""Try the folder of each node to which a run would copy its packed pictures."""

from __future__ import annotations

import shutil
from pathlib import Path

from aiperf_mpi.config import Config, ConfigError
from aiperf_mpi.config.datasets import DATASETS
from aiperf_mpi.config.paths import because, message
from aiperf_mpi.data.staging import REMEDY, SETTING, check_room, plan
from aiperf_mpi.planning.finding import Finding, refusal
from aiperf_mpi.site import folders

SUBJECT = "staging"


def judge(config: Config) -> tuple[Finding, ...]:
    """Return whether a copy of the pictures fits into `data.stage` of this host; nothing if there is none."""
    if not config.data.stage or not DATASETS[config.data.name].packed:
        return ()
    try:
        planned = plan(config)
        check_room(planned)
    except ConfigError as error:
        return (refusal(SUBJECT, str(error)),)
    path = planned.target or Path(config.data.stage)
    need = sum(shard.bytes for shard in planned.lacking())
    if not need:
        text = f"{path}: the copy is there, {folders.size(planned.total)}; a run checks its hashes"
        return (Finding("ok", SUBJECT, text),)
    if wrong := _try(folders.nearest(path)):
        return (Finding("fail", SUBJECT, message(SETTING, path, wrong), REMEDY),)
    free = folders.size(shutil.disk_usage(folders.nearest(path)).free)
    text = f"{path}: written, renamed, locked; {free} free for {folders.size(need)} to copy"
    return (Finding("ok", SUBJECT, text),)


def _try(place: Path) -> str:
    """Write, rename and lock in a folder; return "" or what went wrong."""
    try:
        folder = folders.make(place)
    except OSError as error:
        return f"cannot be written: {because(error, place)[0]}"
    try:
        return folders.try_files(folder, "staging") or folders.try_lock(folder)
    finally:
        folders.remove(folder)
