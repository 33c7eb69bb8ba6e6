# SPDX-License-Identifier: Apache-2.0
"""Which modules this Python lacks, and which files of the user hide a module that the program needs.

Python searches the working directory and PYTHONPATH first: a file queue.py there takes the place of Python's
own module queue. This needs `os`, `sys` and the import system alone, as it also tells failed imports.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import FrozenImporter, PathFinder
from importlib.util import find_spec
from typing import NamedTuple

#: The packages that the program needs, as they are imported (install_requires of setup.cfg).
REQUIRED = (
    "mpi4py",
    "numpy",
    "jax",
    "flax",
    "optax",
    "scipy",
    "h5py",
    "PIL",
    "sklearn",
    "skopt",
    "rich",
    "matplotlib",
    "psutil",
    "threadpoolctl",
)

#: Errors that a missing, a foreign or an unfinished module leads to.
_ERRORS = (ImportError, AttributeError, TypeError, NameError, SyntaxError)

#: How the names of files and folders of an installation's records end.
_RECORDS = (".dist-info", ".egg-info", ".egg-link")

#: Most missing modules that a message names.
_MOST = 4


class Hidden(NamedTuple):
    """A module that a file of the user hides: its name, that file, and the entry of sys.path with it."""

    name: str
    path: str
    folder: str

    @property
    def remedy(self) -> str:
        """What to do."""
        if self.folder == os.getcwd():
            return f"remove or rename {self.path}, or start in another folder"
        return f"remove or rename {self.path}, or take {self.folder} out of PYTHONPATH"


# -- what is missing -------------------------------------------------------------------------------


def missing() -> tuple[str, ...]:
    """Return the names of the REQUIRED packages that this Python does not find; none is imported."""
    return tuple(name for name in REQUIRED if find_spec(name) is None)


def lacks(names: Sequence[str]) -> str:
    """Return what is wrong with a Python that lacks these modules."""
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    version = ".".join(map(str, sys.version_info[:3]))
    modules = f"module{'s' * (len(names) > 1)} {', '.join(names[:_MOST])}{more}"
    return f"{sys.executable} (Python {version}) lacks the {modules} of this program"


def install() -> str:
    """Return how to get a Python that has all modules."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    environment = os.path.join(root, ".venv", "bin", "activate")
    if os.path.exists(environment):
        return f"activate its environment: source {environment}"
    setup = os.path.join(root, "bin", "setup-environment")
    if os.path.exists(setup):
        return f"make its environment with {setup}, then: source {environment}"
    return (
        "activate the environment in which it is installed (source .venv/bin/activate), or type: "
        f"{sys.executable} -m pip install aiperf_mpi"
    )


# -- what is hidden --------------------------------------------------------------------------------


def hidden() -> tuple[Hidden, ...]:
    """Return the modules that files in the working directory or in PYTHONPATH hide."""
    own, found = os.path.realpath(os.path.dirname(os.__file__)), []
    for place, entry in enumerate(sys.path):
        folder = os.path.abspath(entry)
        if os.path.realpath(folder) == own:
            break
        try:
            files = os.listdir(folder)
        except OSError:
            continue
        installed = any(file.endswith(_RECORDS) for file in files)
        found += [
            Hidden(name, path, folder)
            for name, path in _modules(folder, files)
            if _is_own(name)
            or (name in REQUIRED and not installed and PathFinder.find_spec(name, sys.path[place + 1 :]))
        ]
    return tuple(found)


def hides(one: Hidden) -> str:
    """Return what is wrong with a file that hides a module."""
    what = "the package" if one.name in REQUIRED else "Python's own module"
    return f"{one.path} hides {what} {one.name}, which this program needs"


def _is_own(name: str) -> bool:
    """Return whether a file can hide this module of Python: it is neither built in nor loaded before."""
    if name not in sys.stdlib_module_names or name in sys.builtin_module_names:
        return False
    own, loaded = os.path.dirname(os.__file__) + os.sep, getattr(sys.modules.get(name), "__file__", None)
    return FrozenImporter.find_spec(name) is None and not (loaded or "").startswith(own)


def _modules(folder: str, files: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the names and paths of the modules in a folder: files, and folders with an __init__.py."""
    for file in sorted(files):
        path, (name, end) = os.path.join(folder, file), os.path.splitext(file)
        if end in (".py", ".so", ".pyc"):
            yield name.partition(".")[0], path
        elif not end and os.path.exists(os.path.join(path, "__init__.py")):
            yield name, path


# -- errors ----------------------------------------------------------------------------------------


def explain(error: BaseException) -> str | None:
    """Return what is wrong and what to do if a missing or a hidden module has led to this error."""
    chain: list[BaseException] = []
    while error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__ or error
    known = [one for one in chain if isinstance(one, _ERRORS)]
    try:
        for one in known:
            if isinstance(one, ModuleNotFoundError) and (one.name or "").partition(".")[0] in missing():
                return f"{lacks(missing())}; {install()}"
        guilty = next((one for one in hidden() if _led_to(one, known)), None) if known else None
        return None if guilty is None else f"{hides(guilty)}; {guilty.remedy}"
    except (OSError, ValueError):
        return None  # the working directory was removed, or a module has no specification


def _led_to(one: Hidden, errors: Sequence[BaseException]) -> bool:
    """Return whether a file is loaded in place of the module, or occurs in one of the errors."""
    loaded = getattr(sys.modules.get(one.name), "__file__", None) or ""
    if loaded.startswith(one.path):
        return True
    return any(path.startswith(one.path) for error in errors for path in _files(error))


def _files(error: BaseException) -> Iterator[str]:
    """Yield the files that an error names and those of its traceback."""
    yield from (text for text in (getattr(error, "filename", None), getattr(error, "path", None)) if text)
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame.f_code.co_filename
        trace = trace.tb_next
