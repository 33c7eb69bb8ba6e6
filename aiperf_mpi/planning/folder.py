# SPDX-License-Identifier: Apache-2.0
"""The output folder of a run: one run creates and owns it, and a refused run removes what it created.

The file OWNER in the folder names the run that owns it. It is created exclusively, so of two runs that
start at the same moment one has the folder, and the other is refused before the core time.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiperf_mpi.config import ConfigError
from aiperf_mpi.config.paths import because, existing_folder, message
from aiperf_mpi.files import FileError, read_bytes
from aiperf_mpi.printable import plain

#: Name of the file that says which run owns the folder; whatever reads a result ignores it.
OWNER = "owner.json"

#: Folder of kept weights in an output folder, and the one in it with the states of trials that train.
CHECKPOINTS, RUNNING = "checkpoints", "running"

#: Most bytes of an owner file, and seconds in which another run writes the one that it has just created.
_MOST_BYTES, _WRITE_SECONDS = 4096, 2.0

#: Most folders of one second that an empty `run.output` tries.
_MOST_NAMES = 1000

#: How often a missing parent is created again.
_ATTEMPTS = 3

_OPTION, _REMEDY = "--output", "name another folder"


@dataclass(frozen=True, slots=True)
class Owner:
    """The run that owns a folder: its id, host and process of rank 0, and start (UTC, ISO 8601)."""

    run_id: str
    host: str
    pid: int
    start: str

    def __str__(self) -> str:
        """Return host, process and start for a message."""
        return plain(f"process {self.pid} on host {self.host}, started {self.start}")


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The output folder of this run.

    Attributes:
        path: its absolute path.
        run_id: id of this run, which the owner file has too.
        created: the folders that this run created, outermost first.
    """

    path: Path
    run_id: str
    created: tuple[Path, ...] = ()

    def remove(self) -> None:
        """Remove this run's owner file, and the folders that this run created as far as they are empty.

        Raise nothing: this is for a run that is refused already.
        """
        owner = read_owner(self.path)
        with suppress(OSError):
            if owner is not None and owner.run_id == self.run_id:
                os.unlink(self.path / OWNER)
        for folder in reversed(self.created):
            with suppress(OSError):
                folder.rmdir()

    def lost(self) -> str:
        """Return why the folder is not this run's any more, or "" if it is."""
        return lost(self.path, self.run_id)

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes for JSON; `from_dict` reads them."""
        return {
            "path": str(self.path),
            "run_id": self.run_id,
            "created": [str(made) for made in self.created],
        }

    @staticmethod
    def from_dict(data: dict[str, Any]) -> RunFolder:
        """Return the folder that `to_dict` described."""
        return RunFolder(Path(data["path"]), data["run_id"], tuple(map(Path, data["created"])))


def _nothing(folder: RunFolder) -> None:
    """Announce to nobody."""


#: Takes a folder that is about to be created, or has been.
Announce = Callable[[RunFolder], None]


def read_owner(folder: Path) -> Owner | None:
    """Return the owner of a folder; None where no owner file can be read. Never waits."""
    try:
        data = json.loads(read_bytes(folder / OWNER, _MOST_BYTES))
        return Owner(str(data["run_id"]), str(data["host"]), int(data["pid"]), str(data["start"]))
    except (FileError, ValueError, KeyError, TypeError, RecursionError):
        return None


def lost(folder: Path, run_id: str, *, holds_file: bool = False) -> str:
    """Return why a folder is not that of the run with this id any more, or "" if it is.

    `holds_file` says that a file which this run keeps open is still there: the folder is then this run's
    even without its owner file, unless that names another run.
    """
    owner = read_owner(folder)
    if owner.run_id == run_id if owner is not None else holds_file:
        return ""
    if owner is not None:
        return message(_OPTION, folder, f"it belongs to another run now ({owner})", _REMEDY)
    if not folder.is_dir():
        reason = "it was moved or removed after this run had created it"
        return message(_OPTION, folder, reason, "start the run again")
    reason = "its owner.json was removed or cannot be read"
    return message(_OPTION, folder, reason, "start the run again, in a new folder")


# -- claiming a folder -----------------------------------------------------------------------------


class Taken(ConfigError):
    """The folder has content or belongs to another run."""


def claim(folder: Path, run_id: str, announce: Announce = _nothing) -> RunFolder:
    """Create `folder` (absolute) with its missing parents, and make it this run's.

    An existing folder is taken if it is empty. `announce` gets what is about to be created, so that another
    process can remove it after a kill of this one. Raises ConfigError, and then leaves nothing, if the folder
    has content or another owner, or cannot be created or written.
    """
    missing = tuple(path for path in (*reversed(folder.parents), folder) if not os.path.lexists(path))
    announce(RunFolder(folder, run_id, missing))
    made: list[Path] = []
    with ExitStack() as undo:
        undo.callback(lambda: RunFolder(folder, run_id, tuple(made)).remove())
        try:
            for attempt in range(_ATTEMPTS):
                with _again(attempt):
                    if not _make_all(folder, made):
                        _check_empty(existing_folder(_OPTION, folder, _REMEDY))
                    _sign(folder, run_id)
                    break
            _check_empty(folder, signed=True)
        except OSError as error:
            where = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else folder
            why = because(error, where, _REMEDY, created=True)
            raise ConfigError(message(_OPTION, folder, *why)) from error
        claimed = RunFolder(folder, run_id, tuple(dict.fromkeys(made)))
        announce(claimed)
        undo.pop_all()
    return claimed


@contextmanager
def _again(attempt: int) -> Iterator[None]:
    """Pass over a FileNotFoundError, unless this is the last attempt.

    A folder may vanish after it was seen or created: another run that is refused removes what it created.
    """
    try:
        yield
    except FileNotFoundError:
        if attempt == _ATTEMPTS - 1:
            raise


def claim_first(folders: Iterator[Path], run_id: str, announce: Announce = _nothing) -> RunFolder:
    """Claim the first of `folders` that does not exist yet. Raises ConfigError like `claim`."""
    folder = Path()
    for folder in folders:
        if os.path.lexists(folder):
            continue
        try:
            return claim(folder, run_id, announce)
        except Taken:
            continue
    raise ConfigError(message(_OPTION, folder, "this name and those before it are taken", _REMEDY))


def default_folders(now: float | None = None) -> Iterator[Path]:
    """Yield folders for an empty `run.output`, named by the time `now` (seconds since 1970)."""
    name = time.strftime("runs/aiperf_mpi-%Y%m%d-%H%M%S", time.localtime(now))
    for number in range(1, _MOST_NAMES):
        yield Path(name if number == 1 else f"{name}-{number}")


def _make_all(folder: Path, made: list[Path]) -> bool:
    """Create a folder and its missing parents, and add them to `made`; return whether the folder is new."""
    for parent in reversed(folder.parents):
        _make(parent, made)
    return _make(folder, made) or folder in made


def _make(folder: Path, made: list[Path]) -> bool:
    """Create a folder unless it exists, and add it to `made`; return whether this call created it."""
    # Some file systems name another reason first, such as a read-only one, for a folder that exists.
    if os.path.isdir(folder):
        return False
    try:
        os.mkdir(folder)
    except FileExistsError:
        return False
    made.append(folder)
    return True


def _check_empty(folder: Path, *, signed: bool = False) -> None:
    """Raise Taken if the folder has content in addition to the owner file of this run (`signed`)."""
    names = set(os.listdir(folder)) - ({OWNER} if signed else set())
    if not names:
        return
    advice = "a run writes into a new folder, name another one"
    if OWNER in names:
        raise Taken(message(_OPTION, folder, _taken_by(folder), advice))
    raise Taken(message(_OPTION, folder, "not empty", advice))


def _taken_by(folder: Path) -> str:
    """Return which run owns a folder; wait a moment for one that has just created its owner file."""
    deadline = time.monotonic() + _WRITE_SECONDS
    while (owner := read_owner(folder)) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return f"belongs to another run ({owner or 'its owner file cannot be read'})"


def _sign(folder: Path, run_id: str) -> None:
    """Create the owner file. Raises Taken if there is one, OSError if it cannot be written."""
    owner = Owner(run_id, socket.gethostname(), os.getpid(), datetime.now(UTC).isoformat(timespec="seconds"))
    path = folder / OWNER
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except FileExistsError:
        # Another run has signed the folder, even if this run created it.
        raise Taken(message(_OPTION, folder, _taken_by(folder), "name another folder")) from None
    with ExitStack() as undo:
        undo.callback(os.unlink, path)
        undo.callback(os.close, descriptor)
        rest = memoryview(f"{json.dumps(asdict(owner))}\n".encode())
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
        undo.pop_all()
    os.close(descriptor)
