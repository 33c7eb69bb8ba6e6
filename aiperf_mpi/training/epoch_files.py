# SPDX-License-Identifier: Apache-2.0
"""The files of a trial that trains, each of its state after an epoch: names, the newest two, the newest whole
one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from aiperf_mpi.network.architecture import Architecture
from aiperf_mpi.training.epoch_state import EpochState, load_epoch, save_epoch
from aiperf_mpi.trials.footprint import KEPT_STATES

#: A file's name: the trial, and the number of its whole epochs.
_NAME = re.compile(r"(\d+)-epoch-(\d+)\.h5")


class EpochFile(NamedTuple):
    """A file of a trial after so many whole epochs."""

    epochs: int
    path: Path


class Found(NamedTuple):
    """The newest state of a trial that can be read, None without any, and why newer files were refused."""

    state: EpochState | None
    refused: tuple[str, ...] = ()


def epoch_path(folder: Path, trial_id: int, epochs: int) -> Path:
    """Return the file of a trial after so many whole epochs."""
    return folder / f"{trial_id}-epoch-{epochs}.h5"


def epoch_files(folder: Path, trial_id: int) -> list[EpochFile]:
    """Return the files of a trial, the newest first; none where the folder does not exist."""
    names = (_NAME.fullmatch(path.name) for path in folder.glob(f"{trial_id}-epoch-*.h5"))
    found = (EpochFile(int(name[2]), folder / name[0]) for name in names if name is not None)
    return sorted(found, reverse=True)


def write_epoch(folder: Path, epoch: EpochState) -> Path:
    """Write the file of a state, then remove all but the newest two of its trial; return it.

    Raises OSError where a file cannot be written or removed; the older ones then stay.
    """
    path = epoch_path(folder, epoch.start.trial_id, epoch.epochs)
    save_epoch(path, epoch)
    for older in epoch_files(folder, epoch.start.trial_id)[KEPT_STATES:]:
        older.path.unlink(missing_ok=True)
    return path


def remove_epochs(folder: Path, trial_id: int) -> None:
    """Remove all files of a trial. Raises OSError where one cannot be removed."""
    for file in epoch_files(folder, trial_id):
        file.path.unlink(missing_ok=True)


def newest_epoch(folder: Path, trial_id: int, seed: int, architecture: Architecture, most: int) -> Found:
    """Return the newest state of a trial after at most `most` whole epochs, whose file is whole.

    Arguments:
        most: number of the trial's epochs whose rows are kept. A file may be newer than they are: rows reach
            the disk by another way.
        trial_id, seed, architecture: as in `load_epoch`.
    """
    refused: list[str] = []
    for file in epoch_files(folder, trial_id):
        if file.epochs > most:
            refused.append(f"{file.path}: it has {file.epochs} epochs, but the rows of {most} are kept")
            continue
        try:
            state = load_epoch(file.path, trial_id, seed, architecture)
        except (OSError, ValueError) as error:
            refused.append(str(error))
            continue
        if state.epochs == file.epochs:
            return Found(state, tuple(refused))
        refused.append(f"{file.path}: it holds {state.epochs} epochs, not those of its name")
    return Found(None, tuple(refused))
