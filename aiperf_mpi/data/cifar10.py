# SPDX-License-Identifier: Apache-2.0
"""The data set `cifar10`: CIFAR-10 as it is published (https://www.cs.toronto.edu/~kriz/cifar.html).

It is read from the binary or the Python version, from a folder or from the archive as it was downloaded; all
give the same images, labels and hash. Each version has six batches of 10,000 images, each of a label and 3072
bytes of pixels, colour by colour, row by row. In the binary version a batch is such records of 3073 bytes, in
the Python version a pickled dictionary of an array and a list.

The content of a pickle decides what its reader does. Here it can make plain values and one array only, and
is not read before its checksum is that of a published file.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from aiperf_mpi.config import Config, ConfigError
from aiperf_mpi.config.paths import existing_folder, expanded, message, readable_file, reading, status
from aiperf_mpi.data.dataset import Dataset, in_memory
from aiperf_mpi.files import open_regular, read_bytes
from aiperf_mpi.printable import plain

FOLDER, PYTHON_FOLDER = "cifar-10-batches-bin", "cifar-10-batches-py"
TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
VAL_FILE = "test_batch.bin"

#: The batches of both versions, training first.
BINARY, PYTHON = (*TRAIN_FILES, VAL_FILE), (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")

#: MD5 of the archives, which the page of the data set states, and the batches of each.
ARCHIVES = {"c32a1d4ab5d03f1284b67883e8d87530": BINARY, "c58f30108f718f92721af3b95e74349a": PYTHON}

#: Names of the archives as they are published.
ARCHIVE_NAMES = ("cifar-10-binary.tar.gz", "cifar-10-python.tar.gz")

#: MD5 of the Python version's batches, as torchvision states them (torchvision/datasets/cifar.py). Those of
#: the binary version's are not published.
PYTHON_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}

_SIDE, _CHANNELS, _CLASSES, _RECORDS = 32, 3, 10, 10_000
_PIXELS = _CHANNELS * _SIDE * _SIDE
_RECORD_BYTES = 1 + _PIXELS
_FILE_BYTES = _RECORDS * _RECORD_BYTES

#: Most bytes of a pickled batch: the names of its images come in addition to pixels and labels.
_MOST_PICKLE = _FILE_BYTES + (2 << 20)

#: How a gzip file begins.
_GZIP = b"\x1f\x8b"

_SETTING = "data.path"
_FETCH = (
    f"download {ARCHIVE_NAMES[0]} or {ARCHIVE_NAMES[1]} from https://www.cs.toronto.edu/~kriz/cifar.html, "
    f"and pass --set data.path=.../{ARCHIVE_NAMES[0]}, or the folder that was unpacked from it"
)


def check(config: Config) -> None:
    """Check that all files can be opened and have a possible size. Raises ConfigError otherwise."""
    find_files(config.data.path)


def load(config: Config) -> Dataset:
    """Return the training images and, for validation, the test images, or the first of each."""
    files = find_files(config.data.path)
    found = dict(_archived(files[0]) if len(files) == 1 else map(_batch, files))
    digest = hashlib.sha256()
    images, labels = [], []
    for name in sorted(found):
        records = found.pop(name)
        digest.update(records.data)
        labels.append(records[:, 0].astype(np.int32))
        images.append(records[:, 1:].reshape(-1, _CHANNELS, _SIDE, _SIDE).transpose(0, 2, 3, 1))

    train, val = config.data.train_images, config.data.val_images
    return in_memory(
        "cifar10",
        (np.concatenate(images[:-1])[:train], np.concatenate(labels[:-1])[:train]),
        (np.ascontiguousarray(images[-1][:val]), labels[-1][:val]),
        _CLASSES,
        digest.hexdigest(),
    )


# -- finding the files -----------------------------------------------------------------------------


def find_files(path: str) -> list[Path]:
    """Return the six batches of the data set at `path`, training first, or its archive alone.

    `path` is an archive, a folder with the batches, or a folder with the published folder or archive in it.
    Raises ConfigError if a file is missing, cannot be read, or has an impossible size.
    """
    if not path:
        raise ConfigError(
            f"data.path: it is empty, but data.name = 'cifar10' needs the files of CIFAR-10; {_FETCH}"
        )
    place = expanded(_SETTING, path)
    status(_SETTING, place, _FETCH)
    if os.path.isfile(place):
        return [_archive(place)]
    place = _inner(existing_folder(_SETTING, place, _FETCH))
    if os.path.isfile(place):
        return [_archive(place)]
    python = not _has(place, BINARY) and _has(place, PYTHON)
    files = [place / name for name in (PYTHON if python else BINARY)]
    for file in files:
        _check_size(file, readable_file(_SETTING, file, _FETCH))
    return files


def _inner(folder: Path) -> Path:
    """Return the place in `folder` that has the data set by its published name; else `folder` itself."""
    if _has(folder, (*BINARY, *PYTHON)):
        return folder
    for name in (FOLDER, PYTHON_FOLDER):
        if os.path.lexists(folder / name):
            return existing_folder(_SETTING, folder / name, _FETCH)
    return next((folder / name for name in ARCHIVE_NAMES if os.path.isfile(folder / name)), folder)


def _has(folder: Path, names: tuple[str, ...]) -> bool:
    """Return whether `folder` has one of the files."""
    return any(os.path.lexists(folder / name) for name in names)


def _archive(file: Path) -> Path:
    """Return `file`, an archive that this user may read. Raises ConfigError otherwise."""
    readable_file(_SETTING, file, _FETCH)
    with reading(_SETTING, file, _FETCH), open_regular(file) as raw:
        begin = raw.read(len(_GZIP))
    if begin != _GZIP:
        raise ConfigError(message(_SETTING, file, "a file, but not an archive of CIFAR-10 (tar.gz)", _FETCH))
    return file


def _check_size(file: Path, size: int) -> None:
    """Raise ConfigError if a batch has another size than a published one can have."""
    if file.name in BINARY and size != _FILE_BYTES:
        reason = f"has {size} bytes instead of {_FILE_BYTES}: it is damaged, or not the binary version"
        raise ConfigError(message(_SETTING, file, reason, _FETCH))
    if file.name in PYTHON and not _FILE_BYTES <= size <= _MOST_PICKLE:
        reason = f"has {size} bytes, not {_FILE_BYTES} to {_MOST_PICKLE}: it is damaged"
        raise ConfigError(message(_SETTING, file, reason, _FETCH))


# -- reading the batches ---------------------------------------------------------------------------


def _batch(file: Path) -> tuple[str, np.ndarray]:
    """Return the name of a file's batch without `.bin`, and its records: uint8 [10,000, 3073]."""
    with reading(_SETTING, file, _FETCH):
        content = read_bytes(file, _MOST_PICKLE)
    # The file may have changed since its size was checked.
    _check_size(file, len(content))
    if file.name in PYTHON:
        _check_md5(file, content)
    return _records(file, file.name, content)


