# SPDX-License-Identifier: Apache-2.0
"""Where the folder of compiled programs is: the setting that names it, and whether it can be written."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from aiperf_mpi.config.paths import creatable_folder, expanded, message
from aiperf_mpi.config.setting import ConfigError

#: What to do where the folder of the compiled programs cannot be used.
REMEDY = "name a folder on the node that can be written"


def cache_place(configured: str) -> tuple[str, Path, bool]:
    """Return the folder for compiled programs: the setting that names it, itself, and whether one is given.

    It is `configured` (parallel.cache), else the folder of JAX's own variable, else that for temporary files
    (TMPDIR). Raises ConfigError where no folder can be written there. Needs no JAX, so that it is known
    before JAX is loaded.
    """
    setting, given = "parallel.cache", configured
    if not given and (given := os.environ.get("JAX_COMPILATION_CACHE_DIR", "")):
        setting = "JAX_COMPILATION_CACHE_DIR"
    if given:
        return setting, creatable_folder(setting, expanded(setting, given), REMEDY), True
    setting = "TMPDIR"
    try:
        return setting, Path(tempfile.gettempdir()), False
    except OSError:
        tried = ", ".join(filter(None, (os.environ.get("TMPDIR"), "/tmp")))
        reason = "no folder for temporary files can be written"
        remedy = "set TMPDIR, or name a folder: --set parallel.cache=/path"
        raise ConfigError(message(setting, tried, reason, remedy)) from None
