# SPDX-License-Identifier: Apache-2.0
"""Pack runs for a ranking: result, verdict, configuration, best checkpoint, logs and a manifest.

Command: `python -m aiperf_mpi.results.output.submit FOLDER [FOLDER FOLDER]`, or `bin/aiperf-submit`. The runs
are judged again, and an invalid run is refused. The same files give the same bytes.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import os
import sys
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from aiperf_mpi import hdf5
from aiperf_mpi.config import ConfigError
from aiperf_mpi.config.classes import RULES, OfficialRules
from aiperf_mpi.config.paths import expanded, replaced
from aiperf_mpi.descriptors import OutputLost, guard, tell
from aiperf_mpi.exits import EXIT_BROKEN_PIPE, EXIT_INVALID, EXIT_USAGE, EXIT_VALID
from aiperf_mpi.files import FileError, lack, open_regular, read_text
from aiperf_mpi.opcount.rates import rate_text
from aiperf_mpi.printable import named, plain
from aiperf_mpi.results.evidence.evidence import Evidence
from aiperf_mpi.results.file.resultfile import Result
from aiperf_mpi.results.judge import judge, rules
from aiperf_mpi.results.judge.judge import NotAResult, Verdict
from aiperf_mpi.results.output import package
from aiperf_mpi.results.output.copies import copied
from aiperf_mpi.results.report.compare import repeats
from aiperf_mpi.results.report.verdict import rate_pairs, reason_lines, verdict_json

#: Endings of the logs in a run's folder, and the name of the configuration, which comes from the result.
LOGS, CONFIG = (".log", ".out", ".err"), "config.toml"


class Refused(ValueError):
    """A run cannot be submitted; the message says why, in one or more lines."""


def packed(folders: Sequence[Path], target: Path, official: OfficialRules = RULES) -> str:
    """Write the archive of one run, or of all runs of an official submission, to `target`.

    Return a description of the packed runs; they are judged by the rules `official`. Raises Refused for a run
    that is invalid, lacks its checkpoint or does not fit its manifest. Raises it also for runs that do not
    form a submission. Raises NotAResult or OSError for a folder that cannot be read, and OSError for a target
    that cannot be written.
    """
    read = [_accepted(folder, official) for folder in folders]
    results = [result for result, _ in read]
    weights = [_weights(folder, result) for folder, result in zip(folders, results, strict=True)]
    description = _together([verdict for _, verdict in read], results, weights)
    members: dict[str, Path | bytes] = {}
    for folder, (result, _) in zip(folders, read, strict=True):
        prefix = str(result.attributes["run_id"])
        if any(name.startswith(f"{prefix}/") for name in members):
            raise Refused(f"{named(folder)}: run {prefix} is given twice")
        members |= {f"{prefix}/{name}": content for name, content in _members(folder, result).items()}
    hashes = {name: _sha256(content) for name, content in members.items()}
    members[package.MANIFEST] = package.manifest_text(hashes).encode()
    _write(target, members)
    return description


def _accepted(folder: Path, official: OfficialRules) -> tuple[Result, Verdict]:
    """Return the result of a folder and its verdict. Raises Refused if it may not be packed."""
    result, verdict = judge.judge_file(folder / package.RESULT, rules=official)
    if not verdict.valid:
        raise Refused("\n".join([f"{named(folder)}: the result is INVALID", *reason_lines(verdict)]))
    if faults := package.check_manifest(folder):
        raise Refused("\n".join(f"{named(folder)}: {line}" for line in faults))
    if _facts(read_text(folder / package.SUMMARY, package.MOST_TEXT)) != _facts(verdict_json(verdict)):
        raise Refused(f"{named(folder)}: {package.SUMMARY} is not the verdict on {package.RESULT}")
    checkpoint = package.best_checkpoint(folder, result)
    if checkpoint is None and verdict.best_trial >= 0:
        raise Refused(
            f"{named(folder)}: the checkpoint of the best model, trial {verdict.best_trial}, is missing"
        )
    if checkpoint is not None and checkpoint not in package.read_manifest(folder / package.MANIFEST):
        raise Refused(f"{named(folder)}: {package.MANIFEST} does not name {checkpoint}")
    return result, verdict


def _facts(summary: str) -> Any:
    """Return a summary without the words of its checks, which another version may word in another way.

    None for a text that is not a summary.
    """
    try:
        data = json.loads(summary)
        checks = [[check[key] for key in ("id", "severity", "passed")] for check in data["findings"]]
        return data | {"findings": checks}
    except (RecursionError, ValueError, KeyError, TypeError):
        return None


def _together(verdicts: Sequence[Verdict], results: Sequence[Result], weights: Sequence[str] = ()) -> str:
    """Return a description of the runs together. Raises Refused if they do not form a submission.

    `weights` are the SHA-256 of the best checkpoints, if known.
    """
    if len(verdicts) == 1:
        verdict = verdicts[0]
        rate = next(f"{key}: {value}" for key, value in rate_pairs(verdict))
        return f"one {verdict.cls} run, {verdict.division}, {rate}"
    if len(verdicts) != rules.REPETITIONS:
        count = f"an official submission has {rules.REPETITIONS} runs, not {len(verdicts)}"
        raise Refused(f"{count}; a single run may be packed alone")
    if any(verdict.cls != "official" for verdict in verdicts):
        raise Refused("an official submission has official runs only; pack trial runs one by one")
    seeds = sorted(int(result.attributes["seed"]) for result in results)
    if seeds != sorted(rules.SEEDS):
        raise Refused(f"the seeds are {seeds}, but an official submission has {sorted(rules.SEEDS)}")
    for name in ("ranks", "nodes", "replicas", "devices", "division"):
        if len({getattr(verdict, name) for verdict in verdicts}) > 1:
            raise Refused(f"the runs differ in {name}: they must be repetitions of one run")
    if len({result.attributes["dataset_sha256"] for result in results}) > 1:
        raise Refused("the runs differ in the content of their data set: it must be the same in all three")
    if len({_commit(result) for result in results}) > 1:
        raise Refused("the runs differ in the commit of the program: they must be repetitions of one run")
    if len({repeats(Evidence(result)) for result in results}) > 1:
        raise Refused(
            "the runs differ in configuration, program or machine: they must be repetitions of one run"
        )
    if problem := copied(results, weights):
        raise Refused(problem)
    score = rules.submission_score([verdict.score_ops for verdict in verdicts])
    return f"an official submission, {verdicts[0].division}, median score_ops: {rate_text(score)}"


def _commit(result: Result) -> str:
    """Return the commit of the program of an official run, which V19 has checked."""
    return str(json.loads(result.documents["system/inventory_json"])["source"]["commit"])


def _weights(folder: Path, result: Result) -> str:
    """Return the SHA-256 of a run's best checkpoint by its manifest, "" without one."""
    checkpoint = package.best_checkpoint(folder, result)
    return package.read_manifest(folder / package.MANIFEST).get(checkpoint, "") if checkpoint else ""


