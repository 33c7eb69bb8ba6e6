# SPDX-License-Identifier: Apache-2.0
"""What a site already has of ImageNet, or of another set of pictures: found out by looking.

Forms: the published archives (`archives`), a folder for each class (`folders`), the layout CLS-LOC
(`cls-loc`), and TFRecords (`tfrecords`). All of them give the same names, labels and bytes for the same
pictures.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from aiperf_mpi.config import ConfigError
from aiperf_mpi.config.ilsvrc import MD5_KEY
from aiperf_mpi.config.paths import existing_folder, message, reading
from aiperf_mpi.data.manifest import FILE, SPLITS, Rejected
from aiperf_mpi.files import open_regular
from aiperf_mpi.packing.sources import archives, folders, ilsvrc, tfrecords
from aiperf_mpi.packing.sources.form import SETTING, Form
from aiperf_mpi.packing.sources.pictures import Picture, Pictures, SourceError, in_order
from aiperf_mpi.printable import counted, named

__all__ = ["Picture", "Source", "SourceError", "open_source", "check_whole", "check_md5"]

#: The forms in the order in which they are looked for.
_FORMS = (archives.find, tfrecords.find, folders.find_cls_loc, folders.find)

_REMEDY = (
    "name the folder that has ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and the devkit; or train/ and "
    "val/ with a folder for each class; or ILSVRC/Data/CLS-LOC; or train-00000-of-01024 and its like"
)

#: A file of this name in a source says that its pictures are made up, with the counts of another set.
STANDIN = "STANDIN"
_MARKED = f"the file {STANDIN} says that these pictures are made up: a run on them is always a trial"

#: Names that a message or a note lists.
_NAMED = 5

_CHUNK = 8 << 20


@dataclass(frozen=True, slots=True)
class Source:
    """The pictures that are to be packed.

    Attributes:
        form: `archives`, `folders`, `cls-loc` or `tfrecords`.
        classes: names of the classes, sorted; a label is a position in them.
        pictures: the pictures of `train` and `val`, each in the order of their names.
        rejected: members that cannot be pictures, with the reason.
        description: what the manifest says of the source; no path of this host.
        is_ilsvrc: whether the classes are those of ILSVRC2012.
        standin: whether the source is marked by a file STANDIN.
        notes: what a person should know before the packing begins.
        files: the archives of the form `archives`.
    """

    form: str
    classes: tuple[str, ...]
    pictures: Mapping[str, Pictures]
    rejected: tuple[Rejected, ...]
    description: Mapping[str, str]
    is_ilsvrc: bool
    standin: bool = False
    notes: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()


def open_source(path: Path) -> Source:
    """Return what the folder `path` has. Names, labels and sizes are read, the pictures are not.

    Raises ConfigError that says what was looked for, what was found, and what to do.
    """
    existing_folder(SETTING, path, _REMEDY)
    with reading(SETTING, path, "check that it is whole, or name another source"):
        for find in _FORMS:
            if form := find(path):
                return _source(path, form)
        if (path / FILE).exists():
            better = f"train with --set data.path={named(path)}, or name the source of another packing"
            raise ConfigError(message(SETTING, path, "is a packed set already", better))
        raise ConfigError(
            message(SETTING, path, f"has no pictures in a known form: it has {_content(path)}", _REMEDY)
        )


def check_whole(path: Path, source: Source, most: int = 0) -> None:
    """Raise ConfigError for a copy of ILSVRC2012 of which more than `most` pictures are missing."""
    if not source.is_ilsvrc:
        return
    labels = {split: source.pictures[split].labels for split in SPLITS}
    number, words = ilsvrc.missing(source.classes, labels)
    if number > most:
        if source.rejected:
            words += f"; {_first(source.rejected)}"
        allowed = max(number, len(source.rejected))
        remedy = f"complete it, or pass --max-rejected {allowed} to pack what there is"
        raise ConfigError(message(SETTING, path, f"is not the whole of ILSVRC2012: {words}", remedy))


def check_md5(source: Source, read: Callable[[int], None] = lambda count: None) -> dict[str, str]:
    """Return the MD5 of each archive of a source, for the manifest. It reads all of them: ImageNet's 138 GB.

    Arguments:
        read: is called with the number of bytes after each part that was read.

    Raises ConfigError for a published archive with another MD5.
    """
    sums = {}
    for path in source.files:
        remedy = "download it again"
        digest = hashlib.md5(usedforsecurity=False)
        with reading(SETTING, path, remedy), open_regular(path) as file:
            while part := os.read(file.fileno(), _CHUNK):
                digest.update(part)
                read(len(part))
        sums[f"{MD5_KEY}{path.name}"] = digest.hexdigest()
        if ilsvrc.MD5.get(path.name, digest.hexdigest()) != digest.hexdigest():
            reason = f"has the MD5 {digest.hexdigest()} instead of the published {ilsvrc.MD5[path.name]}"
            raise ConfigError(message(SETTING, path, reason, remedy))
    return sums


def _source(path: Path, form: Form) -> Source:
    """Return the source of a form that was found in `path`. Raises ConfigError if a split has no picture."""
    classes = tuple(sorted(set[str]().union(*(found.classes for found in form.splits.values()))))
    labels = {name: label for label, name in enumerate(classes)}
    rejected: list[Rejected] = []
    pictures = {}
    for split in SPLITS:
        found = form.splits[split]
        members, twice = in_order(split, found.members)
        rejected += sorted([*found.rejected, *twice], key=lambda one: (one.name, one.reason))
        if not members:
            its = [one for one in rejected if one.split == split]
            reason = f"has no pictures for {split}" + (f": {_first(its)}" if its else "")
            raise ConfigError(message(SETTING, path, reason, _REMEDY))
        pictures[split] = Pictures(split, members, labels, found.reader)
        # The members of one split go before those of the other come: they take some 300 MB.
        found.members.clear()
    hidden = sum(found.hidden for found in form.splits.values())
    standin = os.path.lexists(path / STANDIN)
    description = {**form.description, **({"hidden files left out": str(hidden)} if hidden else {})}
    return Source(
        form=form.name,
        classes=classes,
        pictures=pictures,
        rejected=tuple(rejected),
        description=description,
        is_ilsvrc=ilsvrc.is_ilsvrc(classes),
        standin=standin,
        notes=(*form.notes, *([_MARKED] if standin else []), *_notes(classes, pictures, hidden)),
        files=form.files,
    )


def _notes(classes: Sequence[str], pictures: Mapping[str, Pictures], hidden: int) -> list[str]:
    """Return what is odd about the classes, and what was left out."""
    notes = []
    for split in SPLITS:
        used = set(pictures[split].labels.tolist())
        if lacking := [name for label, name in enumerate(classes) if label not in used]:
            shown = ", ".join(lacking[:_NAMED]) + (", ..." if len(lacking) > _NAMED else "")
            verb = "class has" if len(lacking) == 1 else "classes have"
            notes.append(f"{len(lacking)} {verb} no pictures for {split}: {shown}")
    synsets = sum(1 for name in classes if ilsvrc.SYNSET.fullmatch(name))
    if synsets == len(classes) and synsets > ilsvrc.CLASSES // 2 and not ilsvrc.is_ilsvrc(classes):
        notes.append(f"these are {synsets} classes of WordNet, but not the 1000 of ILSVRC2012")
    if hidden:
        notes.append(f"{counted(hidden, 'hidden member')} left out, by a name that begins with a dot")
    return notes


def _first(rejected: Sequence[Rejected]) -> str:
    """Return how many members were rejected, and the first of them with its reason."""
    count = counted(len(rejected), "member")
    return f"{count} rejected, the first: {named(rejected[0].name)} {rejected[0].reason}"


def _content(path: Path) -> str:
    """Return the names of some of what a folder has, for a message."""
    names = sorted(os.listdir(path))
    if not names:
        return "nothing"
    return ", ".join(map(named, names[:_NAMED])) + (
        f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    )
