# SPDX-License-Identifier: Apache-2.0
"""The classes of validation pictures that are not in folders: from ILSVRC2012's devkit, or a file of labels.

The devkit numbers the classes in an order of its own (ILSVRC ids): its meta.mat has the synset of each id. A
file of labels has names of classes, never numbers, which mean another thing in each collection:

    n01751748                                             a line for each picture, in the order of their names
    ILSVRC2012_val_00000001.JPEG n01751748                the name first, in any order
    ILSVRC2012_val_00000001,n01751748 111 108 441 193     LOC_val_solution.csv, with boxes after the class
"""

from __future__ import annotations

import io
import os
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from aiperf_mpi.config import ConfigError
from aiperf_mpi.config.paths import message, reading
from aiperf_mpi.data.manifest import VAL, Rejected
from aiperf_mpi.files import read_bytes, read_text
from aiperf_mpi.packing.sources.form import SETTING
from aiperf_mpi.packing.sources.pictures import Found, Member, readable

_META, _TRUTH = "meta.mat", "ILSVRC2012_validation_ground_truth.txt"
_DEVKIT_ARCHIVE = re.compile(r"ILSVRC2012_devkit.*\.(tar\.gz|tgz|tar)", re.IGNORECASE)
_LABEL_FILE = re.compile(r".*val.*\.(txt|csv)", re.IGNORECASE)

#: Below a folder: where an unpacked devkit has its two files.
_DEVKIT_PLACES = (Path("ILSVRC2012_devkit_t12/data"), Path("data"), Path("."))

#: The number in the name of a validation picture of ILSVRC2012, from 1.
_NUMBER = re.compile(rb"_val_(\d{8})")

#: Most bytes of a file of labels, of an archive of the devkit, and of that archive when it is unpacked.
_MOST_BYTES = 64 << 20

_WANTED = (
    "put ILSVRC2012_devkit_t12.tar.gz into the same folder, or a text file `val_labels.txt` with one line "
    "for each picture: its class, or its name and its class"
)


@dataclass(frozen=True, slots=True)
class Labels:
    """Classes of validation pictures.

    Attributes:
        path: the file that has them.
        by_name: class of a picture, by the name of its file without the ending; or
        in_order: the classes in the order of the pictures' names, of ILSVRC's by their numbers.
    """

    path: Path
    by_name: Mapping[str, str]
    in_order: Sequence[str] = ()

    @property
    def file(self) -> str:
        """Name of the file, printable."""
        return readable(os.fsencode(self.path.name))

    def is_of(self, folder: Path, name: str) -> bool:
        """Whether a file of a folder has the labels, or goes with that file, and so is not a picture."""
        return self.path.parent == folder and name in (self.file, _META)

    def applied(self, members: Sequence[Member], found: Found) -> Found:
        """Return `found` with `members`, named `class/file`. Raises ConfigError if the labels do not fit."""
        numbers = self._positions(members)
        for position, member in zip(numbers, members, strict=True):
            base = member.name.rpartition(b"/")[2]
            name = self._class(position, base)
            if name:
                found.members.append(Member(name.encode() + b"/" + base, member.place))
                found.classes.add(readable(name.encode()))
            else:
                reason = f"has no label in {self.file}"
                found.rejected.append(Rejected(VAL, readable(member.name), reason))
        return found

    def _class(self, position: int, base: bytes) -> str:
        """Return the class of a picture, "" if there is none."""
        if self.by_name:
            return self.by_name.get(_stem(readable(base)), "")
        return self.in_order[position] if 0 <= position < len(self.in_order) else ""

    def _positions(self, members: Sequence[Member]) -> Sequence[int]:
        """Return the line of each member in a file without names."""
        if self.by_name:
            return [0] * len(members)
        matches = [_NUMBER.search(member.name) for member in members]
        if all(matches):
            return [int(match[1]) - 1 for match in matches if match]
        if len(members) != len(self.in_order):
            reason = f"has {len(self.in_order)} labels, but there are {len(members)} validation pictures"
            raise ConfigError(
                message(SETTING, self.path, reason, "name each picture in it: `name class` in each line")
            )
        order = sorted(range(len(members)), key=lambda index: readable(members[index].name))
        positions = [0] * len(members)
        for position, index in enumerate(order):
            positions[index] = position
        return positions


