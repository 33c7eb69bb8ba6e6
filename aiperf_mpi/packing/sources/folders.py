# SPDX-License-Identifier: Apache-2.0
"""Pictures in a tree of folders: one for each class, or a flat folder for validation with a file of labels.

The layout CLS-LOC (as Kaggle hands ImageNet out) is such a tree, some folders further down.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from aiperf_mpi.config.paths import reading
from aiperf_mpi.data.manifest import TRAIN, VAL, Rejected
from aiperf_mpi.files import FileError, not_regular, open_regular, system_reason
from aiperf_mpi.packing.sources.form import SETTING, Form, pool
from aiperf_mpi.packing.sources.labels import find_labels
from aiperf_mpi.packing.sources.pictures import (
    BEGINNING_BYTES,
    NO_PICTURE,
    SUFFIXES,
    Found,
    Member,
    is_hidden,
    may_be_picture,
    read_file,
    readable,
)

#: Names of the folders of the splits, in small letters; the first that exists is taken.
_NAMES = {
    TRAIN: ("train", "training", "ilsvrc2012_img_train"),
    VAL: ("val", "validation", "valid", "ilsvrc2012_img_val", "test"),
}

#: Where the layout CLS-LOC has its pictures, below the folder that has all of it.
_CLS_LOC = (Path("ILSVRC/Data/CLS-LOC"), Path("Data/CLS-LOC"), Path("CLS-LOC"))

OUTSIDE = "is not in the folder of a class"
_REMEDY = "get permission for it, or remove it from the source"


@dataclass(frozen=True, slots=True)
class FolderReader:
    """Reads pictures below `root`; in a flat folder the class is not a part of the path."""

    root: bytes
    flat: bool = False

    def read(self, member: bytes, place: Sequence[int]) -> bytes:
        """Return the bytes of a member. Raises SourceError or FileError."""
        return read_file(os.path.join(self.root, member.partition(b"/")[2] if self.flat else member))


def find(path: Path) -> Form | None:
    """Return the pictures of a folder that has train/ and val/, or None. Raises ConfigError, OSError."""
    return _tree("folders", path, [path])


def find_cls_loc(path: Path) -> Form | None:
    """Return the pictures of the layout CLS-LOC in `path`, one of its folders, or None.

    Its labels may be in each folder of the layout, and in none above it. Raises ConfigError, OSError.
    """
    for root in (*(path / place for place in _CLS_LOC), path):
        place = next((place for place in _CLS_LOC if root.match(str(place))), None)
        if place is not None and root.is_dir():
            return _tree("cls-loc", root, [root, *root.parents[: len(place.parts)]])
    return None


def _tree(name: str, root: Path, label_folders: Sequence[Path]) -> Form | None:
    """Return the pictures of train/ and val/ in `root`, or None.

    The labels of a flat val/ are in it or in one of `label_folders`, the first that has some.
    """
    places = {split: _folder_of(split, root) for split in _NAMES}
    train, val = places[TRAIN], places[VAL]
    if train is None or val is None:
        return None
    description = {"train": train.name, "val": val.name}
    splits = {TRAIN: classes_in(TRAIN, os.fsencode(train))}
    if _is_flat(val):
        labels = find_labels([val, *label_folders])
        members, found = _flat(os.fsencode(val))
        found.rejected = [one for one in found.rejected if not labels.is_of(val, one.name)]
        splits[VAL] = labels.applied(members, found)
        description["labels of val"] = labels.file
    else:
        splits[VAL] = classes_in(VAL, os.fsencode(val))
    return Form(name, splits, description)


def _folder_of(split: str, root: Path) -> Path | None:
    """Return the folder of a split in `root`, whatever its letters' case."""
    by_name: dict[str, str] = {}
    for name in sorted(os.listdir(root)):
        by_name.setdefault(name.lower(), name)
    for name in _NAMES[split]:
        if name in by_name and (root / by_name[name]).is_dir():
            return root / by_name[name]
    return None


def _is_flat(folder: Path) -> bool:
    """Whether a folder has files, and no folders that may be classes."""
    with os.scandir(os.fsencode(folder)) as entries:
        kinds = {_kind(entry) for entry in entries if not is_hidden(entry.name)}
    return ("folder", "") not in kinds and ("file", "") in kinds


