# SPDX-License-Identifier: Apache-2.0
"""The published constants of the benchmark: the paper (Ren et al., 2021), Table 4, and the authors' code."""

from __future__ import annotations

#: Epochs of rounds 1, 2, 3 and of all later ones (authors' code: --warmup_1/2/3, --epochs).
ROUND_EPOCHS = (15, 30, 45, 60)

#: Length of the linear decay of the learning rate in epochs (Table 4: maximum epoch).
SCHEDULE_EPOCHS = 60

#: Patience of round 1, its increase per round, and its maximum (authors' code).
PATIENCE_BASE, PATIENCE_STEP, PATIENCE_MAX = 6, 2, 20

#: A validation loss must fall by more than this to count as progress (authors' code, on the loss as Keras
#: does).
MIN_DELTA = 0.001

#: The published sets: kernels of the paper's section 4.2; batches around Table 4's 448, multiples of 64.
KERNELS = (3, 5, 7)
BATCHES = (256, 320, 384, 448, 512)

#: First round in which hyperparameters are optimised (section 4.5 of the paper: the fourth).
FROM_ROUND = 4

#: ImageNet's images for training and validation (section 4.5 of the paper).
IMAGENET_IMAGES = (1_281_167, 50_000)
IMAGENET_CLASSES = 1000

#: Shortest core phase of an official run in seconds (the authors' README, section 2: at least an hour).
OFFICIAL_SECONDS = 3600.0
