# SPDX-License-Identifier: Apache-2.0
"""Paths that a user gives: expand them, make them absolute, and say in one line what is wrong with one.

Every path of a user goes through :func:`expanded`, or :func:`replaced` where it is shown as it was written.
Every error of the system, and every failure of a library that reads, becomes a ConfigError `setting: path:
reason; what to do`.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aiperf_mpi.config.setting import ConfigError, of_locale
from aiperf_mpi.files import FileError, open_regular
from aiperf_mpi.interpreter import explain
from aiperf_mpi.printable import named, plain

#: What a URL begins with, such as `gs://` and `file:///`.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")

#: A variable in a path: `$NAME` or `${NAME}`; in the second form, whatever is in the braces.
_VARIABLE = re.compile(r"\$(?:\{([^}]*)\}?|([A-Za-z_]\w*))", re.ASCII)

#: The name of a variable.
_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)

#: Reason and remedy for each error of the system that users meet; without a remedy, the caller's holds.
_REASONS: dict[int, tuple[str, str]] = {
    errno.ENOTDIR: ("a part of the path is a file, not a folder", ""),
    errno.EISDIR: ("is a folder, not a file", ""),
    errno.EEXIST: ("exists already", ""),
    errno.ENOTEMPTY: ("is not empty", ""),
    errno.ELOOP: ("its symbolic links form a loop", "mend the links, or name the place itself"),
    errno.ENAMETOOLONG: ("the name is longer than the file system allows", "shorten it"),
    errno.EIO: ("the storage reports an input/output error", "check the storage, or name another place"),
    errno.ESTALE: (
        "it was removed or replaced on the file server",
        "check the path, and mount it again if needed",
    ),
    errno.ETIMEDOUT: ("the file server does not answer", "wait for the file server, or name another place"),
    errno.EHOSTDOWN: ("the file server does not answer", "wait for the file server, or name another place"),
    errno.ENOTCONN: ("the file system is not connected any more", "mount it again, or name another place"),
    errno.EROFS: ("the file system is read-only", ""),
    errno.ENOSPC: ("no space is left on the file system", "make room, or name another file system"),
    errno.EDQUOT: ("the quota of this user is used up", "make room, or name another file system"),
    errno.EFBIG: ("the file would be larger than allowed", "raise the limit: ulimit -f unlimited"),
    errno.EMFILE: ("too many files are open in this process", "raise the limit: ulimit -n 4096"),
    errno.ENFILE: ("too many files are open on this host", "ask the administrators of the host"),
    errno.ENOMEM: ("no memory is left", "free memory on this host, or use fewer ranks on it"),
    errno.EINVAL: ("the file system does not allow this name or operation", ""),
    errno.EILSEQ: ("the file system does not allow this name", ""),
}

#: What else than a file or folder a path may name.
_KINDS = (
    (stat.S_ISREG, "a file"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def message(setting: str, path: str | os.PathLike[str], reason: str, remedy: str = "") -> str:
    """Return `setting: path: reason; remedy` on one line; an option (`--output`) has no colon after it."""
    start = setting if setting.startswith("--") else f"{setting}:"
    return f"{start} {named(path)}: {reason}" + (f"; {remedy}" if remedy else "")


def expanded(setting: str, path: str | os.PathLike[str], *, stored: bool = True) -> Path:
    """Return a path that a user gave, absolute, with `~` and variables replaced as by :func:`replaced`.

    Arguments:
        setting: name of the setting or option in the message.
        stored: whether the result stores the path; a stored one has printable characters only.

    Raises ConfigError for a URL, for a name that no file can have, for a variable without a value, and where
    the home folder or the working directory is unknown.
    """
    text = os.fspath(path)
    if not text:
        raise ConfigError(f"{setting}: the path is empty; write a path")
    # The value of a variable is checked like what was written.
    for part in (text, text := replaced(setting, text)):
        if "\0" in part or (stored and not part.isprintable()):
            reason = "has characters that cannot be printed or are not UTF-8"
            raise ConfigError(message(setting, part, reason, of_locale(part) or "name a path without them"))
        if _URL.match(part):
            reason = "is a URL, but this program reads and writes files only"
            raise ConfigError(message(setting, part, reason, "name a path of a mounted file system"))
    place = Path(text)
    if place.is_absolute():
        return place
    try:
        return Path.cwd() / place
    except OSError:
        reason = "is relative, but the working directory was removed"
        raise ConfigError(
            message(setting, text, reason, "write the whole path, from /, or change the directory")
        ) from None


def replaced(setting: str, text: str) -> str:
    """Return a path with variables (`$NAME`, `${NAME}`) and then `~`, `~user` replaced by their values.

    A path that exists as it is written stays as it is, but for `~`. So does a variable without a value in the
    name of a file or folder that exists, and a `$` that no name follows. There is no way to write a new name
    with a variable in it. A path that is replaced once more stays the same. Raises ConfigError for any other
    variable that has no value, and for a home folder that is unknown.
    """
    if "\0" in text:
        return text
    if "$" in text and not _exists(text):
        text = _VARIABLE.sub(lambda found: _value(setting, found), text)
    return os.fspath(_from_home(setting, text)) if text.startswith("~") else text


def _value(setting: str, found: re.Match[str]) -> str:
    """Return the value of a variable in a path. Raises ConfigError if it has no value."""
    whole, text = found.string, found[0]
    name = found[2] or found[1]
    wrong = not _NAME.fullmatch(name) or (found[2] is None and not text.endswith("}"))
    if not wrong and (value := os.environ.get(name)):
        return value
    # The name of the file or folder that has the variable in it.
    end = whole.find("/", found.start())
    if _exists(whole if end < 0 else whole[:end]):
        return text
    if wrong:
        reason, remedy = f"{named(text)} is not the form of a variable", "write ${NAME}, or the value"
    else:
        reason = f"the variable ${name} in it is not set"
        if name in os.environ:
            reason = f"the variable ${name} in it is empty"
        remedy = f"export {name}, or write its value"
    raise ConfigError(message(setting, whole, reason, remedy))


def _exists(text: str) -> bool:
    """Return whether a file, folder or link has the name `text`, with `~` replaced where it can be."""
    try:
        return os.path.lexists(os.path.expanduser(text))
    except (OSError, ValueError):
        return False


def _from_home(setting: str, text: str) -> Path:
    """Return a path that begins with `~` or `~user` below the home folder. Raises ConfigError."""
    name = Path(text).parts[0]
    try:
        path = Path(text).expanduser()
    except (RuntimeError, KeyError, OSError):
        path = Path()
    # An empty HOME would make it a path below the root.
    if path.is_absolute() and (name != "~" or os.environ.get("HOME") != ""):
        return path
    if name == "~":
        reason = "~ cannot be expanded: HOME is not set, empty or relative, or this user is unknown"
    else:
        reason = f"{name} cannot be expanded: there is no user {name[1:]}"
    raise ConfigError(message(setting, text, reason, "write the whole path, from /"))


#: Errors of a rename onto a folder.
_IN_THE_WAY = (errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST)


def because(
    error: OSError, path: str | os.PathLike[str], remedy: str = "check the path", *, created: bool = False
) -> tuple[str, str]:
    """Return why the system refused `path`, in plain words, and what to do: `remedy`, or a better one.

    `created` says that the path was to be created, not read.
    """
    number = error.errno or 0
    if number in (errno.EACCES, errno.EPERM):
        better = remedy if created else "get permission for it, or name another place"
        return _forbidden(Path(os.path.abspath(path)), created), better
    if number == errno.ENOENT:
        return _absent(Path(os.path.abspath(path)), remedy, created)
    if number in _REASONS:
        reason, better = _REASONS[number]
        return reason, better or remedy
    return plain(error.strerror or str(error) or type(error).__name__), remedy


def _forbidden(path: Path, created: bool) -> str:
    """Return which folder on the way to `path`, or that the path itself, is closed to this user."""
    user = f"user {os.geteuid()}"
    for parent in reversed(path.parents):
        if os.path.isdir(parent) and not os.access(parent, os.X_OK, effective_ids=True):
            return f"{user} may not enter the folder {named(parent)}"
    return f"{user} may not write here" if created else f"{user} has no permission for it"


def _absent(path: Path, remedy: str, created: bool) -> tuple[str, str]:
    """Return what of `path` does not exist, and what to do."""
    for part in (*reversed(path.parents), path):
        if part.is_symlink() and not os.path.exists(part):
            reason = f"{named(part)} is a link to {named(os.readlink(part))}, which does not exist"
            return reason, "mend the link, or name another place"
    if created:
        return "the file system creates nothing here", remedy
    return "does not exist", remedy


@contextmanager
def reading(setting: str, path: str | os.PathLike[str], remedy: str) -> Iterator[None]:
    """Turn everything that can go wrong while `path` is read in the `with` block into a ConfigError.

    These are errors of the system, a lack of memory, and any exception of a library that reads damaged
    content. A ConfigError of the block passes as it is.
    """
    try:
        yield
    except ConfigError:
        raise
    except FileError as error:
        # A FileError without a number of the system may have its own remedy.
        own = (error.reason, "" if "; " in error.reason else remedy)
        why = because(OSError(error.errno, ""), path, remedy) if error.errno else own
        raise ConfigError(message(setting, error.path, *why)) from error
    except OSError as error:
        # A file cannot replace what has the second name.
        name = error.filename2 if error.errno in _IN_THE_WAY and error.filename2 else error.filename
        where = os.fsdecode(name) if isinstance(name, str | bytes) else path
        why = because(error, where, remedy)
        if not error.errno:
            from aiperf_mpi import hdf5

            why = hdf5.reason(error), remedy
        raise ConfigError(message(setting, where, *why)) from error
    except MemoryError as error:
        reason = f"the memory of this host does not suffice to read it{_detail(error)}"
        better = "use fewer ranks on a host, or a smaller data set"
        raise ConfigError(message(setting, path, reason, better)) from error
    except ImportError as error:
        reason = f"a Python package that reads it is missing or broken{_detail(error)}"
        text, _, better = (explain(error) or f"{reason}; install this program again").rpartition("; ")
        raise ConfigError(message(setting, path, text, better)) from error
    except Exception as error:
        reason = f"it is damaged, or of another format: {type(error).__name__}{_detail(error)}"
        raise ConfigError(message(setting, path, reason, remedy)) from error


def _detail(error: BaseException) -> str:
    """Return the first line of an exception's text in parentheses, or ""."""
    lines = str(error).strip().splitlines()
    return f" ({plain(lines[0])[:200]})" if lines else ""


