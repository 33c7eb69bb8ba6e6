# SPDX-License-Identifier: Apache-2.0
"""`pack`: prepare ImageNet, or another set of pictures, once for all runs; under mpirun by all ranks."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from rich.filesize import decimal

from aiperf_mpi.commands.refusal import refuse
from aiperf_mpi.config import ConfigError
from aiperf_mpi.config.paths import expanded
from aiperf_mpi.descriptors import tell
from aiperf_mpi.exits import EXIT_INVALID
from aiperf_mpi.printable import counted

if TYPE_CHECKING:
    from aiperf_mpi.packing.job import Conclusion, Request

#: Signals that end a packing without a launcher.
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def add_pack(commands: Any) -> None:
    """Add `pack` to the subparsers; `Request.check` checks the values of its options."""
    pack = commands.add_parser(
        "pack",
        help="prepare ImageNet or other pictures for training; also under mpirun",
        description="Pack pictures into the shards that runs read (docs/data.md). A packing that was ended "
        "goes on when the same command is run again.",
    )
    pack.add_argument("paths", nargs="*", metavar="SRC DST", help="what the site has; the folder to make")
    pack.add_argument("--encoding", default="raw", help="raw pixels (default), or jpeg for small disks")
    pack.add_argument("--side", type=int, metavar="S", help="height and width in pixels (default 256)")
    pack.add_argument("--shard-images", type=int, metavar="N", help="pictures of a shard (default 4096)")
    pack.add_argument("--workers", type=int, metavar="N", help="threads of each process (default: its cores)")
    pack.add_argument(
        "--max-rejected",
        type=int,
        metavar="N",
        help="exit with 3 if more pictures cannot be packed (default: 0 for ImageNet, else any number)",
    )
    pack.add_argument("--name", default="", help="name of the set (default: ILSVRC2012, or that of SRC)")
    pack.add_argument("--md5", action="store_true", help="also compute the MD5 of ImageNet's archives")
    pack.add_argument("--verify", action="store_true", help="check all hashes of DST: exit 0 or 3")
    pack.add_argument("--info", action="store_true", help="print what DST has")
    pack.set_defaults(handler=pack_command, prepare=prepare)


def pack_command(arguments: argparse.Namespace) -> int:
    """Pack, verify or describe, in this process alone; return the exit code."""
    for number in _SIGNALS:
        signal.signal(number, _interrupt)
    try:
        if arguments.info or arguments.verify:
            return _look(arguments)
        request = read(arguments)
        # The command to repeat is known now.
        try:
            return _pack_alone(request)
        except KeyboardInterrupt as error:
            number = signal.Signals(error.args[0] if error.args else signal.SIGINT)
            tell(f"aiperf_mpi: {number.name}: the packing ends; run the same command again: it goes on")
            return 128 + number
    except ConfigError as error:
        return refuse(error)


def prepare(arguments: argparse.Namespace) -> Callable[[Sequence[str]], int]:
    """Return the function that packs as one rank of a job; rank 0 alone verifies and describes."""
    from aiperf_mpi.ending import process, watch

    if arguments.info or arguments.verify:
        watch.stop()
        return lambda words: 0 if process.rank else pack_command(arguments)
    process.step = "arguments"
    request = read(arguments)
    process.step = "imports"
    from aiperf_mpi.parallel import packing

    return partial(packing.pack_job, request, finish)


def read(arguments: argparse.Namespace) -> Request:
    """Return what the arguments ask for. Raises ConfigError."""
    from aiperf_mpi.packing import job

    source, folder = _paths(arguments, "SRC", "DST")
    request = job.Request(
        source=source,
        folder=folder,
        encoding=arguments.encoding,
        side=job.SIDE if arguments.side is None else arguments.side,
        shard_images=job.SHARD_IMAGES if arguments.shard_images is None else arguments.shard_images,
        workers=job.default_workers() if arguments.workers is None else arguments.workers,
        max_rejected=arguments.max_rejected,
        name=arguments.name,
        md5=arguments.md5,
    )
    request.check()
    return request


def finish(conclusion: Conclusion) -> int:
    """Print how a packing has ended; return the exit code."""
    for line in conclusion.lines:
        tell(f"aiperf_mpi: {line}")
    if conclusion.manifest is None:
        return EXIT_INVALID
    manifest = conclusion.manifest
    counts = ", ".join(
        f"{counted(manifest.images(split), 'picture')} for {split}" for split in manifest.splits
    )
    rejected = counted(len(conclusion.rejected), "picture")
    print(f"packed {manifest.name}: {counts}, {decimal(manifest.bytes)}, {rejected} rejected")
    return 0


def _pack_alone(request: Request) -> int:
    """Pack in this process. Raises ConfigError."""
    from aiperf_mpi.packing import job
    from aiperf_mpi.packing.progress import ProgressView
    from aiperf_mpi.packing.work import Packer, Progress

    prepared = job.prepare(request, lambda line: tell(f"aiperf_mpi: {line}"))
    try:
        if prepared.finished is not None:
            return finish(job.already(prepared))
        plan, tasks = prepared.plan, prepared.plan.tasks()
        view = ProgressView(sys.stderr, "packing", "pictures", sum(plan.pictures.values()))

        def tick(progress: Progress) -> None:
            view.update(progress.done, progress.kept, progress.more)

        try:
            packer = Packer(prepared.source.pictures, prepared.folder, plan.layout, request.workers, tick)
            records = packer.pack_all(tasks)
        finally:
            view.close()
        return finish(job.conclude(prepared, records))
    finally:
        prepared.release()


def _look(arguments: argparse.Namespace) -> int:
    """Describe or verify a packed set; return the exit code. Raises ConfigError."""
    from aiperf_mpi.packing import check, job
    from aiperf_mpi.packing.progress import ProgressView

    (folder,) = _paths(arguments, "DST")
    manifest = check.manifest_of(folder)
    if arguments.info:
        print("\n".join(check.describe(folder, manifest)))
    if not arguments.verify:
        return 0
    workers = job.default_workers() if arguments.workers is None else max(1, arguments.workers)
    view = ProgressView(sys.stderr, "verifying", "GB", manifest.bytes, 1e9)
    try:
        problems = check.problems(folder, manifest, workers, view.update)
    finally:
        view.close()
    for problem in problems:
        tell(f"aiperf_mpi: {problem}")
    shards = sum(len(of_split) for of_split in manifest.splits.values())
    words = (
        f"{len(problems)} of {counted(shards, 'shard')} are wrong" if problems else f"all {shards} are right"
    )
    print(f"verified {manifest.name}: {words}")
    return EXIT_INVALID if problems else 0


def _paths(arguments: argparse.Namespace, *names: str) -> list[Path]:
    """Return the paths of a command, which must be as many as their names. Raises ConfigError."""
    if len(arguments.paths) != len(names):
        wanted = " ".join(names)
        raise ConfigError(
            f"pack: it takes {wanted}, not {counted(len(arguments.paths), 'path')}; see pack --help"
        )
    return [expanded(name, path, stored=False) for name, path in zip(names, arguments.paths, strict=True)]


def _interrupt(number: int, frame: FrameType | None) -> None:
    """End the packing with its clean-up; a second signal ends it at once."""
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_DFL)
    raise KeyboardInterrupt(number)
