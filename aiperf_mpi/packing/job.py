# SPDX-License-Identifier: Apache-2.0
"""What comes before the shards and after them: look at the source, take the folder, write the manifest."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from aiperf_mpi.config import ConfigError
from aiperf_mpi.config.paths import message
from aiperf_mpi.data.manifest import ENCODINGS, FILE, RAW, SPLITS, Manifest, Rejected
from aiperf_mpi.launchers import local_size
from aiperf_mpi.machine.affinity import cpus_of_process, cpus_to_have
from aiperf_mpi.packing.folder import SETTING, Folder, Record, differences
from aiperf_mpi.packing.plan import MEASURED, Plan, listing_of, versions
from aiperf_mpi.packing.progress import ProgressView
from aiperf_mpi.packing.source import Source, check_md5, check_whole, open_source
from aiperf_mpi.printable import counted, named, plain

#: Name of ImageNet's set in the manifest, and its rejected pictures where the command says no number.
ILSVRC, ILSVRC_REJECTED = "ILSVRC2012", 0
STANDIN_NAME = f"{ILSVRC} stand-in"

#: Defaults, and the limits of the manifest.
SIDE, LEAST_SIDE, MOST_SIDE = 256, 8, 4096
SHARD_IMAGES, MOST_SHARD_IMAGES = 4096, 1 << 20
MOST_WORKERS = 1024
MOST_NAME = 100

#: Rejected pictures that are shown at the end.
_SHOWN = 20

_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Request:
    """What the command line asks for; see docs/data.md.

    Attributes:
        max_rejected: None for the default: 0 for ImageNet, any number for another set.
        name: of the set; "" for the default.
        md5: whether the MD5 of the archives is computed.
    """

    source: Path
    folder: Path
    encoding: str = RAW
    side: int = SIDE
    shard_images: int = SHARD_IMAGES
    workers: int = 1
    max_rejected: int | None = None
    name: str = ""
    md5: bool = False

    def check(self) -> None:
        """Raise ConfigError for a value that is not possible."""
        limits = {
            "--side": (self.side, LEAST_SIDE, MOST_SIDE),
            "--shard-images": (self.shard_images, 1, MOST_SHARD_IMAGES),
            "--workers": (self.workers, 1, MOST_WORKERS),
            "--max-rejected": (self.max_rejected or 0, 0, 1 << 62),
        }
        for option, (value, least, most) in limits.items():
            if not least <= value <= most:
                raise ConfigError(f"{option} {value}: it must be within {least} and {most}")
        if self.encoding not in ENCODINGS:
            raise ConfigError(f"--encoding {plain(self.encoding)}: it must be {' or '.join(ENCODINGS)}")
        if len(self.name) > MOST_NAME or not self.name.isprintable():
            raise ConfigError(f"--name: write at most {MOST_NAME} printable characters")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A packing whose source and folder are known.

    Attributes:
        source, plan, folder: what is packed where, and how.
        allowed: number of pictures that may be rejected.
        finished: the manifest, if all is packed already.
        release: gives the folder free for other processes.
    """

    source: Source
    plan: Plan
    folder: Folder
    allowed: float
    finished: Manifest | None
    release: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Conclusion:
    """The end of a packing.

    Attributes:
        manifest: of the set; None where more pictures are rejected than allowed.
        rejected: all rejected pictures.
        lines: what a person should know.
    """

    manifest: Manifest | None
    rejected: tuple[Rejected, ...]
    lines: tuple[str, ...]