def status(setting: str, path: Path, remedy: str) -> os.stat_result:
    """Return the status of what `path` names, after its links. Raises ConfigError where there is nothing."""
    with reading(setting, path, remedy):
        return os.stat(path)


def existing_folder(setting: str, path: Path, remedy: str) -> Path:
    """Return `path`, a folder that this user may list and enter. Raises ConfigError otherwise."""
    mode = status(setting, path, remedy).st_mode
    if not stat.S_ISDIR(mode):
        raise ConfigError(message(setting, path, f"{kind(mode)}, not a folder", remedy))
    with reading(setting, path, remedy), os.scandir(path) as entries:
        next(entries, None)
    if not os.access(path, os.X_OK, effective_ids=True):
        raise ConfigError(message(setting, path, f"user {os.geteuid()} may not enter it", remedy))
    return path


def creatable_folder(setting: str, path: Path, remedy: str) -> Path:
    """Return `path`, a folder that this user may write into, or may create. Raises ConfigError otherwise.

    Nothing is created: the nearest folder that exists tells.
    """
    for place in (path, *path.parents):
        try:
            mode = os.stat(place).st_mode
        except OSError as error:
            if isinstance(error, FileNotFoundError) and not os.path.islink(place):
                continue
            raise ConfigError(
                message(setting, place, *because(error, place, remedy, created=True))
            ) from error
        if not stat.S_ISDIR(mode):
            raise ConfigError(message(setting, place, f"{kind(mode)}, not a folder", remedy))
        if not os.access(place, os.W_OK | os.X_OK, effective_ids=True):
            why = because(OSError(errno.EACCES, ""), place, remedy, created=True)
            raise ConfigError(message(setting, place, *why))
        break
    return path


def readable_file(setting: str, path: Path, remedy: str) -> int:
    """Return the bytes of `path`, a regular file that this user may read. Raises ConfigError otherwise."""
    mode = status(setting, path, remedy).st_mode
    if not stat.S_ISREG(mode):
        raise ConfigError(message(setting, path, f"{kind(mode)}, not a file", remedy))
    with reading(setting, path, remedy), open_regular(path) as file:
        return os.fstat(file.fileno()).st_size


def kind(mode: int) -> str:
    """Return what a file's mode says that it is, such as "a folder"."""
    return next((name for test, name in _KINDS if test(mode)), "of an unknown kind")
