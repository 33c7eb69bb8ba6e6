# SPDX-License-Identifier: Apache-2.0
"""Prepare the output folder: new, writable, and with enough free space for what the run writes."""

from __future__ import annotations

import math
import os
import resource
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from aiperf_mpi.config import Config, ConfigError
from aiperf_mpi.config.paths import expanded, message, reading
from aiperf_mpi.machine.monitor import stride
from aiperf_mpi.network.architecture import resnet50
from aiperf_mpi.planning.folder import Announce, RunFolder, claim, claim_first, default_folders
from aiperf_mpi.planning.shared_memory import coordinator_bytes, node_bytes
from aiperf_mpi.trials.footprint import KEPT_STATES

#: Bytes for each parameter: the float32 value, and a share of the batch norms' moving averages (an upper
#: bound).
_BYTES_PER_PARAMETER = 6

#: Bytes for each parameter of the state of a trial that trains: value, momentum, and the best value so far in
#: float32, and shares of the moving averages of both networks.
_BYTES_OF_STATE = 16

#: Largest size of a network in sizes of the initial one: all widths doubled twice.
_GROWTH = 4

#: Bytes of a record or trial, of an epoch and of a sample, in journal and HDF5 files together (upper
#: bounds).
_BYTES_PER_RECORD, _BYTES_PER_EPOCH, _BYTES_PER_SAMPLE = 8192, 1024, 1024

#: Shortest epoch in seconds: with the time limit, it bounds the number of rows.
_EPOCH_SECONDS = 0.5

#: Files in addition to the weights: journal, results and summaries, each also under a temporary name.
_FILES = 16

#: Bytes of the largest file that an MPI library makes in /dev/shm (measured: Open MPI 16 MiB for each rank,
#: MPICH 3 MiB for three), which counts for the limit on files too.
_SEGMENT_BYTES = 16 * 2**20

#: What to do about a limit on the size of files.
FILE_REMEDY = "raise the limit, before the launcher and on each host: ulimit -f unlimited"

#: Bytes kept free for logs and for other programs that write at the same time.
_SPARE_BYTES = 64 * 2**20


def default_output(now: float | None = None) -> str:
    """Return the first folder for an empty `run.output`, by the time `now` (seconds since 1970)."""
    return str(next(default_folders(now)))


@dataclass(frozen=True, slots=True)
class Storage:
    """Upper bounds of the bytes that a run writes into its output folder.

    They are split into weights, rows of records, trials and epochs, samples of the machine's use, states of
    trials that train, and bytes kept free.
    """

    checkpoints: int
    rows: int
    samples: int
    states: int = 0
    spare: int = _SPARE_BYTES

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return self.checkpoints + self.rows + self.samples + self.states + self.spare


def estimate_bytes(config: Config, replicas: int) -> int:
    """Return an upper bound of the bytes that a run writes into its output folder."""
    return storage(config, replicas).total


def storage(config: Config, replicas: int) -> Storage:
    """Return upper bounds of the bytes that a run writes, by kind.

    Each replica keeps `result.keep_checkpoints` files of weights, and one more while a file is replaced. If
    weights are inherited, it also keeps the last files pushed out, as many as candidates wait in a queue.
    Of a trial that trains it keeps the last states. The history's capacity and the time limit bound the rows;
    the number of nodes, with one trainer or more each, bounds the samples.
    """
    weights = replicas * checkpoint_files(config) * _most_parameters(config) * _BYTES_PER_PARAMETER
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
        weights,
        records * _BYTES_PER_RECORD + epochs * _BYTES_PER_EPOCH,
        samples * _BYTES_PER_SAMPLE,
        replicas * state_files(config) * state_bytes(_most_parameters(config)),
    )


def _most_parameters(config: Config) -> int:
    """Return the parameters of the largest network that a run may keep."""
    return min(_GROWTH * resnet50(config.base).parameters, config.search.max_parameters)


def state_bytes(parameters: int) -> int:
    """Return an upper bound of the bytes of a state of a trial that trains."""
    return parameters * _BYTES_OF_STATE


def state_files(config: Config) -> int:
    """Return the most states that a replica has on disk, one of them under a temporary name; 0 where none is
    written: a run may be too short."""
    seconds = config.result.checkpoint_seconds
    return KEPT_STATES + 1 if 0 < seconds <= config.run.time_limit else 0


