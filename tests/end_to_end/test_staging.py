# SPDX-License-Identifier: Apache-2.0
"""Packed pictures before the core time: copied to each node or checked there, and each fault in one line."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import h5py
import pytest

from aiperf_mpi.data.manifest import FILE, VERSION, read_manifest
from aiperf_mpi.data.staging import claimed, copy_folder
from tests.helpers import launch
from tests.helpers.end_to_end import runs, starts
from tests.helpers.namespaces import with_mounts
from tests.helpers.packed import numbered_set, rewrite

pytestmark = pytest.mark.mpi

#: A run on packed pictures of 32 x 32 pixels: rank 0, and two trainers that are nodes of their own.
SETS = ("data.name='images'", "data.channels=3", "train.batch_per_device=16", "hpo.batches=[16]")
NODES = ("--ranks-per-node", "1")
RANKS = 3

#: The line at the end of a step that was done.
SUMMARY = re.compile(r"aiperf_mpi: (staging|hashes of the pictures): [0-9.]+ MB on 2 nodes in [0-9.]+ s")

#: The host's name, as messages have it.
HOST = os.uname().nodename


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return the folder of a set of 70 + 30 pictures in 5 + 2 shards."""
    folder = tmp_path / "source"
    folder.mkdir()
    numbered_set(folder)
    (tmp_path / "out").mkdir()
    return folder


def words(source: Path, *more: str) -> list[str]:
    """Return the arguments of a run after the program."""
    folder = source.parent / "out" / "run"
    return runs.arguments(folder, (*SETS, f"data.path='{source}'"), *NODES, *more, seconds=600)[2:]


def start(
    source: Path,
    program: Sequence[str | Path],
    *more: str,
    mpi: str = "mpich",
    mounts: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
) -> subprocess.Popen[str]:
    """Start a job after the shell's `mounts`, which only its last rank sees."""
    variables = runs.QUICK_COMPILER | {"FAULT_FOLDER": str(source.parent)} | dict(env or {})
    command = [launch.python(mpi), *program, *words(source, *more)]
    last = with_mounts(mounts, command) if mounts else command
    job = [launch.launcher(mpi), "-n", str(RANKS - 1), *command, ":", "-n", "1", *last]
    return subprocess.Popen(
        [str(word) for word in job],
        env=launch.variables(mpi, variables),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def reach(source: Path, *more: str, mpi: str = "mpich") -> str:
    """Run to the core time, where the job ends; return standard error."""
    done = launch.finish(start(source, [starts.FAULTY], *more, mpi=mpi), 170)
    assert "REACHED" in done.stderr and done.returncode in (starts.REACHED, 1), done.stderr
    return done.stderr


def refused(source: Path, *more: str, mpi: str = "mpich", mounts: Sequence[str] = ()) -> str:
    """Run, and return the line by which it is refused: exit code 2, and no output folder.

    What comes after the staging may have the line that tells its seconds before it.
    """
    done = launch.finish(start(source, ["-m", "aiperf_mpi"], *more, mpi=mpi, mounts=mounts), 170)
    ours = [line for line in done.stderr.splitlines() if line.startswith("aiperf_mpi: ")]
    ours = [line for line in ours if not SUMMARY.fullmatch(line)]
    assert done.returncode == 2 and len(ours) == 1 and not done.stdout, done.stdout + done.stderr
    assert "Traceback" not in done.stderr and not os.listdir(source.parent / "out"), done.stderr
    return ours[0]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def copy_of(source: Path) -> Path:
    """Return the folder of the copy that a run makes with `--stage` next to the source."""
    return copy_folder(source.parent / "stage", read_manifest(source))


# -- what works ------------------------------------------------------------------------------------


def test_nodes_copy_use_and_finish_a_copy(mpi: str, source: Path) -> None:
    """The first run copies, the second uses the copy, the third copies a shard that is lacking."""
    stage, copy = str(source.parent / "stage"), copy_of(source)
    said = reach(source, "--stage", stage, mpi=mpi)
    assert "aiperf_mpi: staging: " in said and " on 2 nodes in " in said
    assert content(copy) == content(source)
    if mpi == "openmpi":
        return
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in copy.iterdir()}
    lacking = copy / "train-00003.h5"
    lacking.unlink()
    reach(source, "--stage", stage)
    after = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in copy.iterdir()}
    assert {path for path in before if before[path] != after[path]} == {lacking}
    assert content(copy) == content(source)


