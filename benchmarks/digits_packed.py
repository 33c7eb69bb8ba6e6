# SPDX-License-Identifier: Apache-2.0
"""Do packed pictures train like images in memory? The digits as a PNG tree, through `pack`, and as they are.

    python benchmarks/digits_packed.py [--seeds 3] [--epochs 8] [--encoding raw] [--out FOLDER]

The digits of 32x32 pixels are written as PNG files, a folder for each class, and packed with side 32. The
data set `images` reads them from the shards. Network and training are those of `digits_precision.py`, without
augmentation. A seed gives both trainings the same initial weights; the order of the images is another one,
as the shards have them by class. The table ends with the mean difference and its 95 % interval (Student's).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from aiperf_mpi.config import config  # noqa: E402
from aiperf_mpi.data.catalogue import open_dataset, resolved  # noqa: E402
from aiperf_mpi.data.dataset import Dataset, Images  # noqa: E402
from aiperf_mpi.data.manifest import ENCODINGS, RAW  # noqa: E402
from aiperf_mpi.network.architecture import resnet50  # noqa: E402
from aiperf_mpi.training.steps.compile import compile_steps  # noqa: E402
from aiperf_mpi.training.steps.step import StepSettings  # noqa: E402
from benchmarks.digits_precision import BATCH, RATE, paired, train  # noqa: E402
from benchmarks.tables import described, machine, markdown, out_folder, write  # noqa: E402

SIDE = 32
KEYS = {"best": "best accuracy", "last": "last accuracy", "val_loss": "validation loss"}


def all_images(images: Images) -> np.ndarray:
    """Return all images of a split, uint8 [N, height, width, channels]."""
    out = np.empty((len(images.labels), *images.shape), images.dtype)
    images.read(np.arange(len(images.labels)), out)
    return out


def write_tree(folder: Path, digits: Dataset) -> None:
    """Write each image as a PNG file in the folder of its split and class."""
    for split, images in (("train", digits.train), ("val", digits.val)):
        for place, (pixels, label) in enumerate(zip(all_images(images), images.labels.tolist(), strict=True)):
            target = folder / split / f"digit {label}"
            target.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(target / f"{place:05d}.png")


def packed_digits(digits: Dataset, folder: Path, encoding: str) -> Dataset:
    """Return the digits as the data set `images` reads them after `pack`."""
    write_tree(folder / "png", digits)
    words = ["pack", "--side", str(SIDE), "--encoding", encoding, "--shard-images", "512"]
    command = [sys.executable, "-m", "aiperf_mpi", *words, str(folder / "png"), str(folder / "packed")]
    # `pack` logs to standard error; the table alone goes to standard output.
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(command, check=True, stdout=sys.stderr, timeout=600, env=environment)
    sets = ["data.name='images'", f"data.path='{folder / 'packed'}'", "data.channels=3"]
    return open_dataset(resolved(config.load("demo", sets=[*sets, "data.augmentation='none'"])))


def same_images(one: Dataset, other: Dataset) -> bool:
    """Return whether two data sets have the same images with the same labels, in any order."""
    sets = [
        sorted(
            (label, pixels.tobytes()) for pixels, label in zip(all_images(s), s.labels.tolist(), strict=True)
        )
        for data in (one, other)
        for s in (data.train, data.val)
    ]
    return sets[:2] == sets[2:]


def report(
    place: dict[str, object],
    rows: Sequence[dict[str, dict[str, float]]],
    encoding: str,
    epochs: int,
    same: bool,
) -> tuple[str, dict[str, object]]:
    """Return the table and the values of all trainings, and whether they agree."""
    differences = {key: paired([row["packed"][key] - row["memory"][key] for row in rows]) for key in KEYS}
    met = all(part["low"] <= 0 <= part["high"] for part in differences.values())
    names = ("memory", "packed")
    table = [
        [seed, *(f"{row[name][key]:.4f}" for key in KEYS for name in names)] for seed, row in enumerate(rows)
    ]
    heads = ["seed", *(f"{title}, {name}" for title in KEYS.values() for name in names)]
    lines = [
        "# Digits in memory, and the same as packed pictures",
        "",
        described(place),
        "",
        f"ResNet-50 of width 4, batch {BATCH}, learning rate {RATE} falling over {epochs} epochs, "
        "zero-gamma, no augmentation; 360 images of validation, so that one image is 0.0028. Encoding "
        f"`{encoding}`, side {SIDE}; the pixels of all packed pictures are "
        f"{'those' if same else 'not those'} of the digits.",
        "",
        markdown(heads, table),
        "",
        *(
            f"- {title}, packed less memory: {differences[key]['mean']:+.4f}, 95 % interval "
            f"{differences[key]['low']:+.4f} to {differences[key]['high']:+.4f}"
            for key, title in KEYS.items()
        ),
        f"- equal within noise: {'met' if met else 'MISSED'}",
    ]
    values = {
        "machine": place,
        "seeds": list(rows),
        "differences": differences,
        "same_pixels": same,
        "met": met,
    }
    return "\n".join(lines), values


def main() -> int:
    """Pack, train, print and write; return 1 if an interval excludes zero, or raw pixels differ."""
    parser = argparse.ArgumentParser(description="Packed digits against the digits in memory.")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--encoding", choices=ENCODINGS, default=RAW)
    parser.add_argument("--out", type=out_folder, help="folder for digits_packed.md and .json")
    given = parser.parse_args()

    preset, place = config.load("demo", sets=["data.channels=3"]), machine()
    devices = jax.devices()[:1]
    place["devices"] = {"kind": devices[0].device_kind, "platform": devices[0].platform, "count": 1}
    digits = open_dataset(preset)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sets = {"memory": digits, "packed": packed_digits(digits, folder, given.encoding)}
        same = same_images(*sets.values())
        steps = {
            name: compile_steps(
                resnet50(preset.base),
                StepSettings(BATCH, "float32", mean=data.mean, deviation=data.deviation),
                devices,
            )
            for name, data in sets.items()
        }
        rows: list[dict[str, dict[str, float]]] = []
        for seed in range(given.seeds):
            rows.append({name: train(steps[name], data, seed, given.epochs) for name, data in sets.items()})
            print(f"seed {seed}: {rows[-1]}", file=sys.stderr, flush=True)
    text, values = report(place, rows, given.encoding, given.epochs, same)
    write(given.out, "digits_packed", text, values)
    return int(not (values["met"] and (same or given.encoding != RAW)))


if __name__ == "__main__":
    sys.exit(main())
