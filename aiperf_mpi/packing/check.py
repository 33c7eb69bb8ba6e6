# SPDX-License-Identifier: Apache-2.0
"""Check a packed set against its manifest, and describe it for people."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

from rich.filesize import decimal

from aiperf_mpi.config import ConfigError
from aiperf_mpi.config.paths import existing_folder, message
from aiperf_mpi.data.manifest import FILE, SPLITS, Manifest, Shard, read_manifest
from aiperf_mpi.data.shard import open_shard
from aiperf_mpi.files import FileError, open_regular, system_reason
from aiperf_mpi.packing.folder import SETTING, WORK
from aiperf_mpi.packing.shard import hash_of
from aiperf_mpi.printable import counted, named

#: Rejected pictures that are shown, and letters of a hash that are.
_SHOWN, _LETTERS = 20, 16


def manifest_of(folder: Path) -> Manifest:
    """Return the manifest of a packed set. Raises ConfigError that says how one is made."""
    remedy = "name a folder that pack has made"
    existing_folder(SETTING, folder, remedy)
    if not os.path.lexists(folder / FILE):
        begun = (folder / WORK).is_dir()
        reason = "its packing is not finished" if begun else f"there is no {FILE}"
        better = "run the command that began it again: it goes on" if begun else remedy
        raise ConfigError(message(SETTING, folder, reason, better))
    try:
        return read_manifest(folder)
    except FileError as error:
        raise ConfigError(f"{SETTING}: {error}") from None


def problems(
    folder: Path, manifest: Manifest, workers: int, tick: Callable[[int], None] = lambda done: None
) -> list[str]:
    """Return what is wrong with the shards of a set, one line each, after all their bytes are read.

    `tick` gets the bytes that are read so far, several times a second.
    """
    shards = [shard for split in SPLITS for shard in manifest.splits[split]]
    done, lock, stop = [0], threading.Lock(), threading.Event()

    def count(size: int) -> None:
        if stop.is_set():
            raise InterruptedError
        with lock:
            done[0] += size

    pool = ThreadPoolExecutor(workers, thread_name_prefix="verify")
    try:
        looks = [pool.submit(_problem, folder, shard, manifest, count) for shard in shards]
        while wait(looks, timeout=0.2).not_done:
            tick(done[0])
        found = [look.result() for look in looks]
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
    return [problem for problem in found if problem]


def _problem(folder: Path, shard: Shard, manifest: Manifest, count: Callable[[int], None]) -> str:
    """Return what is wrong with a shard, or ""."""
    path = folder / shard.file
    try:
        with open_regular(path) as file:
            digest, size = hash_of(file.fileno(), count)
        if size != shard.bytes:
            return f"{named(path)}: has {size} bytes, but the manifest says {shard.bytes}"
        if digest != shard.sha256:
            ours, theirs = digest[:_LETTERS], shard.sha256[:_LETTERS]
            return f"{named(path)}: its SHA-256 is {ours}..., but the manifest says {theirs}..."
        open_shard(folder, shard, manifest).close()
    except FileError as error:
        return str(error)
    except OSError as error:
        return f"{named(path)}: {system_reason(error)}"
    return ""


def describe(folder: Path, manifest: Manifest) -> Iterator[str]:
    """Yield what a manifest says, in lines for people."""
    kind = ", a stand-in of made-up pictures" if manifest.standin else ""
    yield f"packed set: {manifest.name}{kind}"
    yield f"folder: {named(folder)}"
    yield f"encoding: {manifest.encoding}, pictures of {manifest.side} x {manifest.side} pixels"
    yield f"classes: {len(manifest.classes)}, {manifest.classes[0]} to {manifest.classes[-1]}"
    for split in SPLITS:
        shards = manifest.splits[split]
        size = decimal(sum(shard.bytes for shard in shards))
        images = manifest.images(split)
        yield f"{split}: {counted(images, 'picture')} in {counted(len(shards), 'shard')}, {size}"
    yield "mean: " + ", ".join(f"{value:.4f}" for value in manifest.mean)
    yield "deviation: " + ", ".join(f"{value:.4f}" for value in manifest.deviation)
    for key, value in manifest.source.items():
        yield f"source {key}: {value}"
    yield "versions: " + ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
    yield f"content SHA-256: {manifest.sha256}"
    yield f"rejected: {len(manifest.rejected)}"
    for one in manifest.rejected[:_SHOWN]:
        yield f"  {one.split} {one.name}: {one.reason}"
    if (left := len(manifest.rejected) - _SHOWN) > 0:
        yield f"  and {left} more, in {FILE}"