@pytest.mark.full
def test_the_nodes_share_the_check_of_the_hashes(source: Path) -> None:
    said = reach(source)
    total = read_manifest(source).bytes
    # Both nodes together have read each shard once.
    assert f"aiperf_mpi: hashes of the pictures: {total / 1e6:.2f} MB on 2 nodes in " in said
    assert "hashes of the pictures" not in reach(source, "--set", "data.check_hashes=false")


# -- what is refused -------------------------------------------------------------------------------


def spoil(path: Path) -> None:
    """Change a byte of a shard."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def missing(source: Path) -> None:
    (source / "train-00001.h5").unlink()


def short(source: Path) -> None:
    path = source / "train-00001.h5"
    os.truncate(path, path.stat().st_size - 1)


def wrong_hash(source: Path) -> None:
    spoil(source / "train-00001.h5")


def changed(source: Path, change: Callable[[h5py.File], None]) -> None:
    """Change a shard, and its hash and size in the manifest, as a wrong packer would."""
    path = source / "train-00001.h5"
    with h5py.File(path, "r+") as file:
        change(file)
    manifest = read_manifest(source)
    shards = tuple(
        replace(shard, sha256=hashlib.sha256(path.read_bytes()).hexdigest(), bytes=path.stat().st_size)
        if shard.file == path.name
        else shard
        for shard in manifest.splits["train"]
    )
    rewrite(source, manifest, splits={**manifest.splits, "train": shards})


def label(source: Path) -> None:
    changed(source, lambda file: file["labels"].write_direct(file["labels"][...] + 1000))


def side(source: Path) -> None:
    changed(source, lambda file: file.attrs.__setitem__("side", 64))


def newer(source: Path) -> None:
    text = (source / FILE).read_text()
    (source / FILE).write_text(text.replace(f'"version": {VERSION}', f'"version": {VERSION + 1}', 1))


#: How a set is spoiled, the options of the run, and a part of the line; HERE is a rank and its host.
FAULTS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "wrong hash": (wrong_hash, "", "HERE: data.path: {}/train-00001.h5: has another content than the manif"),
    "wrong hash, staged": (wrong_hash, "--stage", "{}/train-00001.h5: has another content than the manif"),
    "missing shard": (missing, "--stage", "data.path: {}/train-00001.h5: does not exist"),
    "short file": (short, "", "data.path: {}/train-00001.h5: has 55887 bytes, but the manifest says 55888"),
    "label out of range": (label, "", "train-00001.h5: picture 0 has the label 1016, but the labels are 0"),
    "wrong side": (side, "", "data.path: {}/train-00001.h5: has side 64, but the manifest says 32"),
    "newer manifest": (newer, "", "manifest.json: has version 2, but this program reads versions up to 1"),
}

#: Those of every run of the tests; the others with --full.
SAMPLE = ("wrong hash", "missing shard", "no space")


@pytest.mark.parametrize(
    "fault", [name if name in SAMPLE else pytest.param(name, marks=pytest.mark.full) for name in FAULTS]
)
def test_a_damaged_set(fault: str, source: Path) -> None:
    spoiled, option, part = FAULTS[fault]
    spoiled(source)
    said = refused(source, *([option, str(source.parent / "stage")] if option else []))
    # The nodes share the hashes: the second has the second shard.
    part = part.replace("HERE", f"rank 2 on host {HOST}")
    assert part.format(source) in said and f"on host {HOST}" in said


#: What the last rank's node has in place of folders, options of the run, and a part of the line.
ELSEWHERE: dict[str, tuple[str, str, str]] = {
    "no source": ("mount -t tmpfs tmpfs {source}", "", "data.path: {source}/manifest.json: does not exist"),
    "another source": (
        "mount --bind {spoiled} {source}\nmount -t tmpfs tmpfs {stage}",
        "--stage",
        "data.path: {source}/train-00002.h5: has another content than the manifest says",
    ),
    "no space": (
        "mount -t tmpfs -o size=200k tmpfs {stage}",
        "--stage",
        "data.stage: {stage}/{copy}: the copy needs ",
    ),
    "read-only": (
        "mount -t tmpfs -o ro tmpfs {stage}",
        "--stage",
        "data.stage: {stage}/{copy}: the file system is read-only; name a folder of each node",
    ),
}


@pytest.mark.parametrize(
    "fault", [name if name in SAMPLE else pytest.param(name, marks=pytest.mark.full) for name in ELSEWHERE]
)
def test_a_fault_on_one_node(fault: str, source: Path) -> None:
    mount, option, part = ELSEWHERE[fault]
    stage, spoiled = source.parent / "stage", source.parent / "spoiled"
    stage.mkdir()
    shutil.copytree(source, spoiled)
    spoil(spoiled / "train-00002.h5")
    names = {"source": source, "stage": stage, "spoiled": spoiled, "copy": copy_of(source).name}
    said = refused(source, *([option, str(stage)] if option else []), mounts=[mount.format(**names)])
    assert f"aiperf_mpi: rank 2 on host {HOST}: {part.format(**names)}" in said
    if fault == "no space":
        # What is free is less than the size of the file system, 200 KiB.
        need, free = read_manifest(source).bytes + (1 << 20), int(said.split(", but ")[1].split()[0])
        assert f"needs {need} bytes" in said and 0 < free <= 200 << 10
        assert not list(stage.iterdir()), "the other node has begun before all had looked"


# -- ends ------------------------------------------------------------------------------------------


@pytest.mark.full
def test_signals_and_a_killed_job_and_its_next_run(source: Path) -> None:
    """A staging waits for a shard that another run copies; TERM and KILL end it, and the next finishes."""
    stage, copy = source.parent / "stage", copy_of(source)
    copy.mkdir(parents=True)
    for number in (signal.SIGTERM, signal.SIGKILL):
        with claimed(copy / ".train-00003.h5.part") as descriptor:
            assert descriptor is not None
            job = start(source, ["-m", "aiperf_mpi"], "--stage", str(stage))
            limit = time.monotonic() + 120
            while len(list(copy.glob("*.h5"))) < 6 and job.poll() is None and time.monotonic() < limit:
                time.sleep(0.1)
            assert len(list(copy.glob("*.h5"))) == 6 and job.poll() is None
            sent, running = time.monotonic(), launch.processes(job)
            if number == signal.SIGTERM:
                job.send_signal(number)
            else:
                launch.kill(job)
            done = launch.finish(job, 60)
            # A rank that outlived the launcher would copy the shard when this lock is released.
            launch.wait_for_end(running)
            assert time.monotonic() - sent < 10, done.stderr
        if number == signal.SIGTERM:
            assert "SIGTERM before the core time, in the step 'staging'" in done.stderr
            assert done.returncode == 5 and not os.listdir(source.parent / "out"), done.stderr
            for path in copy.glob("*.h5"):
                path.unlink()
    reach(source, "--stage", str(stage), "--output", str(source.parent / "out" / "other"))
    assert content(copy) == content(source)


def test_a_staging_without_progress_ends(source: Path) -> None:
    """Another run holds a shard for ever, as one that is stopped: the job names the ranks that wait."""
    stage, copy = source.parent / "stage", copy_of(source)
    copy.mkdir(parents=True)
    with claimed(copy / ".val-00001.h5.part") as descriptor:
        assert descriptor is not None
        job = start(
            source,
            ["-m", "aiperf_mpi"],
            "--view",
            "live",
            "--stage",
            str(stage),
            env={"AIPERF_MPI_DATA_SECONDS": "5"},
        )
        done = launch.finish(job, 120)
    assert done.returncode == 5 and not os.listdir(source.parent / "out"), done.stderr
    wait = (
        f"the step 'staging' has made no progress for 5 s on rank 1 on {HOST}, rank 2 on {HOST}; look at its"
    )
    assert wait in done.stderr, done.stderr
    # The live view has shown a bar with the bytes of both nodes, without those of the shard that lacks.
    total, last = read_manifest(source).bytes, (source / "val-00001.h5").stat().st_size
    assert f"{2 * (total - last) / 1e6:.2f} of {2 * total / 1e6:.2f} MB" in done.stderr, done.stderr


def test_a_fault_ends_the_nodes_that_are_at_work(source: Path) -> None:
    """Each node waits for a shard that another run copies when a node finds a wrong one."""
    stage, copy = source.parent / "stage", copy_of(source)
    copy.mkdir(parents=True)
    spoil(source / "train-00003.h5")
    with claimed(copy / ".train-00000.h5.part") as descriptor:
        assert descriptor is not None
        said = refused(source, "--stage", str(stage))
    assert f"data.path: {source}/train-00003.h5: has another content than the manifest says" in said
    assert [path.name for path in copy.glob(".*")] == [".train-00000.h5.part"]
