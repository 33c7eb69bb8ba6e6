# SPDX-License-Identifier: Apache-2.0
"""Save weights in an HDF5 file that is whole or absent, load them, and compare sets of weights by digest.

`write_arrays`, `reading` and `read_arrays` are the same for any tree of arrays (see `epoch_state`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from aiperf_mpi import hdf5
from aiperf_mpi.network.architecture import Architecture
from aiperf_mpi.training.model.resnet import expected_shapes

FORMAT = "aiperf_mpi.checkpoint/1"

#: Bytes by which the memory of a file under construction grows.
_BLOCK = 1 << 22


@dataclass(frozen=True)
class Checkpoint:
    """The content of a file: the trial, its architecture, and the collections `params` and `batch_stats`
    (float32)."""

    trial_id: int
    architecture: Architecture
    variables: dict[str, Any]
    digest: str


class Form(NamedTuple):
    """Shape and dtype that an array of a file must have."""

    shape: tuple[int, ...]
    dtype: Any


def digest(variables: Mapping[str, Any]) -> str:
    """Return a 128-bit hash (32 hexadecimal digits) of the names, shapes, dtypes and bits of a tree of numpy
    arrays."""
    total = hashlib.blake2b(digest_size=16)
    for path, array in _leaves(variables):
        total.update(f"{path} {array.dtype.str} {array.shape}\n".encode())
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()


def save_checkpoint(
    path: str | Path, trial_id: int, architecture: Architecture, variables: Mapping[str, Any]
) -> str:
    """Write the file under a temporary name, sync and rename it, so that readers find it whole; return the
    digest.

    `variables` are the collections `params` and `batch_stats`, as numpy arrays of float32. Raises ValueError
    for another dtype, OSError where the file cannot be written. HDF5 builds the file in memory: on a full
    disk it can raise any error, and crash the process where its own last bytes do not fit.
    """
    path = Path(path)
    for name, array in _leaves(variables):
        if array.dtype != np.float32:
            raise ValueError(f"{path}: {name} is {array.dtype}, but a checkpoint holds float32")
    facts = {
        "format": FORMAT,
        "trial_id": np.int64(trial_id),
        "arch_json": architecture.to_json(),
        "arch_hash": architecture.hash,
    }
    return write_arrays(path, facts, variables)


def write_arrays(path: Path, facts: Mapping[str, Any], arrays: Mapping[str, Any]) -> str:
    """Write attributes, a tree of numpy arrays, and its digest, as `save_checkpoint` does; return the
    digest."""
    value = digest(arrays)
    with h5py.File(path.name, "w", driver="core", backing_store=False, block_size=_BLOCK) as file:
        file.attrs.update(**facts, digest=value)
        for name, array in _leaves(arrays):
            file.create_dataset(name, data=array)
        file.flush()
        image = file.id.get_file_image()
    path.parent.mkdir(parents=True, exist_ok=True)
    hdf5.write(path, image)
    return value


def load_checkpoint(path: str | Path, architecture: Architecture | None = None) -> Checkpoint:
    """Read a file of `save_checkpoint`: the weights of its network and nothing else, all in this one file.

    Arguments:
        architecture: the only network that the file may hold. Without it the file's own text names the
            network. Give it for files from others, as a text may describe a network that fills the memory.

    Raises OSError if HDF5 cannot read the file, ValueError if its content is not what was saved; each message
    is one line.
    """
    with reading(path, FORMAT) as file:
        return _load(file, architecture)


#: Errors that h5py raises for a damaged file, in addition to OSError and ValueError.
_DAMAGE = (AttributeError, LookupError, MemoryError, OverflowError, RecursionError, RuntimeError, TypeError)


@contextmanager
def reading(path: str | Path, kind: str) -> Iterator[h5py.File]:
    """Open a file of `write_arrays` with the attribute `format` = `kind`, and give each error one line with
    the path: OSError if HDF5 cannot read the file, ValueError if its content is not what was written."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            if (found := attribute(file, "format")) != kind:
                raise ValueError(f"not a checkpoint of format {kind}, but {str(found)[:60]!r}")
            yield file
    except FileNotFoundError:
        raise
    except OSError as error:
        raise OSError(f"{path}: not a checkpoint: {hdf5.reason(error)}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {_first_line(error)}") from None
    except _DAMAGE as error:
        raise ValueError(f"{path}: damaged: {type(error).__name__}: {_first_line(error)}") from None


def attribute(file: h5py.File, name: str) -> Any:
    """Return a small attribute of a file; None if it has none of this name, or a large one."""
    return file.attrs[name] if name in file.attrs and hdf5.is_small_attribute(file, name) else None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0]


def _load(file: h5py.File, only: Architecture | None) -> Checkpoint:
    trial_id, text = attribute(file, "trial_id"), attribute(file, "arch_json")
    if not isinstance(text, str) or not isinstance(trial_id, np.int64):
        raise ValueError("its attributes arch_json and trial_id are not those of a checkpoint")
    if only is not None and text != only.to_json():
        raise ValueError("it holds another network")
    architecture = only or Architecture.from_json(text)
    if architecture.hash != (hash_of := attribute(file, "arch_hash")):
        raise ValueError(f"its architecture hashes to {architecture.hash}, not {str(hash_of)[:60]}")
    variables, value = read_arrays(file, expected_shapes(architecture))
    return Checkpoint(int(trial_id), architecture, variables, value)


def read_arrays(file: h5py.File, forms: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Read the arrays of an open file, and return them with their digest.

    Arguments:
        forms: a tree with the `Form` of each array, or its shape alone for float32.

    Raises ValueError for another array, one that is missing or has another form, and another digest than the
    file's.
    """
    arrays = _read(file, "", forms)
    if (saved := attribute(file, "digest")) != (value := digest(arrays)):
        raise ValueError(
            f"its weights have the digest {value}, not {str(saved)[:60]} as when they were saved"
        )
    return arrays, value


def _leaves(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Yield all arrays of a tree with their paths, in the order of their names."""
    for name in sorted(tree):
        node = tree[name]
        if isinstance(node, Mapping):
            yield from _leaves(node, f"{path}/{name}")
        else:
            yield f"{path}/{name}", np.asarray(node)


def _read(file: h5py.File, path: str, forms: Mapping[str, Any]) -> dict[str, Any]:
    """Read the arrays below `path`: those of `forms`, and no others. Raises ValueError for anything that the
    file does not store itself in this form."""
    group = file[path or "/"]
    names = set(group) if isinstance(group, h5py.Group) else set()
    if names != set(forms):
        other = sorted(names ^ set(forms))[0]
        raise ValueError(f"/{path} holds other arrays than its network has, such as {other[:60]!r}")
    arrays: dict[str, Any] = {}
    for name, form in forms.items():
        place = f"{path}/{name}".lstrip("/")
        node = hdf5.own(file, place)
        if isinstance(form, Mapping):
            arrays[name] = _read(file, place, form)
            continue
        shape, dtype = form if isinstance(form, Form) else (tuple(form), np.float32)
        if not isinstance(node, h5py.Dataset) or node.dtype != dtype or node.shape != shape:
            raise ValueError(f"/{place} is not an array of {np.dtype(dtype)} of the shape {shape}")
        if problem := hdf5.wrong_storage(node, node.dtype.itemsize):
            raise ValueError(f"/{place} {problem}")
        arrays[name] = node[...]
    return arrays
