# SPDX-License-Identifier: Apache-2.0
"""Pack in the process of the tests, and look at what was packed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py

from aiperf_mpi.data.manifest import RAW, Manifest
from aiperf_mpi.packing import job
from aiperf_mpi.packing.folder import Record
from aiperf_mpi.packing.work import Packer, Progress

#: Height and width of the packed pictures.
SIDE = 32


def quiet(line: str) -> None:
    """Say nothing."""


def request(source: Path, folder: Path, **options: object) -> job.Request:
    """Return a request for small shards, with some options of its own."""
    standard = {"side": SIDE, "shard_images": 20, "workers": 3, "max_rejected": 1000}
    return job.Request(source, folder, **standard | options)  # type: ignore[arg-type]


def pack(wanted: job.Request, tick: Callable[[Progress], None] = lambda progress: None) -> job.Conclusion:
    """Pack in this process."""
    prepared = job.prepare(wanted, quiet)
    try:
        if prepared.finished:
            return job.already(prepared)
        return job.conclude(prepared, pack_part(prepared, wanted.workers, tick))
    finally:
        prepared.release()


def pack_part(
    prepared: job.Prepared, workers: int, tick: Callable[[Progress], None], part: slice = slice(None)
) -> dict[str, Record]:
    """Pack a part of the shards; return their records."""
    plan = prepared.plan
    packer = Packer(prepared.source.pictures, prepared.folder, plan.layout, workers, tick)
    return packer.pack_all(plan.tasks()[part])


def content(folder: Path) -> dict[str, bytes]:
    """Return all files of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def packed(folder: Path, manifest: Manifest, split: str) -> dict[str, tuple[int, bytes]]:
    """Return label and bytes of each picture of a split, by its name."""
    found = {}
    for shard in manifest.splits[split]:
        with h5py.File(folder / shard.file) as file:
            names = [name.decode() for name in file["names"][...]]
            if manifest.encoding == RAW:
                data = [pixels.tobytes() for pixels in file["images"][...]]
            else:
                starts, files = file["offsets"][...].tolist(), file["jpeg"][...].tobytes()
                data = [files[begin:end] for begin, end in zip(starts, starts[1:], strict=False)]
            for name, label, one in zip(names, file["labels"][...].tolist(), data, strict=True):
                assert name not in found
                found[name] = (label, one)
    return found
