# SPDX-License-Identifier: Apache-2.0
"""Packings that are refused, each with what is wrong and what to do."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from aiperf_mpi.config import ConfigError
from aiperf_mpi.data.manifest import JPEG
from aiperf_mpi.packing import job
from aiperf_mpi.packing.folder import Folder
from tests.helpers import pictures as photos
from tests.helpers import sources
from tests.helpers.packing import pack, pack_part, quiet, request

OPTIONS: list[tuple[dict[str, object], str]] = [
    ({"side": 7}, "--side 7: it must be within 8 and 4096"),
    ({"shard_images": 0}, "--shard-images 0"),
    ({"workers": 0}, "--workers 0"),
    ({"max_rejected": -1}, "--max-rejected -1"),
    ({"encoding": "png"}, "--encoding png: it must be raw or jpeg"),
    ({"name": "a\nb"}, "--name"),
]


@pytest.mark.parametrize(("options", "text"), OPTIONS, ids=str)
def test_impossible_option_is_refused(
    few: Path, tmp_path: Path, options: dict[str, object], text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        pack(request(few, tmp_path / "set", **options))
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("there", [True, False])
def test_refused_packing_leaves_the_folder_as_it_was(tmp_path: Path, there: bool) -> None:
    if there:
        (tmp_path / "set").mkdir()
    with pytest.raises(ConfigError, match="SRC"):
        pack(request(tmp_path / "no source", tmp_path / "set"))
    assert os.listdir(tmp_path) == (["set"] if there else [])
    assert not there or os.listdir(tmp_path / "set") == []


OTHERS: list[tuple[dict[str, object], str]] = [
    ({"side": 40}, "--side 32, now 40"),
    ({"encoding": JPEG}, "--encoding raw, now jpeg"),
    ({"shard_images": 30}, "--shard-images 20, now 30"),
    ({"name": "other"}, "--name source, now other"),
]


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(("options", "text"), OTHERS, ids=str)
def test_folder_of_other_options_is_refused_by_what_differs(
    few: Path, tmp_path: Path, options: dict[str, object], text: str, finished: bool
) -> None:
    if finished:
        pack(request(few, tmp_path / "set"))
    else:
        job.prepare(request(few, tmp_path / "set"), quiet).release()
    with pytest.raises(ConfigError, match=text):
        pack(request(few, tmp_path / "set", **options))


@pytest.mark.parametrize("finished", [True, False])
def test_folder_of_another_source_is_refused(few: Path, tmp_path: Path, finished: bool) -> None:
    made = photos.samples(90, 20, 90)
    made[5] = made[5]._replace(file="another name.JPEG")
    other = sources.as_folders(tmp_path / "source", made)
    if finished:
        pack(request(few, tmp_path / "set"))
    else:
        job.prepare(request(few, tmp_path / "set"), quiet).release()
    with pytest.raises(ConfigError, match="another list of pictures or classes"):
        pack(request(other, tmp_path / "set"))


def test_other_versions_of_the_libraries_do_not_go_on(few: Path, tmp_path: Path) -> None:
    job.prepare(request(few, tmp_path / "set"), quiet).release()
    path = tmp_path / "set" / ".packing" / "plan.json"
    plan = json.loads(path.read_text())
    plan["versions"]["pillow"] = "1.0"
    path.write_text(json.dumps(plan))
    with pytest.raises(ConfigError, match=r"versions pillow 1\.0, now [0-9]"):
        pack(request(few, tmp_path / "set"))


def test_folder_with_other_content_is_refused(few: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is neither empty nor a packed set; name a new folder"):
        pack(request(few, tmp_path))
    assert os.listdir(tmp_path) == ["thesis.txt"]


@pytest.mark.parametrize("text", ["[]", "7", "null", '"x"', "{", ""])
def test_plan_that_is_none_is_refused(few: Path, tmp_path: Path, text: str) -> None:
    work = tmp_path / ".packing"
    work.mkdir()
    (work / "plan.json").write_text(text)
    with pytest.raises(ConfigError, match=r"plan.json: cannot be read .*; remove "):
        pack(request(few, tmp_path))


def test_folder_among_the_pictures_is_refused(few: Path, tmp_path: Path) -> None:
    """It would be one more class, without a picture."""
    (tmp_path / "link").symlink_to(few)
    for folder in (few / "train" / "new", tmp_path / "link" / "val" / "new"):
        with pytest.raises(ConfigError, match="is in a folder of the source .*; name a folder"):
            pack(request(few, folder))
        assert not folder.exists()


def test_finished_set_that_lacks_a_shard_is_refused(few: Path, tmp_path: Path) -> None:
    pack(request(few, tmp_path / "set"))
    (tmp_path / "set" / "train-00001.h5").unlink()
    with pytest.raises(ConfigError, match="train-00001.h5: is missing; copy it again"):
        pack(request(few, tmp_path / "set"))


def test_second_packer_is_refused_by_host_and_process(few: Path, tmp_path: Path) -> None:
    prepared = job.prepare(request(few, tmp_path / "set"), quiet)
    host = os.uname().nodename
    with pytest.raises(ConfigError, match=f"process {os.getpid()} on host {host} packs into it"):
        job.prepare(request(few, tmp_path / "set"), quiet)
    prepared.release()
    pack(request(few, tmp_path / "set"))


def test_lock_of_a_file_system_without_locks(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No file system here lacks flock: the call answers as Lustre does without -o flock.
    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", no_locks)
    prepared = job.prepare(request(few, tmp_path / "set"), quiet)
    with pytest.raises(
        ConfigError, match=f"process {os.getpid()} on host .*if that process has ended, remove"
    ):
        job.prepare(request(few, tmp_path / "set"), quiet)
    prepared.release()
    # A process of this host that has ended has left its file.
    owner = tmp_path / "set" / ".packing" / "owner"
    owner.write_text(json.dumps({"host": os.uname().nodename, "pid": 4_194_305}))
    pack(request(few, tmp_path / "set"))


def test_picture_that_vanishes_ends_the_packing_with_its_name(few: Path, tmp_path: Path) -> None:
    made = photos.samples(60, 20, 90)
    source = sources.as_folders(tmp_path / "source", made)
    prepared = job.prepare(request(source, tmp_path / "set"), quiet)
    gone = source / "train" / made[9].label / made[9].file
    gone.unlink()
    with pytest.raises(
        ConfigError, match=f"{gone.name}: there is no such file; check the source, and run the same"
    ):
        pack_part(prepared, 2, lambda progress: None)
    prepared.release()


def test_set_that_does_not_fit_is_refused_before(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 90 and 20 pictures of 4096 x 4096 pixels are 5.2 GiB; the file system answers that it has 1 GiB.
    full = os.statvfs_result((4096, 4096, 1 << 20, 1 << 18, 1 << 18, 0, 0, 0, 0, 255))
    monkeypatch.setattr("os.statvfs", lambda path: full)
    with pytest.raises(ConfigError, match=r"needs 5\.16 GiB, but 1\.00 GiB are free"):
        pack(request(few, tmp_path / "set", side=4096))
    # What the message advises is not refused by what the first attempt has left.
    assert not (tmp_path / "set").exists()
    assert pack(request(few, tmp_path / "set")).manifest is not None


def test_manifest_of_a_folder_that_is_not_one(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ConfigError, match="is not the manifest of a packed data set"):
        Folder(tmp_path).finished()
