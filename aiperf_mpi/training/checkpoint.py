# SPDX-License-Identifier: Apache-2.0
"""Weights in an HDF5 file that is whole or absent, and a digest that tells whether two sets of weights are equal."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from aiperf_mpi.search.architecture import Architecture

FORMAT = "aiperf_mpi.checkpoint/1"


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds: the trial, its architecture, and the collections `params` and `batch_stats` (float32)."""

    trial_id: int
    architecture: Architecture
    variables: dict[str, Any]
    digest: str


def digest(variables: Mapping[str, Any]) -> str:
    """128-bit hash (32 hexadecimal digits) of the names, shapes, dtypes and bits of a tree of numpy arrays."""
    total = hashlib.blake2b(digest_size=16)
    for path, array in _leaves(variables):
        total.update(f"{path} {array.dtype.str} {array.shape}\n".encode())
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()


def save_checkpoint(path: str | Path, trial_id: int, architecture: Architecture, variables: Mapping[str, Any]) -> str:
    """Writes the file under a temporary name, syncs and renames it, so that readers find it whole; returns the digest.

    `variables` are the collections `params` and `batch_stats`, as numpy arrays of float32. Raises ValueError for
    another dtype, OSError where the file cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        value = digest(variables)
        with h5py.File(unfinished, "w") as file:
            file.attrs.update(
                format=FORMAT,
                trial_id=np.int64(trial_id),
                arch_json=architecture.to_json(),
                arch_hash=architecture.hash,
                digest=value,
            )
            for name, array in _leaves(variables):
                if array.dtype != np.float32:
                    raise ValueError(f"{path}: {name} is {array.dtype}, but a checkpoint holds float32")
                file.create_dataset(name, data=array)
            file.flush()

        with open(unfinished, "rb") as written:
            os.fsync(written.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return value


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Reads a file of `save_checkpoint`. Raises OSError if there is none, ValueError if it is not what was saved."""
    with h5py.File(path, "r") as file:
        if file.attrs.get("format") != FORMAT:
            raise ValueError(f"{path}: no checkpoint of format {FORMAT}, but {file.attrs.get('format')!r}")
        architecture = Architecture.from_json(file.attrs["arch_json"])
        variables = _read(file)
        saved, found = file.attrs["digest"], digest(variables)
        trial_id = int(file.attrs["trial_id"])
        if architecture.hash != file.attrs["arch_hash"]:
            raise ValueError(f"{path}: its architecture hashes to {architecture.hash}, not {file.attrs['arch_hash']}")
    if saved != found:
        raise ValueError(f"{path}: its weights have the digest {found}, not {saved} as when they were saved")
    return Checkpoint(trial_id, architecture, variables, found)


def _leaves(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """All arrays of a tree with their paths, in the order of their names."""
    for name in sorted(tree):
        node = tree[name]
        if isinstance(node, Mapping):
            yield from _leaves(node, f"{path}/{name}")
        else:
            yield f"{path}/{name}", np.asarray(node)


def _read(group: h5py.Group) -> dict[str, Any]:
    return {name: _read(node) if isinstance(node, h5py.Group) else node[...] for name, node in group.items()}