def find_labels(folders: Sequence[Path]) -> Labels:
    """Return the classes of validation pictures from what one of the folders has; the first one is taken.

    Raises ConfigError if there is none, or if there are several files of labels in one folder.
    """
    for folder in dict.fromkeys(folders):
        if labels := _devkit(folder):
            return labels
        names = sorted(name for name in os.listdir(folder) if _LABEL_FILE.fullmatch(name) and name != _TRUTH)
        if len(names) > 1:
            reason = f"has several files of labels: {', '.join(names[:5])}"
            raise ConfigError(message(SETTING, folder, reason, "leave one of them there"))
        if names:
            return _label_file(folder / names[0])
    reason = "has validation pictures, but no labels for them"
    raise ConfigError(message(SETTING, folders[0], reason, _WANTED))


def _devkit(folder: Path) -> Labels | None:
    """Return the labels of the devkit in a folder, packed or unpacked, or None."""
    for place in _DEVKIT_PLACES:
        meta, truth = folder / place / _META, folder / place / _TRUTH
        if meta.exists() and truth.exists():
            with reading(SETTING, meta, _WANTED):
                return _of_ids(truth, read_bytes(meta, _MOST_BYTES), read_bytes(truth, _MOST_BYTES))
    for name in sorted(os.listdir(folder)):
        if _DEVKIT_ARCHIVE.fullmatch(name):
            path = folder / name
            with reading(SETTING, path, "download it again"):
                content = _unpacked(read_bytes(path, _MOST_BYTES))
                if lacking := [name for name in (_META, _TRUTH) if name not in content]:
                    reason = f"is a devkit without {' and '.join(lacking)}"
                    raise ConfigError(message(SETTING, path, reason, _WANTED))
                return _of_ids(path, content[_META], content[_TRUTH])
    return None


def _unpacked(archive: bytes) -> dict[str, bytes]:
    """Return the two files of the devkit from the bytes of its archive, in memory and within a bound."""
    if archive.startswith(b"\x1f\x8b"):
        archive = zlib.decompressobj(wbits=31).decompress(archive, _MOST_BYTES)
    content = {}
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as tar:
        for member in tar:
            base = member.name.rpartition("/")[2]
            if member.isreg() and base in (_META, _TRUTH) and (file := tar.extractfile(member)):
                content[base] = file.read()
    return content


def _of_ids(path: Path, meta: bytes, truth: bytes) -> Labels:
    """Return the labels of the devkit: its ids, and the synset that meta.mat gives to each.

    Raises ConfigError for an id without a synset.
    """
    from scipy.io import loadmat

    rows = loadmat(io.BytesIO(meta), squeeze_me=True, variable_names=["synsets"])["synsets"]
    synsets = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows.reshape(-1)}
    ids = [int(line) for line in truth.split()]
    if unknown := sorted(set(ids) - set(synsets)):
        reason = f"has the id {unknown[0]}, for which {_META} has no synset"
        raise ConfigError(message(SETTING, path, reason, "download the devkit again"))
    return Labels(path, {}, tuple(synsets[one] for one in ids))


def _label_file(path: Path) -> Labels:
    """Return the labels of a text file. Raises ConfigError for one of another form, naming the line."""
    by_name: dict[str, str] = {}
    in_order: list[str] = []
    with reading(SETTING, path, _WANTED):
        text = read_text(path, _MOST_BYTES)
    for number, name, label in _lines(text):
        problem = ""
        if label.isdecimal():
            problem = f"has the number {label} for a class; numbers mean another class in each collection"
        elif "/" in label or not label.isprintable() or not (name + label).strip():
            problem = "is not a class, or a name and a class"
        elif name and by_name.setdefault(name, label) != label:
            problem = f"gives {name} a second class"
        elif bool(by_name) != bool(name) or (name and in_order):
            problem = "has another form than the lines before it"
        if problem:
            raise ConfigError(message(SETTING, path, f"line {number} {problem}", _WANTED))
        if not name:
            in_order.append(label)
    if not by_name and not in_order:
        raise ConfigError(message(SETTING, path, "has no labels", _WANTED))
    return Labels(path, by_name, tuple(in_order))


def _lines(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield number, name of the picture without its ending, or "", and class of each line."""
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.replace(",", " ").replace("\t", " ").split()
        if not words or words[0] == "ImageId":
            continue
        yield (number, "", words[0]) if len(words) == 1 else (number, _stem(words[0]), words[1])


def _stem(name: str) -> str:
    """Return the name of a picture without folder and ending, as LOC_val_solution.csv has it."""
    return os.path.splitext(name.rpartition("/")[2])[0]
