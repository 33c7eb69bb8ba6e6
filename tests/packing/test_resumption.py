# SPDX-License-Identifier: Apache-2.0
"""The same bytes, whatever happens: threads, parts, ends in the middle, damage."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from aiperf_mpi.data.manifest import ENCODINGS, RAW
from aiperf_mpi.packing import job, work
from aiperf_mpi.packing.folder import Record
from aiperf_mpi.packing.plan import Task
from aiperf_mpi.packing.shard import Layout, ShardWriter
from aiperf_mpi.packing.work import Progress
from tests.helpers import pictures as photos
from tests.helpers import sources
from tests.helpers.launch import ROOT
from tests.helpers.packing import SIDE, content, pack, pack_part, quiet, request


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_threads_and_parts_change_no_byte(few: Path, tmp_path: Path, encoding: str) -> None:
    pack(request(few, tmp_path / "one", encoding=encoding, workers=1, name="set"))
    pack(request(few, tmp_path / "many", encoding=encoding, workers=7, name="set"))
    parted = job.prepare(request(few, tmp_path / "parts", encoding=encoding, name="set"), quiet)
    records: dict[str, Record] = {}
    for number in (2, 0, 1):
        records |= pack_part(parted, 2, lambda progress: None, slice(number, None, 3))
    job.conclude(parted, records)
    parted.release()
    assert content(tmp_path / "one") == content(tmp_path / "many") == content(tmp_path / "parts")


def test_rejected_pictures_change_no_byte_of_the_manifest(tmp_path: Path) -> None:
    odd, _ = photos.hostile()
    source = sources.as_folders(tmp_path / "source", photos.samples(30, 8, 60) + odd)
    for folder in ("one", "other"):
        pack(request(source, tmp_path / folder, name="set"))
    manifest = (tmp_path / "one" / "manifest.json").read_text()
    assert manifest == (tmp_path / "other" / "manifest.json").read_text() and " at 0x" not in manifest


def test_shards_are_told_apart_without_a_look_at_their_content(tmp_path: Path) -> None:
    # Threads that end two shards at the same moment each remove their own from one list.
    task, writer = Task("train", 0, (1, 2)), ShardWriter(tmp_path / "one", "train", 0, Layout(RAW, SIDE))
    writer.close()
    one, other = work._Shard(task, writer, 2), work._Shard(task, writer, 2)
    shards = [one, other]
    shards.remove(other)
    assert len(shards) == 1 and shards[0] is one


def test_a_kill_before_the_manifest_has_its_name_leaves_no_file(few: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    program = (
        "import os, signal\n"
        "from pathlib import Path\n"
        "from tests.helpers.packing import pack, request\n"
        "rename = os.replace\n"
        "def kill(source, target):\n"
        "    if str(target).endswith('manifest.json'):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    rename(source, target)\n"
        "os.replace = kill\n"
        f"pack(request(Path({str(few)!r}), Path({str(folder)!r}), name='set'))"
    )
    done = subprocess.run([sys.executable, "-c", program], timeout=120, cwd=ROOT)
    assert done.returncode == -signal.SIGKILL and not (folder / "manifest.json").exists()
    for name in ("one", "set"):
        pack(request(few, tmp_path / name, name="set"))
    assert content(tmp_path / "one") == content(folder)


class Interrupted(Exception):
    """Ends a packing in the middle."""


def test_interrupted_packing_goes_on_to_the_same_bytes(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "TICK_SECONDS", 0.0)
    pack(request(few, tmp_path / "one", name="set"))
    kept = [0]
    for most in (15, 45, 70):

        def stop(progress: Progress, most: int = most) -> None:
            kept.append(progress.kept)
            if progress.done >= most:
                raise Interrupted

        with pytest.raises(Interrupted):
            pack(request(few, tmp_path / "set", workers=1, name="set"), stop)
        left = os.listdir(tmp_path / "set" / ".packing")
        assert not [name for name in left if name.endswith(".h5")], "unfinished files are removed"
    pack(request(few, tmp_path / "set", name="set"), lambda progress: kept.append(progress.kept))
    assert max(kept) > 0, "finished shards are kept"
    assert content(tmp_path / "one") == content(tmp_path / "set")


def test_interrupted_packing_keeps_shards_that_lack_rejected_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "TICK_SECONDS", 0.0)
    source = sources.as_folders(tmp_path / "source", photos.samples(90, 20, 90))
    prepared = job.prepare(request(source, tmp_path / "one", name="set"), quiet)
    prepared.release()
    # Each shard lacks a picture, and one shard all of them.
    tasks, pictures = prepared.plan.tasks()[:5], prepared.source.pictures["train"]
    broken = [source / "train" / pictures[task.positions[3]].name for task in tasks]
    broken += [source / "train" / pictures[position].name for position in tasks[1].positions]
    for path in broken:
        path.write_bytes(b"no picture")
    pack(request(source, tmp_path / "one", name="set"))

    def stop(progress: Progress) -> None:
        if progress.done >= 70:
            raise Interrupted

    with pytest.raises(Interrupted):
        pack(request(source, tmp_path / "set", workers=1, name="set"), stop)
    states: list[tuple[int, int]] = []
    pack(
        request(source, tmp_path / "set", name="set"),
        lambda progress: states.append((progress.kept, progress.rejected)),
    )
    assert states[-1][0] >= 40 and states[-1][1] == 24
    assert content(tmp_path / "one") == content(tmp_path / "set")


def test_damaged_shard_of_an_unfinished_packing_is_made_again(few: Path, tmp_path: Path) -> None:
    pack(request(few, tmp_path / "one", name="set"))
    prepared = job.prepare(request(few, tmp_path / "set", name="set"), quiet)
    pack_part(prepared, 2, lambda progress: None, slice(3))
    prepared.release()
    whole = bytearray((tmp_path / "set" / "train-00001.h5").read_bytes())
    whole[30_000] ^= 1
    (tmp_path / "set" / "train-00001.h5").write_bytes(whole)
    (tmp_path / "set" / ".packing" / "train-00002.h5.json").write_text('{"shard": 7}')
    pack(request(few, tmp_path / "set", name="set"))
    assert content(tmp_path / "one") == content(tmp_path / "set")


def test_finished_set_is_left_alone(few: Path, tmp_path: Path) -> None:
    first = pack(request(few, tmp_path / "set"))
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "set").iterdir()}
    again = pack(request(few, tmp_path / "set"))
    assert again.manifest == first.manifest and "packed already" in again.lines[0]
    assert times == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "set").iterdir()}
