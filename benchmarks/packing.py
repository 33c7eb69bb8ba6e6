#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Measure what `pack` costs over a bare loop of the JPEG library's decoding and resizing, on as many threads.

The pictures have the size of ImageNet's, 500 x 375 pixels, and are cut from images that scikit-learn has. The
ways take turns, and each time is that of the process's cores: a loaded machine changes it little. Reading the
files is part of both.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402
from sklearn.datasets import load_sample_image  # noqa: E402

from aiperf_mpi.data import jpeg  # noqa: E402
from aiperf_mpi.data.manifest import ENCODINGS, TRAIN  # noqa: E402
from aiperf_mpi.packing import job  # noqa: E402
from aiperf_mpi.packing.work import Packer  # noqa: E402
from benchmarks.tables import goals, markdown, number, out_folder, write  # noqa: E402

SIDE, SIZE, QUALITY = 256, (500, 375), 92

#: Least part of the rate of the bare loop.
GOAL = 0.8

BARE = "bare decoding and resizing"


def make_source(folder: Path, count: int) -> None:
    """Write `count` training pictures of two classes, and a validation picture of each."""
    whole = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    random = np.random.default_rng(0)
    for number_of in range(count + 2):
        split = "train" if number_of < count else "val"
        left, top = (int(random.integers(most)) for most in (640 - SIZE[0], 427 - SIZE[1]))
        path = folder / split / f"class {number_of % 2}" / f"{number_of}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        part = whole[number_of % 2].crop((left, top, left + SIZE[0], top + SIZE[1]))
        part.save(path, "JPEG", quality=QUALITY)


def bare(files: Sequence[Path], workers: int) -> float:
    """Return the processor time in s of a picture, decoded at its full size and resized."""

    def one(path: Path) -> None:
        jpeg.fit(jpeg.decode(path.read_bytes()), SIDE)

    begin = time.process_time()
    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(one, files):
            pass
    return (time.process_time() - begin) / len(files)


def packed(source: Path, folder: Path, encoding: str, workers: int) -> float:
    """Return the processor time in s of a training picture that is packed, with hashes and syncs."""
    request = job.Request(source, folder, encoding, SIDE, 256, workers)
    prepared = job.prepare(request, lambda line: None)
    tasks = [task for task in prepared.plan.tasks() if task.split == TRAIN]
    packer = Packer(
        prepared.source.pictures, prepared.folder, prepared.plan.layout, workers, lambda so_far: None
    )
    begin = time.process_time()
    packer.pack_all(tasks)
    spent = time.process_time() - begin
    prepared.release()
    shutil.rmtree(folder)
    return spent / sum(len(task.positions) for task in tasks)


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pictures", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=out_folder, help="folder for the table and its JSON")
    arguments = parser.parse_args()
    times: dict[str, list[float]] = {way: [] for way in (BARE, *ENCODINGS)}
    with tempfile.TemporaryDirectory() as place:
        source = Path(place) / "source"
        make_source(source, arguments.pictures)
        files = sorted((source / "train").rglob("*.JPEG"))
        for _ in range(arguments.rounds):
            times[BARE].append(bare(files, arguments.workers))
            for encoding in ENCODINGS:
                times[encoding].append(packed(source, Path(place) / "set", encoding, arguments.workers))
    of_bare = {
        way: median(base / own for base, own in zip(times[BARE], spent, strict=True))
        for way, spent in times.items()
    }
    rows = [
        [way if way == BARE else f"pack --encoding {way}", number(median(spent) * 1e3), number(of_bare[way])]
        for way, spent in times.items()
    ]
    table = markdown(["way", "ms of a core, a picture", "rate, of the bare loop"], rows)
    met = goals({f"raw packing at least {GOAL} of the bare loop": of_bare["raw"] >= GOAL})
    how = (
        f"{arguments.pictures} pictures of {SIZE[0]} x {SIZE[1]} pixels, {arguments.workers} threads, "
        f"medians of {arguments.rounds} rounds in turn; {os.cpu_count()} CPUs, load "
        f"{os.getloadavg()[0]:.0f}; "
        + ", ".join(f"{name} {version}" for name, version in jpeg.versions().items())
        + "."
    )
    parts = ["# Packing pictures", how, table, met]
    write(arguments.out, "packing", "\n\n".join(parts), {"seconds": times, "of bare": of_bare})


if __name__ == "__main__":
    main()
