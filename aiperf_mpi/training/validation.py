# SPDX-License-Identifier: Apache-2.0
"""Validate weights that were loaded again, outside of any training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import numpy as np
from jax.sharding import NamedSharding

from aiperf_mpi.training.steps.devices import place, replicate


class Evaluates(Protocol):
    """The part of compiled steps that a validation needs, see `compile.Compiled`."""

    @property
    def sharding(self) -> NamedSharding:
        """Placement of arrays [D, ...] on the D devices, one entry of the first axis on each."""

    @property
    def evaluate(self) -> Callable[..., Any]:
        """The compiled step (params, batch_stats, images, labels, valid) -> metrics, `valid` bool [D, B]."""


def validation_error(compiled: Evaluates, variables: Mapping[str, Any], batches: Iterable[Any]) -> float:
    """Return the share of the valid images that `variables` classify wrongly, bit for bit as in a training.

    Arguments:
        compiled: the steps of the weights' architecture.
        variables: collections `params` and `batch_stats`, as in a checkpoint.
        batches: host arrays (images, labels, valid) of the whole validation set, see
            `data.loader.val_batches`.

    Raises ValueError where the batches hold no valid image.
    """
    on_devices = replicate(dict(variables), compiled.sharding)
    correct = images = 0
    for pictures, labels, valid in batches:
        inputs = place((pictures, labels, np.asarray(valid, bool)), compiled.sharding)
        metrics = compiled.evaluate(on_devices["params"], on_devices["batch_stats"], *inputs)
        correct, images = correct + int(metrics.correct), images + int(metrics.images)
    if not images:
        raise ValueError("validation: there is no image in the validation set")
    return (images - correct) / images
