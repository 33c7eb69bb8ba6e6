# SPDX-License-Identifier: Apache-2.0
"""The output folder of a run that has ended: result.json beside result.h5, and a manifest of SHA-256 hashes.

`result.json` is what `verify --json` prints, byte for byte: the judge's verdict and nothing else. `sha256sum
-c` reads the manifest.
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
    """The JSON Schema of result.json (draft 2020-12)."""
    schema = resources.files("aiperf_mpi.results.output").joinpath("result.schema.json")
    return json.loads(schema.read_text(encoding="utf-8"))


def describe(folder: Path) -> None:
    """Judge the folder's result.h5 and write result.json and the manifest. Raises OSError, NotAResult."""
    result, verdict = judge.judge_file(folder / RESULT)
    hdf5.write(folder / SUMMARY, f"{verdict_json(verdict)}\n".encode())
    names = [name for name in (RESULT, SUMMARY, JOURNAL) if (folder / name).is_file()]
    if (checkpoint := best_checkpoint(folder, result)) is not None:
        names.append(checkpoint)
    hashes = {name: sha256(folder / name) for name in names}
    hdf5.write(folder / MANIFEST, manifest_text(hashes).encode())


def best_checkpoint(folder: Path, result: Result) -> str | None:
    """Name in the folder of the checkpoint of the best model, the one that was loaded again; None without
    one.

    Other replicas keep weights as well; at ten thousand of them hashing all would take an hour, and none
    bears on V03.
    """
    for attribute in ("error_final_trial", "best_trial"):
        name = f"{CHECKPOINTS}/{result.attributes.get(attribute, -1)}.h5"
        if (folder / name).is_file():
            return name
    return None


# -- the manifest ----------------------------------------------------------------------------------


def sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def manifest_text(hashes: Mapping[str, str]) -> str:
    """The manifest of files by their name in the folder, in the form of sha256sum, ordered by name."""
    return "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes))


def read_manifest(path: Path) -> dict[str, str]:
    """Hashes by name. Raises OSError, and ValueError for a line that is none or names a file outside of the
    folder."""
    hashes: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        match = _LINE.fullmatch(line)
        if not match or PurePosixPath(match[2]).is_absolute() or ".." in PurePosixPath(match[2]).parts:
            raise ValueError(f"{path}: line {number} is no line of a manifest: {line[:60]!r}")
        if match[2] in hashes:
            raise ValueError(f"{path}: line {number} names {match[2]} again")
        hashes[match[2]] = match[1]
    return hashes


def check_manifest(folder: Path, needed: Iterable[str] = (RESULT, SUMMARY)) -> list[str]:
    """What is wrong with the folder by its manifest, one line each; `needed` files must stand in it."""
    try:
        hashes = read_manifest(folder / MANIFEST)
    except (OSError, ValueError) as error:
        return [f"the manifest cannot be read: {error}"]
    wrong = [f"{MANIFEST} does not name {name}" for name in needed if name not in hashes]
    for name, expected in hashes.items():
        if not (folder / name).is_file():
            wrong.append(f"{name} is missing")
        elif sha256(folder / name) != expected:
            wrong.append(f"{name} is not what the manifest says: it was changed behind the end of the run")
    return wrong
