# SPDX-License-Identifier: Apache-2.0
"""The output folder: new, writable, and on a file system with room for what the run will write."""

from __future__ import annotations

import math
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from aiperf_mpi.config import Config, ConfigError
from aiperf_mpi.machine.monitor import stride
from aiperf_mpi.network.architecture import resnet50

#: Bytes of one float32 parameter, and of what a batch norm keeps beside its parameters, per parameter (an
#: upper bound).
_BYTES_PER_PARAMETER = 6

#: How much larger than the initial network the best one may become: two doublings of everything.
_GROWTH = 4

#: Bytes that a record or trial, an epoch, and a sample take in journal and HDF5 files together (upper
#: bounds).
_BYTES_PER_RECORD, _BYTES_PER_EPOCH, _BYTES_PER_SAMPLE = 8192, 1024, 1024

#: Fewest seconds that an epoch takes: bounds the number of rows by the time limit.
_EPOCH_SECONDS = 0.5

#: Room that is never used up, for logs and for what others write at the same time.
_SPARE_BYTES = 64 * 2**20


def default_output(now: float | None = None) -> str:
    """The name of the output folder where `run.output` is empty."""
    return time.strftime("runs/aiperf_mpi-%Y%m%d-%H%M%S", time.localtime(now))


@dataclass(frozen=True, slots=True)
class Storage:
    """Bytes that a run writes into its output folder, estimated from above: weights, rows of records, trials
    and epochs, samples of the machine's use, and room that is never used up."""

    checkpoints: int
    rows: int
    samples: int
    spare: int = _SPARE_BYTES

    @property
    def total(self) -> int:
        """All of them."""
        return self.checkpoints + self.rows + self.samples + self.spare


def estimate_bytes(config: Config, replicas: int) -> int:
    """Bytes that a run writes into its output folder, estimated from above."""
    return storage(config, replicas).total


def storage(config: Config, replicas: int) -> Storage:
    """The same by what is written.

    Each replica keeps `result.keep_checkpoints` weights, and one more while a file is replaced; where weights
    are inherited, also those that were pushed out last, as many as candidates wait in a queue. Rows are
    bounded by the history's capacity and by the time limit, samples by the nodes, each of which has a
    trainer.
    """
    parameters = min(_GROWTH * resnet50(config.base).parameters, config.search.max_parameters)
    files = config.result.keep_checkpoints + 1 + (config.search.queue_depth if config.model.inherits else 0)
    weights = replicas * files * parameters * _BYTES_PER_PARAMETER
    epochs = min(
        int(replicas * config.run.time_limit / _EPOCH_SECONDS) + replicas,
        config.parallel.history_capacity * config.train.epochs,
    )
    records = min(config.parallel.history_capacity, 2 * epochs)
    seconds, limit = config.monitor.seconds, config.run.time_limit
    samples = 0
    if seconds > 0:
        nodes = replicas * config.parallel.trainers_per_replica
        samples = nodes * (math.ceil(limit / (seconds * stride(nodes, limit, seconds))) + 1)
    return Storage(
        weights, records * _BYTES_PER_RECORD + epochs * _BYTES_PER_EPOCH, samples * _BYTES_PER_SAMPLE
    )


def prepare_output(config: Config, replicas: int, path: str | Path) -> Path:
    """Creates the output folder and returns its absolute path.

    An existing folder is taken if it is empty. Raises ConfigError, naming the path and what to do, where
    there is something in it, where it cannot be created or written, or where fewer bytes are free than the
    run will write.
    """
    folder = Path(path).expanduser().absolute()
    try:
        if folder.is_dir() and any(folder.iterdir()):
            raise ConfigError(
                f"--output {folder}: not empty; a run writes into a new folder, name another one"
            )
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"--output {folder}: a file of this name exists; name another folder")
        created = _create(folder)
    except OSError as error:
        raise ConfigError(
            f"--output {folder}: cannot be created: {error.strerror}; name another folder"
        ) from None

    # What was created for a run that is refused goes away again.
    try:
        _probe(folder)
        _check_space(config, replicas, folder)
    except ConfigError:
        for made in reversed(created):
            made.rmdir()
        raise
    return folder


def _create(folder: Path) -> list[Path]:
    """Makes `folder` and the parents it lacks; returns those that are new, outermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()][::-1]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _probe(folder: Path) -> None:
    """Writes, syncs and removes a small file: permissions alone do not show a read-only or full file
    system."""
    probe = folder / f".writable-{os.getpid()}"
    try:
        with probe.open("wb") as file:
            file.write(b"aiperf_mpi")
            file.flush()
            os.fsync(file.fileno())
        probe.unlink()
    except OSError as error:
        probe.unlink(missing_ok=True)
        raise ConfigError(
            f"--output {folder}: cannot be written: {error.strerror}; name another folder"
        ) from None


def _check_space(config: Config, replicas: int, folder: Path) -> None:
    needed, free = estimate_bytes(config, replicas), shutil.disk_usage(folder).free
    if needed > free:
        raise ConfigError(
            f"--output {folder}: the run may write {needed / 2**30:.2f} GiB, but {free / 2**30:.2f} GiB are "
            f"free; make "
            "room, name a folder on another file system, or lower result.keep_checkpoints or "
            "search.max_parameters"
        )