def _archived(file: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the batches of an archive as `_batch` does. Raises ConfigError for one that is not published."""
    with reading(_SETTING, file, _FETCH), open_regular(file) as raw:
        md5 = hashlib.file_digest(raw, _md5).hexdigest()
        if md5 not in ARCHIVES:
            published = " and ".join(ARCHIVES)
            reason = f"its MD5 is {md5}, but those of the published archives are {published}"
            raise ConfigError(message(_SETTING, file, reason, _FETCH))
        missing = set(ARCHIVES[md5])
        raw.seek(0)
        with tarfile.open(fileobj=io.BufferedReader(raw), mode="r|gz") as archive:
            for member in archive:
                name = PurePosixPath(member.name).name
                if name not in missing or not member.isfile():
                    continue
                _check_size(file / name, member.size)
                content = archive.extractfile(member)
                assert content is not None, "a regular member has content"
                yield _records(file, name, content.read())
                missing.discard(name)
        if missing:
            raise ConfigError(message(_SETTING, file, f"has no member {min(missing)}", _FETCH))


def _md5() -> Any:
    """Return a new MD5, which finds damage; where MD5 is not allowed for security it is still there."""
    return hashlib.md5(usedforsecurity=False)


def _check_md5(file: Path, content: bytes) -> None:
    """Raise ConfigError if a batch of the Python version is not the published one."""
    digest = _md5()
    digest.update(content)
    if (md5 := digest.hexdigest()) != PYTHON_MD5[file.name]:
        reason = f"its MD5 is {md5}, but that of the published file is {PYTHON_MD5[file.name]}"
        raise ConfigError(message(_SETTING, file, reason, _FETCH))


def _records(file: Path, name: str, content: bytes) -> tuple[str, np.ndarray]:
    """Return the name of a batch without `.bin`, and its records. Raises ConfigError for a wrong label."""
    if name in BINARY:
        records = np.frombuffer(content, dtype=np.uint8).reshape(_RECORDS, _RECORD_BYTES)
    else:
        with reading(_SETTING, file, _FETCH):
            records = unpickled(content)
    if (largest := records[:, 0].max()) >= _CLASSES:
        reason = f"has the label {largest} ({name}), but the labels of CIFAR-10 are 0 to {_CLASSES - 1}"
        raise ConfigError(message(_SETTING, file, reason, _FETCH))
    return name.removesuffix(".bin"), records


# -- the Python version ----------------------------------------------------------------------------


class _Values:
    """What a pickled array says of itself: the type, and the state of a numpy array, which it is not."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments, self.state = arguments, ()

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _latin(text: Any, encoding: Any) -> bytes:
    """Return the bytes of a text, as Python 3 pickles bytes for Python 2."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("it encodes something else than bytes")
    return text.encode("latin1")


#: The only names in a pickle that are followed, each to something that runs nothing of the content's choice.
_FOLLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): _Values,
    ("numpy._core.multiarray", "_reconstruct"): _Values,
    ("numpy", "ndarray"): _Values,
    ("numpy", "dtype"): _Values,
    ("_codecs", "encode"): _latin,
}


class _PlainUnpickler(pickle.Unpickler):
    """Reads pickles of plain values and arrays, without calling anything that the content names."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the object of a name. Raises UnpicklingError for any other than those of an array."""
        if (module, name) not in _FOLLOWED:
            raise pickle.UnpicklingError(f"it names {plain(f'{module}.{name}')[:80]}, which is not allowed")
        return _FOLLOWED[module, name]

    def persistent_load(self, pid: Any) -> Any:
        """Raise UnpicklingError: the batches refer to nothing outside of them."""
        raise pickle.UnpicklingError("it refers to something outside of it")


def unpickled(content: bytes) -> np.ndarray:
    """Return the records (uint8 [10,000, 3073]) of a batch of the Python version.

    Raises UnpicklingError or another error of a damaged pickle if it has another content than a batch.
    """
    batch = _PlainUnpickler(io.BytesIO(content), encoding="bytes").load()
    values, labels = (batch.get(key) for key in (b"data", b"labels")) if isinstance(batch, dict) else (0, 0)
    if not isinstance(labels, list) or len(labels) != _RECORDS:
        raise pickle.UnpicklingError(f"it has no list of {_RECORDS} labels")
    if not all(type(label) is int and 0 <= label < 256 for label in labels):
        raise pickle.UnpicklingError("a label is not an integer from 0 to 255")
    records = np.empty((_RECORDS, _RECORD_BYTES), np.uint8)
    records[:, 0], records[:, 1:] = labels, _pixels(values)
    return records


def _pixels(values: Any) -> np.ndarray:
    """Return the pixels that a pickled array holds: uint8 [10,000, 3072]. Raises UnpicklingError."""
    state = values.state if isinstance(values, _Values) else ()
    if not isinstance(state, tuple) or len(state) != 5:
        raise pickle.UnpicklingError("its data is not an array")
    _, shape, dtype, by_columns, pixels = state
    kind = dtype.arguments[:1] if isinstance(dtype, _Values) else ()
    if kind not in ((b"u1",), ("u1",)) or shape != (_RECORDS, _PIXELS):
        raise pickle.UnpicklingError(f"its data is not an array uint8 [{_RECORDS}, {_PIXELS}]")
    if not isinstance(pixels, bytes) or len(pixels) != _RECORDS * _PIXELS:
        raise pickle.UnpicklingError("the pixels of its array are not whole")
    return np.frombuffer(pixels, np.uint8).reshape(_RECORDS, _PIXELS, order="F" if by_columns else "C")
