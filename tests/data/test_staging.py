# SPDX-License-Identifier: Apache-2.0
"""Copies of packed sets: whole or finished later, hashed, shared by two runs, and stopped at once."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiperf_mpi.config import ConfigError, load
from aiperf_mpi.data import staging
from aiperf_mpi.data.manifest import Manifest, Shard, read_manifest
from aiperf_mpi.data.packed import check_shards
from aiperf_mpi.data.staging import (
    Staging,
    Stopped,
    Work,
    check_room,
    copy_folder,
    needed_shards,
    order_of,
    part_of,
)
from tests.helpers.packed import numbered_set

#: Copy a set and end by SIGKILL as soon as some bytes are written.
KILLED = """
import os, signal, sys
from pathlib import Path
from aiperf_mpi.data.manifest import read_manifest
from aiperf_mpi.data.staging import Staging, Work, copy_folder, needed_shards
source, stage = map(Path, sys.argv[1:])
manifest = read_manifest(source)
shards = tuple(needed_shards(manifest, 70, 30))
work = Work(Staging(source, copy_folder(stage, manifest), manifest, shards), 2)
while not work.copied:
    pass
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return the folder of a set of 70 + 30 pictures in 5 + 2 shards."""
    folder = tmp_path / "source"
    folder.mkdir()
    numbered_set(folder)
    return folder


def planned(source: Path, train: int = 70, val: int = 30) -> Staging:
    """Return the copy of a set into a folder next to it."""
    manifest = read_manifest(source)
    shards = tuple(needed_shards(manifest, train, val))
    return Staging(source, copy_folder(source.parent / "stage", manifest), manifest, shards)


def finish(work: Work) -> Work:
    """Wait for the end of the threads, and conclude."""
    limit = time.monotonic() + 60
    while not work.ended():
        assert time.monotonic() < limit
        time.sleep(0.005)
    work.conclude()
    return work


def stage(source: Path, train: int = 70, val: int = 30) -> tuple[Path, Work]:
    """Make a copy; return its folder, and the work."""
    wanted = planned(source, train, val)
    assert wanted.target is not None
    check_room(wanted)
    return wanted.target, finish(Work(wanted, 3))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_copy_has_the_same_files(source: Path) -> None:
    target, work = stage(source)
    assert content(target) == content(source)
    wanted = load(
        None,
        sets=[
            "data.name=images",
            "data.train_images=70",
            "data.val_images=30",
            "train.batch_per_device=1",
            "hpo.enabled=false",
        ],
    )
    check_shards(wanted, target, read_manifest(target))
    total = sum(shard.bytes for shard in planned(source).shards)
    assert work.copied == work.done == total == planned(source).total


def test_a_copy_that_is_there_is_used(source: Path) -> None:
    target, _ = stage(source)
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in target.iterdir()}
    _, again = stage(source)
    assert (again.copied, again.done) == (0, again.staging.total)
    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in target.iterdir()} == before


def test_only_the_shards_that_the_run_needs_are_copied(source: Path) -> None:
    # 17 training pictures are in two shards of 16, one validation picture is in one.
    target, _ = stage(source, 17, 1)
    assert sorted(content(target)) == ["manifest.json", "train-00000.h5", "train-00001.h5", "val-00000.h5"]
    target, work = stage(source)
    assert content(target) == content(source) and 0 < work.copied < work.done


@pytest.mark.parametrize("damage", ["missing", "short", "other content", "a link that leads nowhere"])
def test_what_is_not_whole_in_a_copy_is_copied_again(damage: str, source: Path) -> None:
    target, _ = stage(source)
    path = target / "train-00001.h5"
    data = bytearray(path.read_bytes())
    path.unlink()
    if damage == "short":
        path.write_bytes(data[:-1])
    elif damage == "other content":
        data[-1] ^= 1
        path.write_bytes(data)
    elif damage == "a link that leads nowhere":
        path.symlink_to("nowhere")
    target, work = stage(source)
    assert content(target) == content(source)
    assert (work.copied, work.done) == (len(data), work.staging.total)


def spoil(path: Path) -> None:
    """Change a byte of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("copies", [True, False])
def test_another_content_of_the_source_is_refused(copies: bool, source: Path) -> None:
    spoil(source / "val-00001.h5")
    wanted = planned(source)
    if not copies:
        wanted = Staging(source, None, wanted.manifest, wanted.shards)
    expected = (
        f"data.path: {source}/val-00001.h5: has another content than the manifest says .*; copy it again"
    )
    with pytest.raises(ConfigError, match=expected):
        finish(Work(wanted, 1))
    if wanted.target is not None:
        # The others are there, and nothing of this one; no manifest says that the copy is whole.
        assert set(content(wanted.target)) == set(content(source)) - {"val-00001.h5", "manifest.json"}


def test_a_source_that_cannot_be_read_is_refused(source: Path) -> None:
    wanted = planned(source)
    (source / "train-00003.h5").unlink()
    with pytest.raises(ConfigError, match="data.path: .*train-00003.h5: does not exist; copy it again"):
        finish(Work(wanted, 2))
    with open(source / "train-00003.h5", "wb") as file:
        file.truncate(10)
    with pytest.raises(ConfigError, match=r"train-00003.h5: has another content than the manifest says"):
        finish(Work(wanted, 2))


