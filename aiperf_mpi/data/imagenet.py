# SPDX-License-Identifier: Apache-2.0
"""The data set `imagenet`: ImageNet (ILSVRC 2012), the data set of an official run.

It will be read from packed shards; this version refuses it.
"""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from aiperf_mpi.config import Config, ConfigError
from aiperf_mpi.data.dataset import Dataset


def check(config: Config) -> NoReturn:
    """Raise ConfigError: `data.path` is not a folder, or this version does not read ImageNet."""
    path = config.data.path
    if not path:
        raise ConfigError(
            "data.path: it is empty, but data.name = 'imagenet' needs a folder of packed ImageNet; runs "
            "without it are --preset demo, and --preset imagenet-synthetic with images of the same shape"
        )
    if not Path(path).is_dir():
        raise ConfigError(f"data.path: {path} is not a folder; give the folder of the packed ImageNet")
    raise ConfigError(
        f"data.path: {path} cannot be used: this version does not read ImageNet; --preset "
        f"imagenet-synthetic measures the machine with images of the same shape"
    )


def load(config: Config) -> Dataset:
    """Raise the ConfigError of :func:`check`."""
    check(config)
