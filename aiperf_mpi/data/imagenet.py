# SPDX-License-Identifier: Apache-2.0
"""ImageNet (ILSVRC 2012), the data set of an official run; it is trained from packed shards, not from its
archives."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from aiperf_mpi.config import Config, ConfigError


def refuse(config: Config) -> NoReturn:
    """Raises ConfigError: where `data.path` is no folder, and else because this version cannot pack
    ImageNet."""
    path = config.data.path
    if not path:
        raise ConfigError(
            "data.path: it is empty, but data.name = 'imagenet' needs a folder of packed ImageNet; runs "
            "without it are "
            "--preset demo, and --preset imagenet-synthetic with images of the same shape"
        )
    if not Path(path).is_dir():
        raise ConfigError(f"data.path: {path} is no folder; give the folder of the packed ImageNet")
    raise ConfigError(
        f"data.path: {path} cannot be used: this version does not read ImageNet; --preset "
        f"imagenet-synthetic measures "
        "the machine with images of the same shape"
    )
