# SPDX-License-Identifier: Apache-2.0
"""Compare packing and loading with what the libraries alone take, and with other loaders, in one run.

    python benchmarks/loading.py [--pictures N] [--repeats R] [--peer-python PYTHON] [--out FOLDER]

Photographs of 500 x 375 pixels on average, at the qualities 75 to 95, are packed in both encodings (side
256), then loaded in a random order in batches. The contenders of a group take turns, `--repeats` rounds,
after a round that does not count; a ratio is of elapsed seconds in the same round, and the table has the
median. All files are in the page cache: what is compared is the work of the program, not the disk.

Bare decode and resize: simplejpeg and Pillow called on bytes in memory by as many threads as there are cores.
Bare preadv: the same reads, into one reused array, by one thread and by as many as the loader has; the better
one counts. The peers (`loading_peers.py`) run after ours, in processes of another Python.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np  # noqa: E402

from aiperf_mpi.config.config import load as load_config  # noqa: E402
from aiperf_mpi.data.catalogue import open_dataset, resolved  # noqa: E402
from aiperf_mpi.data.dataset import Dataset  # noqa: E402
from aiperf_mpi.data.loader import Reader, train_rows  # noqa: E402
from aiperf_mpi.data.manifest import JPEG, RAW  # noqa: E402
from aiperf_mpi.data.packed import PackedImages  # noqa: E402
from aiperf_mpi.packing import job  # noqa: E402
from aiperf_mpi.packing.work import Packer  # noqa: E402
from benchmarks.bare import (  # noqa: E402
    SIDE,
    Preadv,
    as_tar,
    by_threads,
    decode_and_resize,
    decode_into,
    decode_only,
    fancy,
)
from benchmarks.photographs import photograph, write_tree  # noqa: E402
from benchmarks.tables import described, goals, machine, markdown, number, out_folder, write  # noqa: E402

#: The batch is that of the benchmark.
BATCH = 448

#: Pictures of a shard: as for ImageNet there are several, and while one is hashed the next one is written.
SHARD_IMAGES = 256

#: Epochs of a measurement of raw loading, which is fast; batches that fancy indexing gets, which is slow.
RAW_EPOCHS, FANCY_BATCHES = 4, 2

#: Seconds that the peers may take.
PEER_SECONDS = 240

Row = dict[str, Any]
Contender = Callable[[], int]


# -- measuring -------------------------------------------------------------------------------------


def in_turn(
    contenders: dict[str, Contender], repeats: int, before: Callable[[str], None] = lambda name: None
) -> dict[str, Row]:
    """Return a row for each contender, which returns the number of pictures it has done.

    A row has `seconds` and `cpu_seconds` for a picture, of each round. `before` is called with the name of
    each contender before its turn, and does not count.
    """
    rows: dict[str, Row] = {name: {"seconds": [], "cpu_seconds": []} for name in contenders}
    for turn in range(repeats + 1):
        names = list(contenders)
        for name in names if turn % 2 else names[::-1]:
            before(name)
            wall, cpu = time.perf_counter(), time.process_time()
            pictures = contenders[name]()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            if turn:
                rows[name]["seconds"].append(wall / pictures)
                rows[name]["cpu_seconds"].append(cpu / pictures)
    return rows


def ratio(row: Row, bare: Row, key: str = "seconds") -> float:
    """Return the median over the rounds of how fast a row is, where 1 is as fast as `bare`."""
    return median(theirs / ours for ours, theirs in zip(row[key], bare[key], strict=True))


# -- contenders ------------------------------------------------------------------------------------


def pack(source: Path, folder: Path, encoding: str, threads: int) -> int:
    """Pack a tree as the command does; return the number of pictures.

    Of ImageNet 1 of 78 pictures counts for mean and deviation, here those of the first shard.
    """
    request = job.Request(source, folder, encoding, SIDE, SHARD_IMAGES, threads)
    prepared = job.prepare(request, lambda line: None)
    try:
        layout, pictures = prepared.plan.layout, prepared.source.pictures
        packer = Packer(pictures, prepared.folder, layout, threads, lambda progress: None)
        tasks = [replace(task, measured=task.measured and task.index == 0) for task in prepared.plan.tasks()]
        manifest = job.conclude(prepared, packer.pack_all(tasks)).manifest
    finally:
        prepared.release()
    assert manifest is not None and not manifest.rejected
    return sum(prepared.plan.pictures.values())


def load(dataset: Dataset, reader: Reader, epochs: int) -> int:
    """Read the batches of some epochs through the loader; return the number of pictures."""
    done = 0
    for epoch in range(epochs):
        for batch in reader.batches(dataset.train, train_rows(dataset, 1, epoch, 1, BATCH)):
            done += batch.images.shape[1]
    return done


def places_of(dataset: Dataset, epochs: int) -> Iterator[np.ndarray]:
    """Yield the places of each batch, in the order in which the loader reads them."""
    for epoch in range(epochs):
        for rows in train_rows(dataset, 1, epoch, 1, BATCH):
            yield rows.places.ravel()


# -- groups ----------------------------------------------------------------------------------------


@contextmanager
def opened(folder: Path, threads: int) -> Iterator[tuple[Dataset, Reader]]:
    """Open a packed set and a reader."""
    batches = [f"train.batch_per_device={BATCH}", f"hpo.batches=[{BATCH}]"]
    sets = ["data.name=images", f"data.path={folder}", *batches]
    config = resolved(load_config(sets=sets))
    reader = Reader(threads, reuse=True)
    try:
        yield open_dataset(config), reader
    finally:
        reader.close()


def packing(tree: Path, packed: Path, threads: int, repeats: int) -> dict[str, Row]:
    """Compare packing in both encodings with the bare libraries."""
    files = [path.read_bytes() for path in sorted(tree.rglob("*.JPEG"))]

    def remove(name: str) -> None:
        """Remove the set of the round before, and wait for the disk."""
        shutil.rmtree(packed / name.rpartition(" ")[2], ignore_errors=True)
        os.sync()

    return in_turn(
        {
            "bare decode and resize": lambda: by_threads(decode_and_resize, files, threads),
            "packing, raw": lambda: pack(tree, packed / RAW, RAW, threads),
            "packing, jpeg": lambda: pack(tree, packed / JPEG, JPEG, threads),
        },
        repeats,
        remove,
    )


def raw_loading(folder: Path, threads: int, repeats: int) -> dict[str, Row]:
    """Compare raw loading with bare reads and with fancy indexing."""
    with opened(folder, threads) as (dataset, reader):
        assert isinstance(dataset.train, PackedImages)
        images = dataset.train
        alone, threaded = Preadv(images, BATCH, 1), Preadv(images, BATCH, threads)
        return in_turn(
            {
                "bare preadv, one thread": lambda: alone.read_all(places_of(dataset, RAW_EPOCHS)),
                "bare preadv, all threads": lambda: threaded.read_all(places_of(dataset, RAW_EPOCHS)),
                "h5py, fancy indexing": lambda: fancy(images, islice(places_of(dataset, 1), FANCY_BATCHES)),
                "loading, raw": lambda: load(dataset, reader, RAW_EPOCHS),
            },
            repeats,
        )


def jpeg_loading(folder: Path, threads: int, repeats: int) -> dict[str, Row]:
    """Compare loading of JPEG files with decoding alone."""
    with opened(folder, threads) as (dataset, reader):
        images = dataset.train
        assert isinstance(images, PackedImages)
        files, array = [], np.zeros((BATCH, *images.shape), np.uint8)
        for shard in images.shards:
            for place in range(len(shard.labels)):
                data = bytearray(shard.size(place))
                shard.read(place, memoryview(data))
                files.append(bytes(data))
        return in_turn(
            {
                "bare decode": lambda: by_threads(decode_only, files, threads),
                "bare decode into a batch": lambda: by_threads(
                    partial(decode_into, array), list(enumerate(files)), threads
                ),
                "loading, jpeg": lambda: load(dataset, reader, 1),
            },
            repeats,
        )


def peers(python: Path | None, tree: Path, packed: Path, threads: int, repeats: int) -> dict[str, Row]:
    """Return a row for each peer; one that failed has `failed`."""
    script = Path(__file__).with_name("loading_peers.py")
    # The peer's Python has its own packages.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    rows: dict[str, Row] = {}
    for name, path in (("torchvision", tree / "train"), ("dali", as_tar(packed))):
        words = [python or sys.executable, script, name, path, threads, repeats]
        try:
            done = subprocess.run(
                [str(word) for word in words], capture_output=True, text=True, timeout=PEER_SECONDS, env=env
            )
            lines = (done.stderr.strip() or "no output").splitlines()
            rows |= json.loads(done.stdout) if not done.returncode else {name: {"failed": lines[-1][:200]}}
        except subprocess.TimeoutExpired:
            rows[name] = {"failed": f"took more than {PEER_SECONDS} s"}
    return rows


def measure(work: Path, pictures: int, repeats: int, python: Path | None) -> dict[str, dict[str, Row]]:
    """Return the rows of each group."""
    threads = len(os.sched_getaffinity(0))
    tree, packed = work / "tree", work / "packed"
    write_tree(tree, pictures, max(10, pictures // 20))
    rows = {"packing": packing(tree, packed, threads, repeats)}
    rows["raw"] = raw_loading(packed / RAW, threads, repeats)
    rows["jpeg"] = jpeg_loading(packed / JPEG, threads, repeats)
    rows["peers"] = peers(python, tree, packed / JPEG, threads, repeats)
    return rows


# -- the table -------------------------------------------------------------------------------------


def ratios(rows: dict[str, dict[str, Row]], key: str = "seconds") -> dict[str, float]:
    """Return the ratios of the goals, of elapsed or of processor seconds."""
    raw, bare = rows["raw"], rows["packing"]["bare decode and resize"]
    reads = [row for name, row in raw.items() if name.startswith("bare")]
    best = min(reads, key=lambda row: median(row[key]))
    return {
        "packing, raw, to bare decode and resize": ratio(rows["packing"]["packing, raw"], bare, key),
        "packing, jpeg, to bare decode and resize": ratio(rows["packing"]["packing, jpeg"], bare, key),
        "raw loading to bare preadv": ratio(raw["loading, raw"], best, key),
        "raw loading to h5py's fancy indexing": ratio(raw["loading, raw"], raw["h5py, fancy indexing"], key),
        "JPEG loading to bare decode": ratio(rows["jpeg"]["loading, jpeg"], rows["jpeg"]["bare decode"], key),
    }


#: The least that each ratio may be, in their order; packing of JPEG files also encodes, so it has no bound.
BOUNDS = (0.8, 0.0, 0.8, 10.0, 0.9)


def page(place: Row, rows: dict[str, dict[str, Row]], pictures: int) -> str:
    """Return the text of the table."""
    lines = []
    for group in rows.values():
        for name, row in group.items():
            if "failed" in row:
                lines.append([name, "failed: " + row["failed"], ""])
            else:
                cpu = f"{median(row['cpu_seconds']) * 1e3:.3f}" if row.get("cpu_seconds") else "-"
                lines.append([name, number(1 / median(row["seconds"])), cpu])
    found, cpu = ratios(rows), ratios(rows, "cpu_seconds")
    met = {
        f"{name}: {value:.2f}, at least {bound:g}": value >= bound
        for (name, value), bound in zip(found.items(), BOUNDS, strict=True)
        if bound
    }
    return "\n\n".join(
        [
            "# Packing and loading",
            described(place),
            f"{pictures} photographs for training, {mean_bytes(pictures) / 1e3:.0f} kB on average, "
            f"batches of {BATCH}, side {SIDE}, a thread for each core.",
            markdown(["", "pictures/s", "processor, ms a picture"], lines),
            markdown(
                ["ratio of speeds, median", "elapsed", "processor"],
                [[name, f"{value:.2f}", f"{cpu[name]:.2f}"] for name, value in found.items()],
            ),
            goals(met),
            "torchvision decodes the photographs themselves (Resize and CenterCrop to 256, worker processes, "
            "uint8); DALI decodes the packed JPEG files from a tar.",
        ]
    )


def mean_bytes(pictures: int) -> float:
    """Return the mean size of some of the photographs."""
    some = range(min(pictures, 100))
    return sum(len(photograph(number_of)) for number_of in some) / len(some)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write; return 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description="Packing and loading against the libraries and peers.")
    parser.add_argument("--pictures", type=int, default=1792, help="training pictures (default 1792)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds (default 5)")
    parser.add_argument("--peer-python", type=Path, help="a Python that has torchvision and DALI")
    parser.add_argument("--out", type=out_folder, help="folder for loading.md and loading.json")
    given = parser.parse_args(arguments)
    place = machine()
    with tempfile.TemporaryDirectory() as work:
        rows = measure(Path(work), given.pictures, given.repeats, given.peer_python)
    text = page(place, rows, given.pictures)
    write(given.out, "loading", text, {"machine": place, "rows": rows, "ratios": ratios(rows)})
    return int(any(value < bound for value, bound in zip(ratios(rows).values(), BOUNDS, strict=True)))


if __name__ == "__main__":
    sys.exit(main())