def _members(folder: Path, result: Result) -> dict[str, Path | bytes]:
    """Return the members of the archive for one run by name: the path of a file, or bytes."""
    names = [package.RESULT, package.SUMMARY]
    names += sorted(path.name for path in folder.iterdir() if path.name.endswith(LOGS) and path.is_file())
    if (checkpoint := package.best_checkpoint(folder, result)) is not None:
        names.append(checkpoint)
    members: dict[str, Path | bytes] = {name: folder / name for name in names}
    return members | {CONFIG: result.documents["config/resolved_toml"].encode()}


def _sha256(content: Path | bytes) -> str:
    """Return the SHA-256 of a file or of bytes in hexadecimal digits."""
    if isinstance(content, Path):
        return package.sha256(content)
    return hashlib.sha256(content).hexdigest()


def _write(target: Path, members: Mapping[str, Path | bytes]) -> None:
    """Write the archive, whole or not at all, with ordered names and without times and owners."""
    with hdf5.temporary_file(target) as (descriptor, temporary):
        with (
            open(descriptor, "wb", closefd=False) as raw,
            gzip.GzipFile("", "wb", 6, raw, mtime=0) as zipped,
            tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as archive,
        ):
            for name in sorted(members):
                content, entry = members[name], tarfile.TarInfo(name)
                entry.mode, entry.mtime = 0o644, 0
                source = open_regular(content) if isinstance(content, Path) else io.BytesIO(content)
                with source:
                    entry.size = source.seek(0, os.SEEK_END)
                    source.seek(0)
                    archive.addfile(entry, source)
        os.link(temporary, target)


class Parser(argparse.ArgumentParser):
    """Reports an error in the command line in one line."""

    def error(self, message: str) -> NoReturn:
        """Print the message and exit with code 2."""
        _say(f"{message}; see {self.prog} --help")
        sys.exit(EXIT_USAGE)

    def _print_message(self, message: str, file: Any = None) -> None:
        # argparse ignores that a help text cannot be written.
        if message:
            print(message, end="", file=file or sys.stderr, flush=True)


def _say(*lines: str) -> None:
    """Print lines on standard error, each after the name of the program."""
    for line in lines:
        tell(f"aiperf-submit: {line}")


def main(argv: Sequence[str] | None = None, official: OfficialRules = RULES) -> int:
    """Pack the runs of the command line; return 0 if packed, 2 for unusable input, 3 if refused.

    The benchmark has one set of rules; a program of tests passes others.
    """
    try:
        return submit(argv, official)
    except OutputLost as error:
        if not error.closed_pipe:
            _say(str(error))
        return EXIT_BROKEN_PIPE if error.closed_pipe else EXIT_USAGE
    except (MemoryError, ImportError, RuntimeError) as error:
        if not (text := lack(error)):
            raise
        _say(text)
        return EXIT_USAGE


def submit(argv: Sequence[str] | None, official: OfficialRules) -> int:
    """Pack the runs of the command line; return the exit code. Raises OutputLost."""
    parser = Parser(prog="aiperf-submit", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "folders",
        nargs="+",
        metavar="FOLDER",
        help=f"output folder of a run; {rules.REPETITIONS} of them for an official submission",
    )
    parser.add_argument("--output", required=True, metavar="FILE.tar.gz", help="new archive")
    arguments = parser.parse_args(argv)
    output = Path(arguments.output)
    try:
        folders = [Path(replaced("FOLDER", name)) for name in arguments.folders]
        output = expanded("--output", arguments.output, stored=False)
        if os.path.lexists(output):
            raise FileExistsError(17, "exists already; choose another --output", str(output))
        description = packed(folders, output, official)
    except Refused as error:
        _say(*str(error).splitlines())
        return EXIT_INVALID
    except (ConfigError, FileError, NotAResult) as error:
        _say(str(error))
        return EXIT_USAGE
    except OSError as error:
        _say(f"{named(error.filename or output)}: {error.strerror or error}")
        return EXIT_USAGE
    except ValueError as error:
        _say(f"{named(output)}: {error}")
        return EXIT_USAGE
    print(f"aiperf-submit: wrote {named(output)}: {plain(description)}", flush=True)
    return EXIT_VALID


if __name__ == "__main__":
    guard()
    sys.exit(main())
