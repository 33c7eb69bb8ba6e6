# SPDX-License-Identifier: Apache-2.0
"""The data set `imagenet`: ImageNet (ILSVRC 2012), the data set of an official run.

It will be read from packed shards; this version refuses it.
"""

from __future__ import annotations

from typing import NoReturn

from aiperf_mpi.config import Config, ConfigError
from aiperf_mpi.data.dataset import Dataset


def check(config: Config) -> NoReturn:
    """Raise ConfigError: this version cannot read ImageNet, with or without a folder in `data.path`."""
    path = f" (data.path: {config.data.path})" if config.data.path else ""
    raise ConfigError(
        f"data.name = 'imagenet': this version cannot read ImageNet{path}; --preset imagenet-synthetic "
        f"measures the machine with images of the same shape"
    )


def load(config: Config) -> Dataset:
    """Raise the ConfigError of :func:`check`."""
    check(config)
