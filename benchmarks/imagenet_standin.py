# SPDX-License-Identifier: Apache-2.0
"""Rehearse the official path with ImageNet's counts and generated pictures: make, pack, load, train, judge.

    python benchmarks/imagenet_standin.py FOLDER [--scale S] [--out OUT]

FOLDER gets `source/` (TFRecords, 2.4 GB), `packed/` (2.4 GB), `run/` (a result) and `parts.json`, what was
measured. A part that is there is not done again, and a packing that was killed goes on: the same command
ends what an earlier one began. With --scale 0.01 all of it takes a few minutes, and the set is not ImageNet.

The pictures are 64 x 64 pixels, so pack stores them as they are. The parts:
1. source: the records are written.
2. pack: `pack --encoding jpeg`; its manifest must say `standin`, and lack nothing.
3. load: a process reads batches through the loader; the memory that it takes is compared with the bound.
4. run: `mpirun -n 4 ... --preset imagenet` starts core time, trains steps of ResNet-50 on 224 x 224 pixels,
   is drained by USR1 and leaves a judged file. The peak resident memory of each rank is noted.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import h5py  # noqa: E402

from aiperf_mpi.data.manifest import SPLITS, read_manifest  # noqa: E402
from aiperf_mpi.paper import IMAGENET_IMAGES  # noqa: E402
from benchmarks.candidates import launcher  # noqa: E402
from benchmarks.processes import ROOT, Usage, peak_bytes, reset_peak, watched  # noqa: E402
from benchmarks.standin_source import write_source  # noqa: E402
from benchmarks.tables import described, goals, machine, markdown, number, out_folder, write  # noqa: E402

#: Bounds: seconds of packing, bytes of the packed set, and bytes of the loader beyond four batches.
PACK_SECONDS, DISK_BYTES, LOADER_BYTES = 90 * 60, 8e9, 256 << 20
BATCHES = 4

#: Ranks of the run, and exit codes: valid to the time limit, invalid, and drained.
RANKS, DRAINED = 4, 4

#: Largest wait for the core time to start, in seconds.
START_SECONDS = 600.0

MIB = 1 / (1 << 20)

Row = dict[str, Any]


class Parts:
    """What was measured, in FOLDER/parts.json; it is written after each change."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._path = folder, folder / "parts.json"
        self.rows: dict[str, Row] = json.loads(self._path.read_text()) if self._path.exists() else {}

    def keep(self, name: str, row: Row) -> None:
        """Write a part."""
        self.rows[name] = row
        unfinished = self._path.with_suffix(".new")
        unfinished.write_text(json.dumps(self.rows, indent=1) + "\n")
        unfinished.replace(self._path)

    def ended(self, name: str) -> bool:
        """Whether a part was measured to its end."""
        return bool(self.rows.get(name, {}).get("ended"))


