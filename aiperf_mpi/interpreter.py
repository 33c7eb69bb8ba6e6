# SPDX-License-Identifier: Apache-2.0
"""Which modules this Python lacks or has in another version, and which files of the user hide one.

Python searches the working directory and PYTHONPATH first: a file queue.py there takes the place of Python's
own module queue. A site's module file may add a folder with other versions of packages, or with packages of
another Python. This needs `os`, `sys` and the import system alone, as it also tells failed imports.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import FrozenImporter, PathFinder
from importlib.util import find_spec
from typing import NamedTuple

#: The packages that the program needs, as they are imported, and their versions (setup.cfg has the same).
REQUIRED = {
    "mpi4py": ">=4.0",
    "numpy": ">=2.0",
    "jax": ">=0.10,<0.13",
    "flax": ">=0.12",
    "optax": ">=0.2.6",
    "scipy": ">=1.14",
    "h5py": ">=3.12",
    "PIL": ">=11",
    "sklearn": ">=1.5",
    "skopt": ">=0.10.2",
    "rich": ">=13",
    "matplotlib": ">=3.9",
    "psutil": ">=6",
    "threadpoolctl": ">=3.5",
}

#: Distributions whose module has another name.
DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn", "skopt": "scikit-optimize"}

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


class Unfit(NamedTuple):
    """A package in another version than the program needs: its name for pip, its version, what is needed, and
    the folder that it is in."""

    name: str
    version: str
    needed: str
    folder: str

    @property
    def remedy(self) -> str:
        """What to do: a folder that comes before the environment is left out of the search."""
        if self.folder in _from_variable():
            return f"take {self.folder} out of PYTHONPATH"
        if self.folder == getattr(sys.modules.get("site"), "USER_SITE", None):
            return "set PYTHONNOUSERSITE=1, so that Python passes over that folder"
        return f"type: {sys.executable} -m pip install '{self.name}{self.needed}'"


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


# -- other versions --------------------------------------------------------------------------------


def unfit() -> tuple[Unfit, ...]:
    """Return the REQUIRED packages that Python finds first in a version with which the program does not work.

    None is imported. A package that has no record of its installation is passed over.
    """
    from importlib import metadata

    found = []
    for module, needed in REQUIRED.items():
        name = DISTRIBUTIONS.get(module, module)
        try:
            one = metadata.distribution(name)
            version, folder = one.version, str(one.locate_file(""))
        except (metadata.PackageNotFoundError, OSError, KeyError):
            continue
        if version and not _fits(version, needed):
            found.append(Unfit(name, version, needed, os.path.abspath(folder)))
    return tuple(found)


def unsuited(one: Unfit) -> str:
    """Return what is wrong with a package in another version."""
    return f"{one.folder} has {one.name} {one.version}, but this program needs {one.name}{one.needed}"


def check_versions() -> str | None:
    """Return in one line which package has an unfit version, and what to do; None where all fit."""
    return next((f"{unsuited(one)}; {one.remedy}" for one in unfit()), None)


def _fits(version: str, needed: str) -> bool:
    """Return whether a version is within bounds such as `>=0.10,<0.13`."""
    own = _numbers(version)
    return all(
        own >= _numbers(bound[2:]) if bound.startswith(">=") else own < _numbers(bound[1:])
        for bound in needed.split(",")
    )


def _numbers(version: str) -> tuple[int, ...]:
    """Return the numbers at the beginning of a version, without zeros at their end: 4.0 is 4."""
    numbers = []
    for part in version.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
        if digits != part:
            break
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


def _from_variable() -> tuple[str, ...]:
    """Return the folders of PYTHONPATH."""
    return tuple(os.path.abspath(one) for one in os.environ.get("PYTHONPATH", "").split(os.pathsep) if one)


# -- what is hidden --------------------------------------------------------------------------------


def hidden(*, installed: bool = False) -> tuple[Hidden, ...]:
    """Return the modules that files in the working directory or in PYTHONPATH hide.

    A package that was installed there is meant to be there, and is left out unless `installed` is set.
    """
    own, found = os.path.realpath(os.path.dirname(os.__file__)), []
    for place, entry in enumerate(sys.path):
        folder = os.path.abspath(entry)
        if os.path.realpath(folder) == own:
            break
        try:
            files = os.listdir(folder)
        except OSError:
            continue
        meant = not installed and any(file.endswith(_RECORDS) for file in files)
        found += [
            Hidden(name, path, folder)
            for name, path in _modules(folder, files)
            if _is_own(name)
            or (name in REQUIRED and not meant and PathFinder.find_spec(name, sys.path[place + 1 :]))
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
    """Return what is wrong and what to do if a missing, a hidden or an unfit module has led to this error."""
    chain: list[BaseException] = []
    while error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__ or error
    known = [one for one in chain if isinstance(one, _ERRORS)]
    try:
        for one in known:
            if isinstance(one, ModuleNotFoundError) and (one.name or "").partition(".")[0] in missing():
                return f"{lacks(missing())}; {install()}"
            if isinstance(one, ModuleNotFoundError) and (text := _without_own(one.name or "")):
                return text
        guilty = next((one for one in hidden() if _led_to(one, known)), None) if known else None
        if guilty is not None:
            return f"{hides(guilty)}; {guilty.remedy}"
        return (check_versions() or _foreign(known)) if known else None
    except (OSError, ValueError, ImportError, AttributeError):
        return None  # the working directory was removed, or what tells the versions is itself broken


def _without_own(name: str) -> str | None:
    """Return what to do where Python does not find a module of its own."""
    if name not in sys.stdlib_module_names or find_spec(name) is not None:
        return None
    text, home = f"{sys.executable} does not find Python's own module {name}", os.environ.get("PYTHONHOME")
    if home:
        return f"{text}: PYTHONHOME={home} makes it search another Python; unset PYTHONHOME"
    return f"{text}: it was built without it, or is damaged; make the environment with another Python"


def _foreign(errors: Sequence[BaseException]) -> str | None:
    """Return what to do where an installed package in PYTHONPATH cannot be imported by this Python."""
    failed = [error for error in errors if isinstance(error, ImportError)]
    for one in hidden(installed=True):
        if any(path.startswith(one.path) for error in failed for path in _files(error)):
            version = ".".join(map(str, sys.version_info[:3]))
            text = f"Python {version} cannot import {one.path}, which may be of another Python"
            return f"{text}; take {one.folder} out of PYTHONPATH"
    return None


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