def test_the_hashes_of_a_whole_set(source: Path) -> None:
    whole = planned(source)
    work = finish(Work(Staging(source, None, whole.manifest, whole.shards), 2))
    assert (work.copied, work.done) == (0, whole.total)
    assert not (source.parent / "stage").exists()


def test_two_runs_share_the_work(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "_BUSY_SECONDS", 0.001)
    for _ in range(5):
        works = [Work(planned(source), 2) for _ in range(3)]
        for work in works:
            finish(work)
        assert all(work.done == work.staging.total for work in works)
        # Each shard was written by one of them.
        assert sum(work.copied for work in works) == works[0].staging.total
        target = works[0].staging.target
        assert target is not None and content(target) == content(source)
        shutil.rmtree(target)


def test_a_run_that_was_killed_leaves_nothing_that_disturbs(source: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, source, source.parent / "stage"], timeout=60)
    assert done.returncode == -signal.SIGKILL
    target = planned(source).target
    assert target is not None
    (target / ".absent.h5.part").write_bytes(b"of a shard that this run does not need")
    target, work = stage(source)
    assert content(target) == content(source) and work.done == work.staging.total


def test_threads_stop_soon(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # One byte at a time takes minutes.
    monkeypatch.setattr(staging, "_CHUNK", 1)
    work = Work(planned(source), 2)
    while not work.copied:
        time.sleep(0.001)
    begun = time.monotonic()
    work.stop()
    with pytest.raises(Stopped):
        finish(work)
    assert time.monotonic() - begun < 2 and work.done < work.staging.total
    target = work.staging.target
    assert target is not None and not any(name.endswith(".part") for name in content(target))


def test_a_thread_waits_for_the_run_that_copies(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "_BUSY_SECONDS", 0.01)
    wanted = planned(source)
    assert wanted.target is not None
    wanted.target.mkdir(parents=True)
    with staging.claimed(wanted.target / ".train-00002.h5.part") as descriptor:
        assert descriptor is not None
        check_room(wanted)  # removes no file of a run that is under way
        work = Work(wanted, 2)
        time.sleep(0.3)
        assert not work.ended() and not (wanted.target / "train-00002.h5").exists()
    finish(work)
    assert content(wanted.target) == content(source)


# -- room ------------------------------------------------------------------------------------------


def test_a_limit_on_the_size_of_files(source: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(
            ConfigError, match=r"this process may write 50000 into a file \(ulimit -f\); raise"
        ):
            check_room(planned(source))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_folder_that_cannot_be_made(source: Path) -> None:
    (source.parent / "stage").write_text("")
    with pytest.raises(
        ConfigError, match=r"data.stage: .*: a part of the path is a file, not a folder; name a folder of"
    ):
        check_room(planned(source))
    assert (source.parent / "stage").read_text() == ""


def test_a_folder_in_the_place_of_a_shard_is_named(source: Path) -> None:
    staging = planned(source)
    assert staging.target is not None
    (staging.target / "train-00000.h5").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"/train-00000\.h5: is a folder, not a file") as error:
        stage(source)
    assert ".part" not in str(error.value)


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="a file system in memory is needed")
def test_a_folder_in_memory_counts_as_memory(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = planned(source)
    memory = Path("/dev/shm") / f"aiperf_mpi-test-{os.getpid()}"
    wanted = Staging(source, memory / "copy", wanted.manifest, wanted.shards)
    check_room(wanted)
    monkeypatch.setattr(staging, "available_bytes", lambda: 1000)
    with pytest.raises(ConfigError, match=r"the folder is in memory, and the copy needs .* 1000 .* are free"):
        check_room(wanted)
    assert not memory.exists()


def test_room_is_checked_for_what_lacks(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        f_flag, f_blocks, f_bavail, f_frsize = 0, 1000, 0, 4096

    stage(source)
    monkeypatch.setattr(staging.os, "statvfs", lambda place: Full)
    check_room(planned(source))  # nothing lacks
    path = source.parent / "stage" / planned(source).manifest.sha256[:16] / "val-00000.h5"
    size = path.stat().st_size
    path.unlink()
    with pytest.raises(ConfigError, match=rf"the copy needs {size + (1 << 20)} bytes .* but 0 .* are free"):
        check_room(planned(source))


# -- which shards ----------------------------------------------------------------------------------


def some_shards(count: int) -> list[Shard]:
    return [Shard(f"{number}.h5", 1, 1, "0" * 64) for number in range(count)]


@settings(deadline=None)
@given(st.integers(1, 400), st.integers(1, 600))
def test_each_node_copies_all_and_begins_elsewhere(count: int, nodes: int) -> None:
    shards = some_shards(count)
    orders = [order_of(shards, node, nodes) for node in range(nodes)]
    assert all(sorted(order, key=shards.index) == shards for order in orders[:5])
    # No shard is read first by more nodes than an even spread asks for.
    firsts = [order[0].file for order in orders]
    assert max(firsts.count(name) for name in set(firsts)) == -(-nodes // count)


@given(st.integers(1, 400), st.integers(1, 600))
def test_each_shard_is_checked_by_one_node(count: int, nodes: int) -> None:
    shards = some_shards(count)
    checked = [shard.file for node in range(nodes) for shard in part_of(shards, node, nodes)]
    assert sorted(checked) == sorted(shard.file for shard in shards)


def test_the_name_of_a_copy_follows_from_the_content(source: Path) -> None:
    manifest: Manifest = read_manifest(source)
    assert copy_folder("/x", manifest) == Path("/x") / manifest.sha256[:16]