def prepare(request: Request, say: Callable[[str], None]) -> Prepared:
    """Look at the source and take the folder; `say` gets what a person should know. Raises ConfigError."""
    request.check()
    _check_apart(request)
    folder = Folder(request.folder)
    release = folder.claim()
    try:
        say(f"looks at {plain(str(request.source))}")
        source = open_source(request.source)
        check_whole(request.source, source, request.max_rejected or 0)
        for note in source.notes:
            say(note)
        plan = _plan(request, source)
        finished = folder.finished()
        if finished is not None:
            _check_finished(folder, finished, plan)
        else:
            # What is refused for its size leaves no plan: other options may follow.
            _check_space(folder, plan)
            folder.check_plan(plan)
            if request.md5:
                say(f"reads {counted(len(source.files), 'archive')} for the MD5")
                source = _with_md5(source)
    except BaseException:
        folder.leave()
        release()
        raise
    unlimited = 0.0 if source.is_ilsvrc else math.inf
    allowed = unlimited if request.max_rejected is None else float(request.max_rejected)
    return Prepared(source, plan, folder, allowed, finished, release)


def conclude(prepared: Prepared, records: Mapping[str, Record]) -> Conclusion:
    """Write the manifest after the last shard, unless more pictures are rejected than allowed.

    `records` are those of all shards, by the file's name. Raises ConfigError.
    """
    rejected = list(prepared.source.rejected)
    for record in records.values():
        rejected += record.rejected
    listed = tuple(sorted(rejected, key=lambda one: (one.split, one.name, one.reason)))
    lines = [f"rejected: {one.split} {one.name}: {one.reason}" for one in listed[:_SHOWN]]
    if len(listed) > prepared.allowed:
        path = prepared.folder.list_rejected(listed)
        number, allowed = counted(len(listed), "picture"), f"--max-rejected allows {prepared.allowed:.0f}"
        lines.append(
            f"{number} rejected, but {allowed}: the set is not finished. {named(path)} has the whole list. "
            "Mend them and run the same command again, which packs only their shards again, or pass "
            f"--max-rejected {len(listed)}"
        )
        return Conclusion(None, listed, tuple(lines))
    manifest = _manifest(prepared, records, listed)
    prepared.folder.conclude(manifest)
    if len(listed) > _SHOWN:
        lines.append(f"rejected: {len(listed) - _SHOWN} more, see {named(prepared.folder.path / FILE)}")
    return Conclusion(manifest, listed, tuple(lines))


def already(prepared: Prepared) -> Conclusion:
    """Return the end of a packing that was finished before."""
    assert prepared.finished is not None
    prepared.folder.remove_work()
    line = f"{named(prepared.folder.path)} is packed already; --verify checks its hashes"
    return Conclusion(prepared.finished, prepared.finished.rejected, (line,))


