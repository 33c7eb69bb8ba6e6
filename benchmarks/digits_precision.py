# SPDX-License-Identifier: Apache-2.0
"""Does bfloat16 learn what float32 learns? The digits at 32x32, the same seeds in both precisions, in turn.

    python benchmarks/digits_precision.py [--seeds 5] [--epochs 8] [--every-rounding] [--out FOLDER]

A ResNet-50 of width 4 with zero-gamma, batch 32, learning rate 0.1 that falls linearly over the epochs. A
seed gives both trainings the same initial weights and the same order of images, so that the difference of a
pair is that of the precision. Each precision is compiled once. The table ends with the mean difference and
its 95 % interval (Student's).
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# A compiler may keep more bits than it is asked for, and XLA on CPUs leaves out nearly half of the roundings.
if EVERY_ROUNDING := "--every-rounding" in sys.argv:
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_allow_excess_precision=false".strip()
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax  # noqa: E402

from aiperf_mpi.config import config  # noqa: E402
from aiperf_mpi.data.catalogue import open_dataset  # noqa: E402
from aiperf_mpi.data.dataset import Dataset  # noqa: E402
from aiperf_mpi.data.loader import train_batches, val_batches  # noqa: E402
from aiperf_mpi.network.architecture import resnet50  # noqa: E402
from aiperf_mpi.phases import PhaseTimer  # noqa: E402
from aiperf_mpi.results.report.interval import factor  # noqa: E402
from aiperf_mpi.streams import AUGMENT, INIT, stream  # noqa: E402
from aiperf_mpi.training.epoch import EpochResult  # noqa: E402
from aiperf_mpi.training.fit import FitSettings, Training  # noqa: E402
from aiperf_mpi.training.model.initial import initial_variables  # noqa: E402
from aiperf_mpi.training.steps.compile import Compiled, compile_steps  # noqa: E402
from aiperf_mpi.training.steps.step import StepSettings  # noqa: E402
from aiperf_mpi.trials.budget import learning_rate  # noqa: E402
from benchmarks.tables import described, machine, markdown, out_folder, write  # noqa: E402

PRECISIONS = ("float32", "bfloat16")
BATCH, RATE = 32, 0.1


def epochs_of(compiled: Compiled, digits: Dataset, seed: int, epochs: int) -> list[EpochResult]:
    """Run one training; return its epochs."""
    variables = initial_variables(compiled.architecture, stream(INIT, seed), zero_gamma=True)
    return list(
        Training(
            compiled,
            compiled.start(variables, stream(AUGMENT, seed)),
            lambda epoch: train_batches(digits, seed, epoch, 1, BATCH),
            lambda: val_batches(digits, 1, BATCH),
            FitSettings(epochs, epochs, lambda epoch: learning_rate(RATE, epoch, epochs)),
            timer=PhaseTimer(),
            poll=lambda: False,
        )
    )


def train(compiled: Compiled, digits: Dataset, seed: int, epochs: int) -> dict[str, float]:
    """Run one training; return its best and last accuracy, and the losses of the last epoch."""
    begin = time.process_time()
    rows = epochs_of(compiled, digits, seed, epochs)
    last = rows[-1]
    return {
        "best": 1 - min(row.val_error for row in rows),
        "last": 1 - last.val_error,
        "train_loss": last.train_loss,
        "val_loss": last.val_loss,
        "cpu_s": time.process_time() - begin,
    }


def paired(differences: list[float]) -> dict[str, float]:
    """Return the mean of the differences with the limits of its 95 % interval."""
    mean, count = statistics.mean(differences), len(differences)
    half = factor(statistics.stdev(differences) / math.sqrt(count), count - 1) if count > 1 else math.inf
    return {"mean": mean, "low": mean - half, "high": mean + half}


def main() -> int:
    """Train, print and write; return 1 if an interval of the accuracies excludes zero."""
    parser = argparse.ArgumentParser(description="bfloat16 against float32 on digits, same seeds.")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument(
        "--every-rounding", action="store_true", help="no rounding to bfloat16 may be left out"
    )
    parser.add_argument("--out", type=out_folder, help="folder for digits_precision.md and .json")
    given = parser.parse_args()

    preset, place = config.load("demo"), machine()
    digits, network = open_dataset(preset), resnet50(preset.base)
    steps = {
        name: compile_steps(
            network,
            StepSettings(BATCH, name, mean=digits.mean, deviation=digits.deviation),
            jax.devices()[:1],
        )
        for name in PRECISIONS
    }
    place["devices"] = {
        "kind": jax.devices()[0].device_kind,
        "platform": jax.devices()[0].platform,
        "count": 1,
    }
    rows: list[dict[str, dict[str, float]]] = []
    for seed in range(given.seeds):
        # Whichever comes first, the other one comes first with the next seed.
        order = PRECISIONS if seed % 2 == 0 else PRECISIONS[::-1]
        rows.append({name: train(steps[name], digits, seed, given.epochs) for name in order})
        print(f"seed {seed}: {rows[-1]}", file=sys.stderr, flush=True)

    differences = {
        key: paired([row["bfloat16"][key] - row["float32"][key] for row in rows])
        for key in ("best", "last", "train_loss", "val_loss")
    }
    within = {key: differences[key]["low"] <= 0 <= differences[key]["high"] for key in ("best", "last")}
    table = [
        [seed, *(f"{row[name][key]:.4f}" for key in ("best", "last", "val_loss") for name in PRECISIONS)]
        for seed, row in enumerate(rows)
    ]
    lines = [
        "# Digits at 32x32 in bfloat16 and in float32",
        "",
        described(place),
        "",
        f"ResNet-50 of width {preset.model.width}, batch {BATCH}, learning rate {RATE} falling over "
        f"{given.epochs} epochs, zero-gamma; 360 images of validation, so that one image is 0.0028. Operands "
        "of the compiled convolutions: "
        + ", ".join(f"{name} as {step.precision}" for name, step in steps.items())
        + " (a CPU widens them after rounding). "
        + (
            "No rounding is left out."
            if EVERY_ROUNDING
            else "The compiler may leave out roundings between operations."
        ),
        "",
        markdown(
            [
                "seed",
                "best, f32",
                "best, bf16",
                "last, f32",
                "last, bf16",
                "val. loss, f32",
                "val. loss, bf16",
            ],
            table,
        ),
        "",
    ]
    for key, title in (
        ("best", "best accuracy"),
        ("last", "last accuracy"),
        ("train_loss", "training loss"),
        ("val_loss", "validation loss"),
    ):
        part = differences[key]
        lines.append(
            f"- {title}, bfloat16 less float32: {part['mean']:+.4f}, 95 % interval {part['low']:+.4f} to "
            f"{part['high']:+.4f}"
        )
    lines.append(f"- equal within noise: {'met' if all(within.values()) else 'MISSED'}")
    write(
        given.out,
        "digits_precision",
        "\n".join(lines),
        {"machine": place, "seeds": rows, "differences": differences, "within_noise": within},
    )
    return not all(within.values())


if __name__ == "__main__":
    sys.exit(main())
