# SPDX-License-Identifier: Apache-2.0
"""The output folder of a run that has ended: result.json next to result.h5, and a manifest of SHA-256 hashes.

`result.json` is the judge's verdict, byte for byte as `verify --json` prints it. `sha256sum -c` reads the
manifest.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any

from aiperf_mpi import hdf5
from aiperf_mpi.results.file.resultfile import Result
from aiperf_mpi.results.judge import judge
from aiperf_mpi.results.report.verdict import verdict_json

#: Names of the files in the output folder.
JOURNAL, PARTIAL, RESULT = "journal.jsonl", "result.partial.h5", "result.h5"
SUMMARY, MANIFEST, CHECKPOINTS = "result.json", "manifest.sha256", "checkpoints"

_LINE = re.compile("([0-9a-f]{64})  (.+)")


def summary_schema() -> dict[str, Any]:
    """Return the JSON Schema of result.json (draft 2020-12)."""
    schema = resources.files("aiperf_mpi.results.output").joinpath("result.schema.json")
    return json.loads(schema.read_text(encoding="utf-8"))


def describe(folder: Path) -> None:
    """Judge the folder's result.h5 and write result.json and the manifest. Raises OSError, NotAResult."""
    result, verdict = judge.judge_file(folder / RESULT, own=True)
    hdf5.write(folder / SUMMARY, f"{verdict_json(verdict)}\n".encode())
    names = [name for name in (RESULT, SUMMARY, JOURNAL) if (folder / name).is_file()]
    if (checkpoint := best_checkpoint(folder, result)) is not None:
        names.append(checkpoint)
    hashes = {name: sha256(folder / name) for name in names}
    hdf5.write(folder / MANIFEST, manifest_text(hashes).encode())


def best_checkpoint(folder: Path, result: Result) -> str | None:
    """Return the name, within the folder, of the best model's checkpoint (the one loaded again), or None.

    Only this checkpoint is hashed. Other replicas keep theirs as well, but V03 does not use them, and hashing
    those of ten thousand replicas would take an hour.
    """
    for attribute in ("error_final_trial", "best_trial"):
        name = f"{CHECKPOINTS}/{result.attributes.get(attribute, -1)}.h5"
        if (folder / name).is_file():
            return name
    return None


# -- the manifest ----------------------------------------------------------------------------------


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def manifest_text(hashes: Mapping[str, str]) -> str:
    """Return the manifest of the hashes by file name, in the format of sha256sum and ordered by name."""
    return "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes))


def read_manifest(path: Path) -> dict[str, str]:
    """Return the hashes by file name.

    Raises OSError if the file cannot be read, ValueError for a malformed line, a name outside the folder or a
    repeated name.
    """
    hashes: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        match = _LINE.fullmatch(line)
        if not match or PurePosixPath(match[2]).is_absolute() or ".." in PurePosixPath(match[2]).parts:
            raise ValueError(f"{path}: line {number} is not a line of a manifest: {line[:60]!r}")
        if match[2] in hashes:
            raise ValueError(f"{path}: line {number} names {match[2]} again")
        hashes[match[2]] = match[1]
    return hashes


def check_manifest(folder: Path, needed: Iterable[str] = (RESULT, SUMMARY)) -> list[str]:
    """Return the faults of a folder by its manifest, one line each; it must name `needed` files."""
    try:
        hashes = read_manifest(folder / MANIFEST)
    except (OSError, ValueError) as error:
        return [f"the manifest cannot be read: {error}"]
    faults = [f"{MANIFEST} does not name {name}" for name in needed if name not in hashes]
    for name, expected in hashes.items():
        if not (folder / name).is_file():
            faults.append(f"{name} is missing")
        elif sha256(folder / name) != expected:
            faults.append(f"{name} differs from the manifest: it was changed after the end of the run")
    return faults
