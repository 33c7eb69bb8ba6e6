#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Measure what `pack` spends on looking at a source and on reading its pictures, for each form.

Processor time of this process: the files are in the page cache. In the same run, the barest loop that finds
the same members: `tarfile` over each archive, `os.scandir` over each folder, a loop over lengths of records.
"""

from __future__ import annotations

import argparse
import os
import pickle
import struct
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from aiperf_mpi.packing.source import open_source  # noqa: E402
from aiperf_mpi.paper import IMAGENET_IMAGES  # noqa: E402
from benchmarks.tables import markdown, out_folder, write  # noqa: E402
from tests.helpers import sources  # noqa: E402

#: Classes of the made source, as ImageNet has.
CLASSES = 1000


def bare_archives(root: Path) -> None:
    """List the members of all archives with tarfile alone."""
    with tarfile.open(root / "ILSVRC2012_img_train.tar") as outer:
        for member in outer:
            with tarfile.open(fileobj=outer.extractfile(member)) as inner:
                sum(1 for _ in inner)
    with tarfile.open(root / "ILSVRC2012_img_val.tar") as val:
        sum(1 for _ in val)


def bare_folders(root: Path) -> None:
    """List all folders."""
    waiting = [str(root)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            waiting += [entry.path for entry in entries if entry.is_dir()]


def bare_records(root: Path) -> None:
    """Step over all records by their lengths."""
    for path in root.iterdir():
        with open(path, "rb", buffering=0) as file:
            while head := file.read(12):
                file.seek(struct.unpack("<Q", head[:8])[0] + 4, os.SEEK_CUR)


BARE: dict[str, Callable[[Path], None]] = {
    "archives": bare_archives,
    "tfrecords": bare_records,
    "cls-loc": bare_folders,
    "folders": bare_folders,
}


def seconds(action: Callable[[], object]) -> float:
    """Return the processor time of an action."""
    begun = time.process_time()
    action()
    return time.process_time() - begun


def measure(form: str, made: list[sources.Sample], root: Path) -> dict[str, float]:
    """Return microseconds and bytes for each picture of a form."""
    if form == "archives":
        ids = {label: number for number, label in enumerate({one.label: 0 for one in made}, start=1)}
        sources.as_archives(root, made, ids)
    else:
        sources.FORMS[form](root, made)
    BARE[form](root)
    bare = seconds(lambda: BARE[form](root))
    look = seconds(lambda: open_source(root))
    source = open_source(root)
    read = seconds(lambda: [one.read() for pictures in source.pictures.values() for one in pictures])
    kept = len(pickle.dumps(source.pictures))
    count = len(made)
    return {
        "look": look / count * 1e6,
        "bare": bare / count * 1e6,
        "read": read / count * 1e6,
        "kept": kept / count,
    }


def main() -> None:
    """Measure all forms and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pictures", type=int, default=10, help="training pictures of each of 1000 classes")
    parser.add_argument("--out", type=out_folder, help="also write the table and its data into this folder")
    given = parser.parse_args()
    data = sources.jpeg(1, 200, 150)
    classes = [f"n{10_000_000 + number:08d}" for number in range(CLASSES)]
    made = sources.samples(train=given.pictures, val=1, classes=classes, make=lambda seed: data)
    rows = {}
    for form in BARE:
        with tempfile.TemporaryDirectory() as folder:
            rows[form] = measure(form, made, Path(folder))
    heads = ["Form", "look, us", "bare loop, us", "read, us", "kept, bytes", "look at ImageNet, s"]
    table = [
        [
            form,
            *(f"{row[key]:.1f}" for key in ("look", "bare", "read", "kept")),
            f"{row['look'] * sum(IMAGENET_IMAGES) / 1e6:.0f}",
        ]
        for form, row in rows.items()
    ]
    text = (
        f"Processor time for each of {len(made)} pictures in {CLASSES} classes, {len(data)} bytes each, in "
        f"the page cache; {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.0f}. The last column is the first "
        "one for ImageNet's number of pictures."
    )
    write(
        given.out,
        "sources",
        "\n\n".join(["# Looking at a source of pictures", text, markdown(heads, table)]),
        rows,
    )


if __name__ == "__main__":
    main()
