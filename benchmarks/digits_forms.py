# SPDX-License-Identifier: Apache-2.0
"""Do the forms that move fewer bytes learn what the plain form learns? The digits at 32x32, same seeds.

    python benchmarks/digits_forms.py [--seeds 5] [--epochs 8] [--out FOLDER]

The network and the training are those of `digits_precision.py`: a ResNet-50 of width 4, batch 32. A seed
gives all trainings the same initial weights and the same order of images, so that the difference of a pair is
that of the forms. Each kind of step is compiled once. XLA leaves out no rounding in any of them.

The forms hold if both 95 % intervals of the accuracies' differences (Student's) contain 0 in each precision,
and if the mean loss curves differ by at most BAND in each epoch.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_allow_excess_precision=false".strip()
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import argparse  # noqa: E402
from collections.abc import Mapping, Sequence  # noqa: E402
from typing import Any  # noqa: E402

import jax  # noqa: E402
import numpy as np  # noqa: E402

from aiperf_mpi.config import config  # noqa: E402
from aiperf_mpi.data.catalogue import open_dataset  # noqa: E402
from aiperf_mpi.network.architecture import resnet50  # noqa: E402
from aiperf_mpi.opcount.forms import FORM_SETS  # noqa: E402
from aiperf_mpi.training.steps.compile import Compiled, compile_steps  # noqa: E402
from aiperf_mpi.training.steps.step import StepSettings  # noqa: E402
from benchmarks.digits_precision import BATCH, PRECISIONS, RATE, epochs_of, paired  # noqa: E402
from benchmarks.tables import described, goals, machine, markdown, out_folder, write  # noqa: E402

#: Largest difference of the mean loss of an epoch, stated before anything was measured.
BAND = 0.05

#: The forms that are compared: values of `train.forms`.
PLAIN, ALL = "plain", "folded"

#: What is compared: key of a training -> title.
COMPARED = {"best": "best accuracy", "last": "last accuracy"}

#: The curves of a training: key -> title.
CURVES = {"train_loss": "training loss", "val_loss": "validation loss"}

#: A training: its accuracies, and the losses of its epochs.
Learned = dict[str, Any]


def learn(compiled: Compiled, digits: Any, seed: int, epochs: int) -> Learned:
    """Run one training; return best and last accuracy, and its curves."""
    rows = epochs_of(compiled, digits, seed, epochs)
    errors = [row.val_error for row in rows]
    curves = {key: [getattr(row, key) for row in rows] for key in CURVES}
    return {"best": 1 - min(errors), "last": 1 - errors[-1], **curves}


def compile_all(network: Any, digits: Any) -> dict[tuple[str, str], Compiled]:
    """Return the steps of each precision and forms."""
    common = {"mean": digits.mean, "deviation": digits.deviation}
    return {
        (precision, forms): compile_steps(
            network, StepSettings(BATCH, precision, forms=FORM_SETS[forms], **common), jax.devices()[:1]
        )
        for precision in PRECISIONS
        for forms in (PLAIN, ALL)
    }


def compared(rows: Sequence[Mapping[tuple[str, str], Learned]], precision: str) -> dict[str, Any]:
    """Return the differences of all forms less the plain one: intervals, and the mean of each epoch."""
    pairs = [(row[precision, ALL], row[precision, PLAIN]) for row in rows]
    intervals = {key: paired([ours[key] - plain[key] for ours, plain in pairs]) for key in COMPARED}
    curves = {
        key: np.mean([np.subtract(ours[key], plain[key]) for ours, plain in pairs], 0).tolist()
        for key in CURVES
    }
    return {"intervals": intervals, "curves": curves}


def met(differences: Mapping[str, Any]) -> dict[str, bool]:
    """Return whether each goal is met."""
    result = {}
    for precision, found in differences.items():
        for key, title in COMPARED.items():
            interval = found["intervals"][key]
            result[f"{precision}: {title} equal within noise"] = interval["low"] <= 0 <= interval["high"]
        for key, title in CURVES.items():
            within = max(map(abs, found["curves"][key])) <= BAND
            result[f"{precision}: mean {title} of each epoch within {BAND}"] = within
    return result


def page(
    rows: Sequence[Mapping[tuple[str, str], Learned]],
    differences: Mapping[str, Any],
    facts: dict[str, Any],
    width: int,
) -> str:
    """Return the tables."""
    kinds, epochs = list(rows[0]), len(next(iter(rows[0].values()))["train_loss"])
    heads = ["seed", *(f"{key}, {precision}, {forms}" for key in COMPARED for precision, forms in kinds)]
    table = [
        [seed, *(f"{row[kind][key]:.4f}" for key in COMPARED for kind in kinds)]
        for seed, row in enumerate(rows)
    ]
    curves = [
        [
            f"{title}, {precision}, {forms}",
            *(f"{x:.4f}" for x in np.mean([row[precision, forms][key] for row in rows], 0)),
        ]
        for key, title in CURVES.items()
        for precision, forms in kinds
    ]
    lines = [
        f"- {precision}, {title}, all forms less plain: {part['mean']:+.4f}, 95 % interval "
        f"{part['low']:+.4f} to {part['high']:+.4f}"
        for precision, found in differences.items()
        for key, title in COMPARED.items()
        for part in [found["intervals"][key]]
    ]
    return "\n\n".join(
        (
            "# Digits at 32x32 in all forms and in the plain form",
            described(facts),
            f"ResNet-50 of width {width}, batch {BATCH}, learning rate {RATE} falling over {epochs} epochs, "
            "zero-gamma; 360 images of validation, so that one image is 0.0028. All forms: "
            f"`train.forms={ALL}`. XLA leaves out no rounding.",
            markdown(heads, table),
            "Means over the seeds, by epoch:",
            markdown(["curve", *map(str, range(1, epochs + 1))], curves),
            "\n".join(lines),
            goals(met(differences)),
        )
    )


def main() -> int:
    """Train, print and write; return 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description="All forms against the plain form on digits, same seeds.")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--out", type=out_folder, help="folder for digits_forms.md and .json")
    given = parser.parse_args()

    preset, facts = config.load("demo"), machine()
    digits = open_dataset(preset)
    steps = compile_all(resnet50(preset.base), digits)
    rows: list[dict[tuple[str, str], Learned]] = []
    for seed in range(given.seeds):
        rows.append({kind: learn(step, digits, seed, given.epochs) for kind, step in steps.items()})

        # The table is written after each seed, so that a long run that is ended leaves what it has.
        differences = {precision: compared(rows, precision) for precision in PRECISIONS}
        named = [{", ".join(kind): learned for kind, learned in row.items()} for row in rows]
        data = {"machine": facts, "seeds": named, "differences": differences, "goals": met(differences)}
        text = page(rows, differences, facts, preset.model.width)
        write(given.out, "digits_forms", text, data, quiet=seed + 1 < given.seeds)
    return not all(met(differences).values())


if __name__ == "__main__":
    sys.exit(main())