def checkpoint_files(config: Config) -> int:
    """Return the most files of weights that a replica has at a time."""
    return config.result.keep_checkpoints + 1 + (config.search.queue_depth if config.model.inherits else 0)


def claim_output(
    config: Config, replicas: int, run_id: str, announce: Announce = lambda folder: None
) -> RunFolder:
    """Create the output folder of `config`, make it this run's, and check that the run fits into it.

    An empty `run.output` is a new folder named by the time; a given folder may exist if it is empty. Raises
    ConfigError, and then leaves nothing. The message names the path and what to do. `announce` gets the
    folder before it is created, and then what was created.
    """
    if config.run.output:
        folder = claim(expanded("--output", config.run.output), run_id, announce)
    else:
        folder = claim_first((expanded("--output", name) for name in default_folders()), run_id, announce)
    with ExitStack() as undo:
        undo.callback(folder.remove)
        _check_space(config, replicas, folder.path)
        undo.pop_all()
    return folder


def _check_space(config: Config, replicas: int, folder: Path) -> None:
    """Raise ConfigError if the file system or a limit of this process leaves too little for the run."""
    kinds = storage(config, replicas)
    with reading("--output", folder, "name another folder"):
        system = os.statvfs(folder)
    # Some file systems of networks report no sizes at all.
    if system.f_blocks and kinds.total > (free := system.f_bavail * system.f_frsize):
        need, left = _apart(kinds.total, free)
        reason = f"the run may write {need}, but {left} are free"
        remedy = ", or ".join(
            ["make room", "name a folder on another file system", *_less(config, replicas, free)]
        )
        raise ConfigError(message("--output", folder, reason, remedy))
    files = _FILES + replicas * (checkpoint_files(config) + state_files(config))
    if system.f_files and system.f_favail < files:
        reason = f"the run makes up to {files} files, but the file system takes {system.f_favail} more"
        raise ConfigError(message("--output", folder, reason, "remove files, or name another folder"))
    if wrong := file_limit(config, replicas):
        raise ConfigError(message("--output", folder, wrong, FILE_REMEDY))


def _apart(need: int, free: int) -> tuple[str, str]:
    """Return two numbers of bytes in words, the first rounded up, the second down: they differ."""
    if need < 10 * 2**30:
        return f"{math.ceil(need / 2**20)} MiB", f"{free // 2**20} MiB"
    return f"{math.ceil(need / 2**30 * 10) / 10:.1f} GiB", f"{free * 10 // 2**30 / 10:.1f} GiB"


def _less(config: Config, replicas: int, free: int) -> list[str]:
    """Return the settings that would make the run fit into `free` bytes."""
    kept = replace(config, result=replace(config.result, keep_checkpoints=1))
    stateless = replace(config, result=replace(config.result, checkpoint_seconds=0.0))
    smallest = resnet50(config.base).parameters
    small = replace(config, search=replace(config.search, max_parameters=smallest))
    fits = {
        "lower result.keep_checkpoints": estimate_bytes(kept, replicas) <= free,
        "set result.checkpoint_seconds=0": estimate_bytes(stateless, replicas) <= free,
        f"lower search.max_parameters (the initial network has {smallest})": estimate_bytes(small, replicas)
        <= free,
    }
    return [remedy for remedy, helps in fits.items() if helps]


def file_limit(config: Config, replicas: int) -> str:
    """Return what is wrong with this process's limit on the size of a file (ulimit -f), or ""."""
    kinds, limit = storage(config, replicas), resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    weights = kinds.checkpoints // (replicas * checkpoint_files(config))
    state = state_bytes(_most_parameters(config)) if state_files(config) else 0
    windows = coordinator_bytes(config) + node_bytes(config, 1, 1)
    largest = max(kinds.rows + kinds.samples, weights, state, windows, _SEGMENT_BYTES)
    if limit in (resource.RLIM_INFINITY, -1) or limit >= largest:
        return ""
    return (
        f"a file of the run or of MPI may have {math.ceil(largest / 2**20)} MiB, but the limit of this "
        f"process (ulimit -f) is {limit / 2**20:.1f} MiB"
    )
