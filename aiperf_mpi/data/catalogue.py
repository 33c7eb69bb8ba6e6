# SPDX-License-Identifier: Apache-2.0
"""Check and open the data set that a configuration names.

The names are in :mod:`aiperf_mpi.config.datasets`; the data set NAME is the module `aiperf_mpi.data.NAME`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Protocol, cast

from aiperf_mpi.config import Config, ConfigError
from aiperf_mpi.config.config import with_data
from aiperf_mpi.config.datasets import DATASETS
from aiperf_mpi.config.ilsvrc import ILSVRC2012, Reference
from aiperf_mpi.config.paths import reading
from aiperf_mpi.data.dataset import Dataset


class DatasetModule(Protocol):
    """The functions of a data set's module; both raise ConfigError naming the setting and what to do."""

    def check(self, config: Config) -> None:
        """Check that the data set can be opened, without reading its images."""

    def load(self, config: Config) -> Dataset:
        """Return the first `data.train_images` and `data.val_images` images of the data set."""


def check_dataset(config: Config, reference: Reference = ILSVRC2012) -> None:
    """Check that the data set of `config` can be opened, without reading its images: cheap, before every
    launch. `imagenet` must have as many pictures as the reference.

    Raises ConfigError naming the path and what to do.
    """
    with _refused(config):
        if config.data.name == "imagenet":
            from aiperf_mpi.data import imagenet

            imagenet.check_whole(config, reference)
        _module(config.data.name).check(config)


def open_dataset(config: Config) -> Dataset:
    """Return the data set of `config`, cut to `data.train_images` and `data.val_images`.

    Raises ConfigError naming the path and what to do where images are missing or damaged, and where the
    memory does not suffice.
    """
    with _refused(config):
        return _module(config.data.name).load(config)


def resolved(config: Config) -> Config:
    """Return the configuration with the settings of section `data` that a packed set's manifest decides.

    One rank does it for all, before the run. Raises ConfigError where the manifest cannot be read, or where
    other settings contradict it.
    """
    packed = DATASETS[config.data.name].packed
    if config.data.stage and not packed:
        raise ConfigError(
            f"data.stage: data.name = {config.data.name!r} is not read from packed pictures, so nothing is "
            "copied; leave --stage out"
        )
    if not config.data.path or not packed:
        return config
    with _refused(config):
        return with_data(config, import_module(f"aiperf_mpi.data.{config.data.name}").resolve(config))


@contextmanager
def _refused(config: Config) -> Iterator[None]:
    """Turn every error of a data set's module, and of the libraries that it uses, into a ConfigError."""
    data = config.data
    if data.path:
        with reading("data.path", data.path, f"check that it is a whole data set {data.name!r}"):
            yield
        return
    # Without a path, the images are made or come with a package.
    remedy = "use fewer or smaller images, or mend the installation of Python's packages"
    with reading("data.name", data.name, remedy):
        yield


def _module(name: str) -> DatasetModule:
    """Import a data set's module only when it is used: some need large libraries."""
    return cast(DatasetModule, import_module(f"aiperf_mpi.data.{name}"))
