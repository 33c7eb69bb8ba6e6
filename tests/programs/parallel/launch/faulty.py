# SPDX-License-Identifier: Apache-2.0
"""Run aiperf_mpi with a fault at one point of its start, on one rank; the arguments are those of aiperf_mpi.

    FAULT_RANK     the rank, by the launcher's variables
    FAULT          "import NAME", "open PATH", "mpi CALL#COUNT" or "call MODULE:FUNCTION",
                   which raise; or "signal STEP": TERM when all others wait in STEP
    FAULT_FOLDER   where the time of the fault is written; without FAULT, the points of each rank

At the core time the job ends with 77 and the line REACHED, and leaves nothing.
"""

import errno
import importlib.abc
import importlib.machinery
import json
import os
import signal
import sys
import time
from pathlib import Path

#: The calls of MPI that the start makes.
COMM_CALLS = (
    "bcast allgather gather allreduce Split Split_type Dup Barrier Ibarrier Iallreduce Ibcast Isend Recv "
    "Iprobe"
).split()
WIN_CALLS = ("Allocate", "Allocate_shared")

NAMES = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "SLURM_PROCID")
RANK = next((os.environ[name] for name in NAMES if name in os.environ), "0")
FOLDER = Path(os.environ["FAULT_FOLDER"])
KIND, _, WHERE = os.environ.get("FAULT", "").partition(" ")
HERE = bool(KIND) and os.environ.get("FAULT_RANK") == RANK

seen: dict[str, list[str]] = {"import": [], "open": [], "mpi": [], "call": [], "signal": []}
counts: dict[str, int] = {}


def point(kind: str, where: str) -> bool:
    """Note a point, and return whether the fault is here; its time is written then, once."""
    seen[kind].append(where)
    if not HERE or kind != KIND or where != WHERE or (FOLDER / "stamp").exists():
        return False
    (FOLDER / "stamp").write_text(str(time.time()))
    return True


def audit(event: str, arguments: tuple) -> None:
    """Raise at an import or an open."""
    if event == "import" and point("import", arguments[0]):
        raise ImportError(f"injected: no module {arguments[0]}")
    if event == "open" and isinstance(arguments[0], str) and not arguments[0].startswith(str(FOLDER)):
        path = (
            "/proc/PID" if arguments[0].startswith("/proc/") and "self" not in arguments[0] else arguments[0]
        )
        if point("open", path):
            raise OSError(errno.EIO, "injected: Input/output error", arguments[0])


def counted(base: type, name: str, static: bool = False):
    """Return a method that raises at the count that the fault names."""
    original = getattr(base, name)

    def call(*arguments, **named):
        counts[name] = counts.get(name, 0) + 1
        if point("mpi", f"{name}#{counts[name]}"):
            raise RuntimeError(f"injected: {name}")
        return original(*arguments, **named)

    return staticmethod(call) if static else call


def spoil_mpi(module) -> None:
    """Have COMM_WORLD, and what is made from it, raise; it can be changed after MPI's initialisation."""
    mpi, line = module.MPI, module.line

    def first_line():
        if type(mpi.COMM_WORLD) is mpi.Intracomm:
            calls = {name: counted(mpi.Intracomm, name) for name in COMM_CALLS}
            mpi.COMM_WORLD = type("Comm", (mpi.Intracomm,), calls)(mpi.COMM_WORLD)
            mpi.Win = type("Win", (mpi.Win,), {name: counted(mpi.Win, name, True) for name in WIN_CALLS})
        return line()

    module.line = first_line
    exchange = module.exchange

    def signalled(step, *arguments, **named):
        if point("signal", step):
            time.sleep(4)
            (FOLDER / "stamp").write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGTERM)
        return exchange(step, *arguments, **named)

    module.exchange = signalled


def spoil_calls(module) -> None:
    """Have the module's own functions raise."""
    for name, value in list(vars(module).items()):
        if (
            callable(value)
            and getattr(value, "__module__", "") == module.__name__
            and not isinstance(value, type)
        ):
            setattr(module, name, failing(module.__name__, name, value))


def failing(module: str, name: str, original):
    def call(*arguments, **named):
        if point("call", f"{module}:{name}"):
            raise RuntimeError(f"injected: {name}")
        return original(*arguments, **named)

    return call


def spoil_end(module) -> None:
    """End the job at the core time, as an end before it does."""

    def reached(watch, *told: object) -> None:
        (FOLDER / f"seen.{RANK}.json").write_text(json.dumps(seen))
        if RANK == "0":
            time.sleep(0.5)
            module.write_error("REACHED\n")
            module.leave(77)
        time.sleep(20)

    module.Watch.core_time = reached


class Loader(importlib.abc.Loader):
    """Load a module as its own loader does, and change it then."""

    def __init__(self, loader, change):
        self.loader, self.change = loader, change

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module):
        self.loader.exec_module(module)
        self.change(module)


class Finder(importlib.abc.MetaPathFinder):
    """Find the modules that are to be changed."""

    def find_spec(self, name, path=None, target=None):
        change = CHANGES.get(name) or (spoil_calls if name.startswith("aiperf_mpi.machine.") else None)
        spec = importlib.machinery.PathFinder.find_spec(name, path) if change else None
        if spec is not None:
            spec.loader = Loader(spec.loader, change)
        return spec


CHANGES = {"aiperf_mpi.ending": spoil_end, "aiperf_mpi.parallel.launch.start": spoil_mpi}

from aiperf_mpi.__main__ import main  # noqa: E402  # before the fault, as `python -m` imports it

sys.meta_path.insert(0, Finder())
sys.addaudithook(audit)
sys.exit(main())
