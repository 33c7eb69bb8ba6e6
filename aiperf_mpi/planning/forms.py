# SPDX-License-Identifier: Apache-2.0
"""The forms of layers in which a run trains: by the configuration, or by its devices.

Memory limits a training step on GPUs, and `lean` forms read and write less of it. They are the choice only
where they were trained and timed; CPUs compute the plain form as fast.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from aiperf_mpi.config import Config
from aiperf_mpi.config.datasets import AUTO

#: Platforms, as JAX tells them, on which the lean forms were trained and timed: none yet.
MEASURED: frozenset[str] = frozenset()


def choose_forms(
    config: Config, devices: Iterable[tuple[str, str]], measured: frozenset[str] = MEASURED
) -> str:
    """Return the value of `train.forms` with which a run trains.

    `devices` are the platform and the compute capability of each device of a trainer.
    """
    if config.train.forms != AUTO:
        return config.train.forms
    return "lean" if {platform.lower() for platform, _ in devices} <= measured else "plain"


def with_forms(config: Config, forms: str) -> Config:
    """Return the configuration with these forms in place of `auto`."""
    return replace(config, train=replace(config.train, forms=forms))