def size_of(folder: Path) -> int:
    """Return the bytes of the files of a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# -- parts -----------------------------------------------------------------------------------------


def source(parts: Parts, given: argparse.Namespace) -> None:
    """Write the records."""
    before = parts.rows.get("source", {"seconds": 0.0, "cpu_seconds": 0.0})
    wall, cpu = time.monotonic(), time.process_time()
    write_source(parts.folder / "source", given.scale, say)
    row = {
        "seconds": before["seconds"] + time.monotonic() - wall,
        "cpu_seconds": before["cpu_seconds"] + time.process_time() - cpu,
        "bytes": size_of(parts.folder / "source"),
    }
    parts.keep("source", {**row, "ended": True})


def pack(parts: Parts, given: argparse.Namespace) -> None:
    """Pack the records, or go on; what earlier attempts took is added."""
    before = parts.rows.get("pack", {"seconds": 0.0, "cpu_seconds": 0.0, "peak_bytes": 0, "attempts": 0})
    packed = parts.folder / "packed"
    words: list[str | Path] = [sys.executable, "-m", "aiperf_mpi", "pack", "--encoding", "jpeg"]
    # A part of the counts is an incomplete copy of ILSVRC2012.
    words += ["--max-rejected", str(sum(IMAGENET_IMAGES))] if given.scale != 1 else []
    words += [parts.folder / "source", packed]

    def sum_of(usage: Usage) -> Row:
        return {
            "seconds": before["seconds"] + usage.seconds,
            "cpu_seconds": before["cpu_seconds"] + usage.cpu_seconds,
            "peak_bytes": max(before["peak_bytes"], *usage.peaks.values(), 0),
            "attempts": before["attempts"] + 1,
        }

    def seen(usage: Usage) -> bool:
        parts.keep("pack", sum_of(usage))
        return False

    log = parts.folder / "pack.log"
    code, usage = watched(words, log, 2 * PACK_SECONDS, seen)
    row = sum_of(usage)
    if code:
        parts.keep("pack", {**row, "failed": f"exit code {code}: {last(log)}"})
        return
    manifest = read_manifest(packed)
    images = {split: manifest.images(split) for split in SPLITS}
    row |= {
        "images": images,
        "images_per_second": sum(images.values()) / row["seconds"],
        "bytes": size_of(packed),
        "standin": manifest.standin,
        "name": manifest.name,
        "classes": len(manifest.classes),
        "rejected": len(manifest.rejected),
        "sha256": manifest.sha256,
    }
    parts.keep("pack", {**row, "ended": True})


def load(parts: Parts, given: argparse.Namespace) -> None:
    """Measure the memory of the loader in a process of its own."""
    code = "import sys; from benchmarks import imagenet_standin as it; it.loader_memory(*sys.argv[1:])"
    words = [sys.executable, "-c", code, str(parts.folder / "packed"), str(given.load_batch)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, capture_output=True, text=True, timeout=900, env=env, cwd=ROOT)
    if done.returncode:
        parts.keep("load", {"failed": done.stderr.strip()[-300:]})
    else:
        parts.keep("load", {**json.loads(done.stdout), "ended": True})


def loader_memory(folder: str, batch: str) -> None:
    """Print the peak of resident bytes while an epoch's batches are read, above that of the imports."""
    from aiperf_mpi.config.config import load as load_config
    from aiperf_mpi.data.catalogue import open_dataset, resolved
    from aiperf_mpi.data.loader import Reader, train_rows

    config = resolved(load_config(sets=["data.name=images", f"data.path={folder}"]))
    reset_peak()
    before = peak_bytes()
    dataset = open_dataset(config)
    count = min(int(batch), len(dataset.train.labels) // 16)
    reader, read = Reader(os.cpu_count() or 1, reuse=True), 0
    started, cpu = time.monotonic(), time.process_time()
    for one in reader.batches(dataset.train, train_rows(dataset, 1, 0, 1, count)):
        read += one.images.shape[1]
        if read >= 16 * count:
            break
    row = {
        "images": len(dataset.train.labels),
        "batch": count,
        "batch_bytes": one.images.nbytes,
        "read": read,
        "images_per_second": read / (time.monotonic() - started),
        "images_per_cpu_second": read / (time.process_time() - cpu),
        "peak_bytes": peak_bytes() - before,
    }
    print(json.dumps(row))


def run(parts: Parts, given: argparse.Namespace) -> None:
    """Run under mpirun until `--core-seconds` after the start of the core time, then drain."""
    folder, log = parts.folder / "run", parts.folder / "run.log"
    shutil.rmtree(folder, ignore_errors=True)
    log.unlink(missing_ok=True)
    words: list[str | Path] = [launcher(), "-n", str(RANKS), sys.executable, "-m", "aiperf_mpi"]
    words += ["--preset", "imagenet", "--output", folder, "--view", "plain"]
    for setting in (
        f"data.path={parts.folder / 'packed'}",
        f"train.batch_per_device={given.batch}",
        "parallel.host_devices=1",
        # Processors multiply in this precision, whatever is asked for (V10).
        "train.precision=float32",
        "monitor.seconds=5",
        *(["data.name=images"] if given.scale != 1 else []),
        *given.set,
    ):
        words += ["--set", setting]
    core = 0.0

    def seen(usage: Usage) -> bool:
        nonlocal core
        if not core and b"core time starts" in log.read_bytes():
            core = usage.seconds
        return usage.seconds > (core + given.core_seconds if core else START_SECONDS)

    code, usage = watched(words, log, START_SECONDS + given.core_seconds, seen, {"JAX_PLATFORMS": "cpu"})
    row: Row = {"exit_code": code, "start_s": core, "seconds": usage.seconds}
    row["peaks"] = {
        str(rank): peak for rank, peak in sorted(usage.peaks.items(), key=str) if rank is not None
    }
    if not (folder / "result.h5").exists():
        parts.keep("run", {**row, "failed": f"exit code {code}, no result: {last(log)}"})
        return
    parts.keep("run", {**row, **judged(folder / "result.h5"), "batch": given.batch, "ended": True})


def judged(path: Path) -> Row:
    """Return what a result says of the run."""
    with h5py.File(path) as file:
        trials, ranks, head = file["trials"], file["ranks"], file.attrs
        return {
            "valid": bool(head["valid"]),
            "reasons": json.loads(head["invalid_reasons"]),
            "class": str(head["class"]),
            "end": str(head["end"]),
            "core_seconds": float(head["core_seconds"]),
            "dataset": str(head["dataset"]),
            "train_samples": int(trials["train_samples"][...].sum()),
            "operations": str(head["total_ops"]),
            "status": [str(one) for one in trials["status"].asstr()[...]],
            "roles": [str(one) for one in ranks["role"].asstr()[...]],
        }


def last(log: Path) -> str:
    """Return the end of a log."""
    return " / ".join(log.read_text(errors="replace").strip().splitlines()[-3:])[-400:]


def say(line: str) -> None:
    """Print what is going on."""
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


PARTS: dict[str, Callable[[Parts, argparse.Namespace], None]] = {
    "source": source,
    "pack": pack,
    "load": load,
    "run": run,
}


# -- the table -------------------------------------------------------------------------------------


def page(place: Row, rows: dict[str, Row], scale: float) -> str:
    """Return the text of the table."""
    made, packed, ran = (rows.get(name, {}) for name in ("source", "pack", "run"))
    lines = [
        ["source: records of generated pictures", *_times(made), f"{_gb(made):.2f} GB"],
        [
            "pack --encoding jpeg",
            *_times(packed),
            f"{_gb(packed):.2f} GB, {number(packed.get('images_per_second'))} pictures/s",
        ],
        [
            "mpirun -n 4, ResNet-50 at 224 x 224",
            *_times(ran),
            f"{ran.get('train_samples', 0)} pictures trained on in {number(ran.get('core_seconds'))} s",
        ],
    ]
    failures = [f"{name} failed: {row['failed']}" for name, row in rows.items() if "failed" in row]
    return "\n\n".join(
        [
            f"# A stand-in of ImageNet, {scale:g} of its counts",
            described(place),
            markdown(["part", "elapsed, s", "processor, s", ""], lines),
            markdown(["peak resident memory", "MiB"], memory_lines(rows)),
            facts(rows),
            *failures,
            goals(met(rows, scale)),
        ]
    )


def memory_lines(rows: dict[str, Row]) -> list[list[str]]:
    """Return the lines of the table of memory."""
    packed, loaded, ran = (rows.get(name, {}) for name in ("pack", "load", "run"))
    lines = [["packer", f"{packed.get('peak_bytes', 0) * MIB:.0f}"]]
    for rank, peak in ran.get("peaks", {}).items():
        roles = ran.get("roles", [])
        role = roles[int(rank)] if int(rank) < len(roles) else "?"
        lines.append([f"rank {rank}, {role}", f"{peak * MIB:.0f}"])
    if "peak_bytes" in loaded:
        batch = f"batches of {loaded['batch']} ({loaded['batch_bytes'] * MIB:.0f} MiB)"
        line = f"loader, {batch}, bound {loader_bound(loaded) * MIB:.0f}"
        lines.append([line, f"{loaded['peak_bytes'] * MIB:.0f}"])
    return lines


def loader_bound(loaded: Row) -> int:
    """Return how many bytes the loader may take."""
    return int(BATCHES * loaded["batch_bytes"] + LOADER_BYTES)


def facts(rows: dict[str, Row]) -> str:
    """Return what was packed, and how the run ended."""
    packed, ran = (rows.get(name, {}) for name in ("pack", "run"))
    verdict = "valid" if ran.get("valid") else f"not valid {ran.get('reasons')}"
    return (
        f"Packed: {packed.get('name')}, standin {packed.get('standin')}, {packed.get('images')} pictures, "
        f"{packed.get('classes')} classes, {packed.get('rejected')} rejected, content "
        f"{str(packed.get('sha256'))[:16]}. Run: {ran.get('dataset')}, {ran.get('class')}, {ran.get('end')}, "
        f"exit code {ran.get('exit_code')}, {verdict}, trials {ran.get('status')}."
    )


def _times(row: Row) -> list[str]:
    return [number(row.get("seconds")), number(row.get("cpu_seconds"))]


def _gb(row: Row) -> float:
    return float(row.get("bytes", 0)) / 1e9


def met(rows: dict[str, Row], scale: float) -> dict[str, bool]:
    """Return the goals, and whether each is met."""
    made, packed, loaded, ran = (rows.get(name, {}) for name in PARTS)
    whole = {"train": IMAGENET_IMAGES[0], "val": IMAGENET_IMAGES[1]}
    goals_met = {
        "packing takes less than 90 minutes": bool(packed.get("ended")) and packed["seconds"] < PACK_SECONDS,
        "source and set take less than 8 GB": 0 < made.get("bytes", 0) + packed.get("bytes", 0) < DISK_BYTES,
        "nothing is rejected, and the manifest says standin": bool(packed.get("standin"))
        and not packed["rejected"],
        "the loader keeps its bound of memory": bool(loaded.get("ended"))
        and loaded["peak_bytes"] <= loader_bound(loaded),
        "the run trains steps, drains and is judged": ran.get("exit_code") == DRAINED
        and ran.get("train_samples", 0) > 0,
    }
    if scale == 1:
        goals_met["1,281,167 and 50,000 pictures of 1000 classes"] = (
            packed.get("images") == whole and packed["classes"] == 1000
        )
    return goals_met


def main(arguments: list[str] | None = None) -> int:
    """Do the parts that are not done, print the table and write it; return 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description="Rehearse ImageNet with generated pictures.")
    parser.add_argument("folder", type=lambda text: out_folder(text, "FOLDER"), help="folder for all files")
    parser.add_argument("--scale", type=float, default=1.0, help="part of ImageNet's counts (default 1)")
    parser.add_argument("--only", choices=PARTS, action="append", help="do this part, also if it was done")
    parser.add_argument("--batch", type=int, default=4, help="images of a step (default 4)")
    parser.add_argument("--load-batch", type=int, default=448, help="images of a batch read (default 448)")
    parser.add_argument("--core-seconds", type=float, default=600.0, help="before the drain (default 600)")
    parser.add_argument("--set", action="append", default=[], help="more settings of the run")
    parser.add_argument("--out", type=out_folder, help="folder for imagenet_standin.md and .json")
    given = parser.parse_args(arguments)
    given.folder.mkdir(parents=True, exist_ok=True)
    place, parts = machine(), Parts(given.folder)
    for name, do in PARTS.items():
        if given.only is None and not parts.ended(name) or given.only and name in given.only:
            say(f"part {name}")
            do(parts, given)
            if "failed" in parts.rows[name]:
                say(f"{name} failed: {parts.rows[name]['failed']}")
                break
    text = page(place, parts.rows, given.scale)
    write(given.out, "imagenet_standin", text, {"machine": place, "scale": given.scale, "parts": parts.rows})
    return int(not all(met(parts.rows, given.scale).values()))


if __name__ == "__main__":
    sys.exit(main())
