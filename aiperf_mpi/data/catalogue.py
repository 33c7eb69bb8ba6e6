# SPDX-License-Identifier: Apache-2.0
"""The data sets by their names: whether one can be opened, and opening it."""

from __future__ import annotations

from aiperf_mpi.config import Config
from aiperf_mpi.data.dataset import Dataset


def check_dataset(config: Config) -> None:
    """Look whether the data set of `config` can be opened, without reading its images: cheap, before every
    launch.

    Raises ConfigError naming the path and what to do.
    """
    match config.data.name:
        case "cifar10":
            from aiperf_mpi.data import cifar10

            cifar10.find_files(config.data.path)
        case "imagenet":
            from aiperf_mpi.data import imagenet

            imagenet.refuse(config)


def open_dataset(config: Config) -> Dataset:
    """The data set of `config`, cut to `data.train_images` and `data.val_images`.

    Raises ConfigError naming the path and what to do where the images are missing or are not what they should
    be.
    """
    # Each set is imported only where it is used: scikit-learn alone takes a second.
    match config.data.name:
        case "digits":
            from aiperf_mpi.data.digits import load_digits

            return load_digits(config)
        case "synthetic":
            from aiperf_mpi.data.synthetic import make_synthetic

            return make_synthetic(config)
        case "cifar10":
            from aiperf_mpi.data.cifar10 import load_cifar10

            return load_cifar10(config)
        case _:
            from aiperf_mpi.data import imagenet

            imagenet.refuse(config)
