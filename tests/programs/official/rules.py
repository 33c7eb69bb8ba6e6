# SPDX-License-Identifier: Apache-2.0
"""Rules of a test: those of the benchmark, with a small data set, a small network, a short core time.

The programs of this folder pass them; no option, variable or file of the benchmark selects them.
"""

from __future__ import annotations

from typing import Any

from aiperf_mpi.config.classes import OfficialRules
from aiperf_mpi.config.config import settings
from aiperf_mpi.config.ilsvrc import Reference, hash_of_labels, hash_of_lines
from aiperf_mpi.config.setting import FIXED, Rule

#: Made-up synsets, and pictures of each class for training and for validation.
CLASSES = tuple(f"n{number:08d}" for number in range(2_000_000, 2_001_000))
TRAIN_EACH, VAL_EACH, SIDE = 2, 1, 24

#: Number of each validation picture in its name -> its class: the next but two of the sorted classes.
VAL_CLASSES = [CLASSES[3 * number % len(CLASSES)] for number in range(VAL_EACH * len(CLASSES))]

REFERENCE = Reference(
    name="the test's set",
    images=(TRAIN_EACH * len(CLASSES), VAL_EACH * len(CLASSES)),
    classes=len(CLASSES),
    classes_sha256=hash_of_lines(CLASSES),
    of_a_class=((TRAIN_EACH, TRAIN_EACH), (VAL_EACH, VAL_EACH)),
    labels_sha256=hash_of_labels(
        (f"ILSVRC2012_val_{number + 1:08d}.JPEG" for number in range(len(VAL_CLASSES))), VAL_CLASSES
    ),
    side=SIDE,
)

#: What a run must have, with the least core time first. An untrained network guesses one class of 1000.
VALUES: dict[str, Any] = {
    "run.time_limit": 20.0,
    "run.tick": 4.0,
    "data.image_size": 16,
    "data.train_images": REFERENCE.images[0],
    "data.val_images": REFERENCE.images[1],
    "model.width": 4,
    "model.blocks": (1, 1),
    "hpo.batches": (32, 64),
    "result.max_error": 1.0,
}

#: A short run on loaded cores compiles most of the time: its rate does not settle.
RULES = OfficialRules(
    changed={
        key: Rule(FIXED, value, "a test", least=key == "run.time_limit") for key, value in VALUES.items()
    },
    reference=REFERENCE,
    max_drift=10.0,
)

assert set(VALUES) <= set(settings())