def default_workers() -> int:
    """Return the number of threads for this process: its cores, or its share of them under a launcher."""
    cores = len(cpus_of_process()) or os.cpu_count() or 1
    bound = cores < len(cpus_to_have())
    return min(max(1, cores if bound else cores // local_size()), MOST_WORKERS)


def _check_apart(request: Request) -> None:
    """Raise ConfigError for a folder among the pictures of the source, which would be taken for a class."""
    folder, source = request.folder.resolve(), request.source.resolve()
    if source in folder.parents[1:]:
        reason = f"is in a folder of the source {named(request.source)}"
        raise ConfigError(message(SETTING, request.folder, reason, "name a folder that is not in the source"))


def _plan(request: Request, source: Source) -> Plan:
    """Return the plan of a request. Raises ConfigError for a source of fewer than two classes."""
    if len(source.classes) < 2:
        reason = f"has {counted(len(source.classes), 'class')}, but a set needs two or more"
        raise ConfigError(message("SRC", request.source, reason, "name the folder above the classes"))
    ilsvrc = STANDIN_NAME if source.standin else ILSVRC
    default = ilsvrc if source.is_ilsvrc else plain(request.source.resolve().name)[:MOST_NAME] or "images"
    return Plan(
        name=request.name or default,
        encoding=request.encoding,
        side=request.side,
        shard_images=request.shard_images,
        pictures={split: len(source.pictures[split]) for split in SPLITS},
        listing=listing_of(source.classes, source.pictures),
        versions=versions(),
        standin=source.standin,
    )


def _check_finished(folder: Folder, manifest: Manifest, plan: Plan) -> None:
    """Raise ConfigError if a packed set is not what the plan would make; the versions may differ."""
    before = {
        "name": manifest.name,
        "encoding": manifest.encoding,
        "side": manifest.side,
        "standin": manifest.standin,
        **{key: manifest.source.get(key) for key in ("listing", "shard_images")},
    }
    now = {**plan.to_dict(), "shard_images": str(plan.shard_images)}
    if words := differences(before, {key: now[key] for key in before}):
        reason = f"has a packed set with {words}"
        raise ConfigError(message(SETTING, folder.path, reason, "name a new folder"))


def _check_space(folder: Folder, plan: Plan) -> None:
    """Raise ConfigError if raw shards do not fit; the size of JPEG files is known only when they are made."""
    if plan.encoding != RAW:
        return
    there = sum(
        (folder.path / task.file).stat().st_size
        for task in plan.tasks()
        if (folder.path / task.file).is_file()
    )
    need = sum(plan.pictures.values()) * plan.layout.picture_bytes - there
    status = os.statvfs(folder.path)
    if need > (free := status.f_bavail * status.f_frsize):
        reason = f"needs {need / _GIB:.2f} GiB, but {free / _GIB:.2f} GiB are free"
        better = "make room, name another file system, or pass --encoding jpeg or a smaller --side"
        raise ConfigError(message(SETTING, folder.path, reason, better))


def _with_md5(source: Source) -> Source:
    """Return a source whose description has the MD5 of its archives. Raises ConfigError for a wrong one."""
    total, done = sum(path.stat().st_size for path in source.files), 0
    view = ProgressView(sys.stderr, "computing the MD5", "GB", total, 1e9)

    def count(size: int) -> None:
        nonlocal done
        done += size
        view.update(done)

    try:
        sums = check_md5(source, count)
    finally:
        view.close()
    return replace(source, description={**source.description, **sums})


def _manifest(prepared: Prepared, records: Mapping[str, Record], rejected: Sequence[Rejected]) -> Manifest:
    """Return the manifest of a set whose shards are all there. Raises ConfigError if a split is empty."""
    plan, source = prepared.plan, prepared.source
    ordered = [(task.split, records[task.file]) for task in plan.tasks()]
    splits = {
        name: tuple(one.shard for split, one in ordered if split == name and one.shard is not None)
        for name in SPLITS
    }
    for split, shards in splits.items():
        if not shards:
            reason = f"has no picture for {split} that can be decoded; the first: {_first(rejected, split)}"
            raise ConfigError(message(SETTING, prepared.folder.path, reason, "check the source"))
    if not any(record.pixels for record in records.values()):
        reason = f"has no picture that can be decoded among the first {MEASURED} of its order, for the mean"
        raise ConfigError(message(SETTING, prepared.folder.path, reason, "check the source"))
    mean, deviation = moments(list(records.values()))
    if min(deviation) == 0:
        reason = "has training pictures that all have one colour, from which nothing can be learned"
        raise ConfigError(message(SETTING, prepared.folder.path, reason, "check the source"))
    return Manifest(
        name=plan.name,
        encoding=plan.encoding,
        side=plan.side,
        classes=source.classes,
        splits=splits,
        mean=mean,
        deviation=deviation,
        rejected=tuple(rejected),
        source={
            "form": source.form,
            **source.description,
            "listing": plan.listing,
            "shard_images": str(plan.shard_images),
        },
        versions=plan.versions,
        standin=plan.standin,
    )


def moments(records: Sequence[Record]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation of each colour, scaled to 0..1, from exact sums."""
    pixels = sum(record.pixels for record in records)
    mean, deviation = [], []
    for colour in range(3):
        average = Fraction(sum(record.sums[colour] for record in records), pixels)
        square = Fraction(sum(record.squares[colour] for record in records), pixels)
        mean.append(float(average / 255))
        deviation.append(math.sqrt((square - average**2) / 255**2))
    return tuple(mean), tuple(deviation)


def _first(rejected: Sequence[Rejected], split: str) -> str:
    """Return the first rejected picture of a split, with its reason."""
    return next((f"{one.name}: {one.reason}" for one in rejected if one.split == split), "none")
