# SPDX-License-Identifier: Apache-2.0
"""Validation of weights that were loaded again, apart from any training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import numpy as np
from jax.sharding import NamedSharding

from aiperf_mpi.training.steps.devices import place, replicate


class Evaluates(Protocol):
    """What a validation takes of compiled steps, see `compile.Compiled`."""

    @property
    def sharding(self) -> NamedSharding: ...
    @property
    def evaluate(self) -> Callable[..., Any]: ...


def validation_error(compiled: Evaluates, variables: Mapping[str, Any], batches: Iterable[Any]) -> float:
    """The share of the valid images that `variables` classify wrongly, to the bit as a training computes it.

    Arguments:
        compiled: the steps of the weights' architecture.
        variables: collections `params` and `batch_stats`, as a checkpoint gives them.
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
