# SPDX-License-Identifier: Apache-2.0
"""The output folder of a run that has ended: result.json next to result.h5, and a manifest of SHA-256 hashes.

`result.json` is the judge's verdict, byte for byte as `verify --json` prints it. `sha256sum -c` reads the
manifest.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import re
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any

from aiperf_mpi import hdf5
from aiperf_mpi.config.classes import RULES, OfficialRules
from aiperf_mpi.files import FileError, credible_size, open_regular, read_text
from aiperf_mpi.planning.folder import CHECKPOINTS
from aiperf_mpi.printable import named, plain
from aiperf_mpi.results.file.resultfile import Result
from aiperf_mpi.results.judge import judge
from aiperf_mpi.results.report.verdict import verdict_json

#: Names of the files in the output folder.
JOURNAL, PARTIAL, RESULT = "journal.jsonl", "result.partial.h5", "result.h5"
SUMMARY, MANIFEST = "result.json", "manifest.sha256"

_LINE = re.compile("([0-9a-f]{64})  (.+)")

#: Most bytes of a manifest or a summary, and most files that a manifest names; a run's has four.
MOST_TEXT, MOST_FILES = 8 << 20, 1000


def summary_schema() -> dict[str, Any]:
    """Return the JSON Schema of result.json (draft 2020-12)."""
    schema = resources.files("aiperf_mpi.results.output").joinpath("result.schema.json")
    return json.loads(schema.read_text(encoding="utf-8"))


def describe(folder: Path, rules: OfficialRules = RULES) -> None:
    """Judge the folder's result.h5 and write result.json and the manifest. Raises OSError, NotAResult."""
    result, verdict = judge.judge_file(folder / RESULT, own=True, rules=rules)
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
    """Return the SHA-256 of a file in hexadecimal digits.

    Raises FileError unless it is a regular file that is not mostly holes.
    """
    with open_regular(path) as file:
        credible_size(path, file)
        return hashlib.file_digest(io.BufferedReader(file), "sha256").hexdigest()


def manifest_text(hashes: Mapping[str, str]) -> str:
    """Return the manifest of the hashes by file name, in the format of sha256sum and ordered by name."""
    return "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes))


def read_manifest(path: Path) -> dict[str, str]:
    """Return the hashes by file name.

    Raises FileError if the file cannot be read, ValueError for a malformed line, a name outside the folder, a
    repeated name, or too many of them.
    """
    hashes: dict[str, str] = {}
    lines = read_text(path, MOST_TEXT).splitlines()
    if len(lines) > MOST_FILES:
        raise ValueError(f"{named(path)}: it has {len(lines)} lines, and a manifest at most {MOST_FILES}")
    for number, line in enumerate(lines, start=1):
        match = _LINE.fullmatch(line)
        place = PurePosixPath(match[2]) if match else PurePosixPath("/")
        if not match or place.is_absolute() or ".." in place.parts or str(place) != match[2]:
            text = plain(repr(line[:60]))
            raise ValueError(f"{named(path)}: line {number} is not a line of a manifest: {text}")
        if match[2] in hashes:
            raise ValueError(f"{named(path)}: line {number} names {named(match[2])} again")
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
        try:
            if sha256(folder / name) != expected:
                faults.append(
                    f"{named(name)} differs from the manifest: it was changed after the end of the run"
                )
        except FileError as error:
            missing = error.errno in (errno.ENOENT, errno.ENOTDIR)
            faults.append(f"{named(name)} is missing" if missing else f"{named(name)}: {error.reason}")
    return faults