def _flat(root: bytes) -> tuple[list[Member], Found]:
    """Return the pictures of a flat folder, without their classes, and what was rejected or hidden."""
    found = Found(FolderReader(root, flat=True))
    members = [Member(name) for name in _pictures(VAL, root, found, _root(root))]
    return members, found


def classes_in(split: str, root: bytes) -> Found:
    """Return the pictures in the folders of the classes in `root`. Raises ConfigError for a closed folder."""
    found = Found(FolderReader(root))
    classes, top = [], _root(root)
    for entry in _entries(root):
        kind, reason = _kind(entry)
        if is_hidden(entry.name):
            found.hidden += 1
        elif kind == "folder" and not reason:
            classes.append(entry.name)
            found.classes.add(readable(entry.name))
        else:
            found.rejected.append(Rejected(split, readable(entry.name), reason or OUTSIDE))

    def of_class(name: bytes) -> tuple[list[Member], Found]:
        its = Found(found.reader)
        return [Member(member) for member in _pictures(split, os.path.join(root, name), its, top)], its

    with pool() as threads:
        for members, its in threads.map(of_class, classes):
            found.members += members
            found.rejected += its.rejected
            found.hidden += its.hidden
    return found


class _Folder(NamedTuple):
    """A folder that is still to be read, and the identities of it and of those above it."""

    path: bytes
    above: frozenset[tuple[int, int]]


def _pictures(split: str, folder: bytes, found: Found, root: _Folder) -> Iterator[bytes]:
    """Yield the names below `root` of the pictures in `folder` and in its folders.

    What is not a picture, and what is hidden, is put down in `found`.
    """
    waiting = [_Folder(folder, root.above | {_identity(folder)})]
    while waiting:
        current = waiting.pop()
        for entry in _entries(current.path):
            if is_hidden(entry.name):
                found.hidden += 1
                continue
            kind, reason = _kind(entry)
            if kind == "folder" and not reason:
                identity = _identity(entry.path)
                if identity not in current.above:
                    waiting.append(_Folder(entry.path, current.above | {identity}))
                    continue
                reason = "is a symbolic link to a folder above it"
            if kind == "file" and not may_be_picture(entry.name, lambda path=entry.path: _beginning(path)):  # type: ignore[misc]
                reason = NO_PICTURE
            name = entry.path[len(root.path) + 1 :]
            if reason:
                found.rejected.append(Rejected(split, readable(name), reason))
            else:
                yield name


def _root(path: bytes) -> _Folder:
    """Return the folder of a split, with what is above it: a link of its members may lead there too."""
    parents = map(os.fsencode, Path(os.fsdecode(path)).resolve().parents)
    return _Folder(path, frozenset(map(_identity, [path, *parents])))


def _entries(folder: bytes) -> list[os.DirEntry[bytes]]:
    """Return what is in a folder. Raises ConfigError where this user may not list it."""
    with reading(SETTING, os.fsdecode(folder), _REMEDY), os.scandir(folder) as entries:
        return list(entries)


def _identity(folder: bytes) -> tuple[int, int]:
    """Return the device and the number of a folder, which a loop of links shows again."""
    with reading(SETTING, os.fsdecode(folder), _REMEDY):
        status = os.stat(folder)
    return status.st_dev, status.st_ino


def _kind(entry: os.DirEntry[bytes]) -> tuple[str, str]:
    """Return `file`, `folder` or "" for what else a folder has, and why it cannot be a picture, or ""."""
    try:
        if entry.is_dir():
            named_picture = os.path.splitext(entry.name)[1].lower() in SUFFIXES
            return "folder", "is a folder with the name of a picture" if named_picture else ""
        if entry.is_file():
            return "file", ""
        return "", "is " + not_regular(os.fsdecode(entry.path))
    except OSError as error:
        if entry.is_symlink():
            return "", f"is a symbolic link: {system_reason(error)}"
        return "", system_reason(error)


def _beginning(path: bytes) -> bytes:
    """Return the first bytes of a file, or b"" if it cannot be read."""
    try:
        with open_regular(os.fsdecode(path)) as file:
            return os.read(file.fileno(), BEGINNING_BYTES)
    except (FileError, OSError):
        return b""
