# SPDX-License-Identifier: Apache-2.0
"""Judge the modules of this Python: those that it lacks, those of other versions, and files that hide one."""

from __future__ import annotations

import os
import platform
import sys

from aiperf_mpi.interpreter import hidden, hides, install, lacks, missing, unfit, unsuited
from aiperf_mpi.planning.finding import Finding, Level
from aiperf_mpi.site.child import Child

SUBJECT = "Python"

#: Import what the roles of a run import, and say whether a hidden module has made that fail. It needs no
#: json, as that may be the module.
_PROGRAM = """
from importlib import import_module
from aiperf_mpi import interpreter
failed = False
try:
    run = import_module("aiperf_mpi.parallel.run")
    names = {"aiperf_mpi." + name for names in run.MODULES.values() for name in names}
    for name in sorted(names) + ["sklearn.datasets", "skopt", "matplotlib.figure"]:
        import_module(name)
except BaseException as error:
    failed = interpreter.explain(error) is not None
print('{"failed": %s}' % str(failed).lower(), flush=True)
"""


def judge(seconds: float) -> tuple[Finding, ...]:
    """Return what is to be said of the modules of this Python, within `seconds` s.

    A hidden module is a failure where the imports of a run fail with it, or give no answer. They are tried in
    a process of their own, which is started only where a module is hidden.
    """
    found = []
    if names := missing():
        found.append(Finding("fail", SUBJECT, lacks(names), install()))
    files = () if names else hidden()
    if files:
        level: Level = "fail" if _fails(seconds) else "warn"
        found += [Finding(level, SUBJECT, hides(one), one.remedy) for one in files]
    found += [Finding("fail", SUBJECT, unsuited(one), one.remedy) for one in unfit()]
    fine = f"{sys.executable}, Python {platform.python_version()}, has all modules of this program"
    return tuple(found) or (Finding("ok", SUBJECT, fine),)


def _fails(seconds: float) -> bool:
    """Return whether the imports of a run fail here by a hidden module."""
    # `-c` searches the working directory first; a console script does not.
    safe = {} if os.getcwd() in map(os.path.abspath, sys.path[:1]) else {"PYTHONSAFEPATH": "1"}
    asked = Child(_PROGRAM, {**os.environ, **safe})
    try:
        told = asked.answer(seconds)
    finally:
        asked.end()
    return bool(told.get("failed", True))
