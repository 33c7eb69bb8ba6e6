# SPDX-License-Identifier: Apache-2.0
"""From a source of thousands of pictures to a packed set: counts, labels, rejections, byte identity."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from aiperf_mpi.config import ConfigError
from aiperf_mpi.data import jpeg
from aiperf_mpi.data.manifest import ENCODINGS, JPEG, RAW, Manifest, read_manifest
from aiperf_mpi.packing import job, picture, work
from aiperf_mpi.packing import progress as progress_view
from aiperf_mpi.packing.check import problems
from aiperf_mpi.packing.folder import Folder, Record
from aiperf_mpi.packing.plan import Task
from aiperf_mpi.packing.shard import Layout, ShardWriter
from aiperf_mpi.packing.sources import ilsvrc
from aiperf_mpi.packing.work import Packer, Progress
from tests.helpers import pictures as photos
from tests.helpers import sources
from tests.helpers.launch import ROOT
from tests.helpers.sources import Sample

SIDE = 32
_QUIET = lambda line: None  # noqa: E731


@pytest.fixture(scope="module")
def many() -> tuple[list[Sample], dict[str, str]]:
    """Return 3,000 training and 300 validation pictures with hostile ones among them, and the rejected."""
    odd, reasons = photos.hostile()
    return photos.samples(3000, 300) + odd, reasons


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a source of 90 and 20 pictures in folders."""
    return sources.as_folders(tmp_path_factory.mktemp("few") / "source", photos.samples(90, 20, 90))


def request(source: Path, folder: Path, **options: object) -> job.Request:
    standard = {"side": SIDE, "shard_images": 20, "workers": 3, "max_rejected": 1000}
    return job.Request(source, folder, **standard | options)  # type: ignore[arg-type]


def pack(wanted: job.Request, tick: Callable[[Progress], None] = lambda progress: None) -> job.Conclusion:
    """Pack in this process."""
    prepared = job.prepare(wanted, _QUIET)
    try:
        if prepared.finished:
            return job.already(prepared)
        return job.conclude(prepared, pack_part(prepared, wanted.workers, tick))
    finally:
        prepared.release()


def pack_part(
    prepared: job.Prepared, workers: int, tick: Callable[[Progress], None], part: slice = slice(None)
) -> dict[str, Record]:
    plan = prepared.plan
    packer = Packer(prepared.source.pictures, prepared.folder, plan.layout, workers, tick)
    return packer.pack_all(plan.tasks()[part])


def content(folder: Path) -> dict[str, bytes]:
    """Return all files of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def packed(folder: Path, manifest: Manifest, split: str) -> dict[str, tuple[int, bytes]]:
    """Return label and bytes of each picture of a split, by its name."""
    found = {}
    for shard in manifest.splits[split]:
        with h5py.File(folder / shard.file) as file:
            names = [name.decode() for name in file["names"][...]]
            if manifest.encoding == RAW:
                data = [pixels.tobytes() for pixels in file["images"][...]]
            else:
                starts, files = file["offsets"][...].tolist(), file["jpeg"][...].tobytes()
                data = [files[begin:end] for begin, end in zip(starts, starts[1:], strict=False)]
            for name, label, one in zip(names, file["labels"][...].tolist(), data, strict=True):
                assert name not in found
                found[name] = (label, one)
    return found


# -- what is packed --------------------------------------------------------------------------------


def test_each_form_packs_every_picture_and_names_the_rejected(
    many: tuple[list[Sample], dict[str, str]], tmp_path: Path
) -> None:
    made, reasons = many
    hashes = set()
    for form, write in sources.FORMS.items():
        source = write(tmp_path / form, made)
        folder = tmp_path / f"{form} packed"
        conclusion = pack(request(source, folder, shard_images=256, encoding=JPEG, name="set"))
        manifest = read_manifest(folder)
        assert manifest == conclusion.manifest
        assert {one.name for one in manifest.rejected} == set(reasons)
        for one in manifest.rejected:
            assert reasons[one.name] in one.reason and len(one.reason) > 3
        # 3,000 and 8 odd training pictures; 300 and the twin of one of them.
        assert (manifest.images("train"), manifest.images("val")) == (3008, 301)
        assert manifest.classes == tuple(sorted(sources.SYNSETS))
        assert problems(folder, manifest, 2) == []
        hashes.add(manifest.sha256)
    # Names, labels, order and bytes are the same, wherever the pictures came from.
    assert len(hashes) == 1


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_picture_keeps_its_label_and_content(few: Path, tmp_path: Path, encoding: str) -> None:
    pack(request(few, tmp_path / "set", encoding=encoding))
    manifest = read_manifest(tmp_path / "set")
    for split in ("train", "val"):
        found = packed(tmp_path / "set", manifest, split)
        files = [path for path in (few / split).rglob("*") if path.is_file()]
        assert len(found) == len(files)
        for path in files:
            label, data = found[f"{path.parent.name}/{path.name}"]
            assert manifest.classes[label] == path.parent.name
            fitted, own = picture.square_of(path.read_bytes(), SIDE)
            square = np.asarray(fitted)
            expected = square.tobytes() if encoding == RAW else jpeg.encode(square)
            assert data == (path.read_bytes() if own and encoding == JPEG else expected)


def test_mean_and_deviation_are_exact(few: Path, tmp_path: Path) -> None:
    pack(request(few, tmp_path / "set"))
    manifest = read_manifest(tmp_path / "set")
    data = b"".join(one for _, one in packed(tmp_path / "set", manifest, "train").values())
    pixels = np.frombuffer(data, np.uint8).reshape(-1, 3).astype(np.float64) / 255
    assert manifest.mean == pytest.approx(pixels.mean(axis=0), abs=1e-12)
    assert manifest.deviation == pytest.approx(pixels.std(axis=0), abs=1e-12)


def test_md5_of_the_archives_is_compared_and_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = sources.as_archives(tmp_path / "source", photos.samples(40, 8, 60))
    with pytest.raises(ConfigError, match=r"img_train.tar: has the MD5 .* instead of the published"):
        pack(request(source, tmp_path / "set", md5=True))
    sums = {name: hashlib.md5((source / name).read_bytes()).hexdigest() for name in ilsvrc.MD5}
    for name, its in sums.items():
        monkeypatch.setitem(ilsvrc.MD5, name, its)
    monkeypatch.setattr(progress_view, "LINE_SECONDS", 0.0)
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    pack(request(source, tmp_path / "set", md5=True))
    noted = read_manifest(tmp_path / "set").source
    assert {key: noted[key] for key in noted if key.startswith("md5 of")} == {
        f"md5 of {name}": its for name, its in sums.items()
    }
    assert "computing the MD5: 0.00 of 0.00 GB" in stream.getvalue()


def test_shards_are_alike(many: tuple[list[Sample], dict[str, str]], tmp_path: Path) -> None:
    source = sources.as_folders(tmp_path / "source", many[0])
    pack(request(source, tmp_path / "set", shard_images=500))
    for shard in read_manifest(tmp_path / "set").splits["train"][:-1]:
        with h5py.File(tmp_path / "set" / shard.file) as file:
            counts = np.bincount(file["labels"][...], minlength=4) / shard.images
        # Each class has a quarter; the deviation of a share of 500 is 0.019.
        assert np.abs(counts - 0.25).max() < 0.1


# -- the same bytes whatever happens ---------------------------------------------------------------


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_threads_and_parts_change_no_byte(few: Path, tmp_path: Path, encoding: str) -> None:
    pack(request(few, tmp_path / "one", encoding=encoding, workers=1, name="set"))
    pack(request(few, tmp_path / "many", encoding=encoding, workers=7, name="set"))
    parted = job.prepare(request(few, tmp_path / "parts", encoding=encoding, name="set"), _QUIET)
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
        "from tests.packing.test_pack import pack, request\n"
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
    prepared = job.prepare(request(source, tmp_path / "one", name="set"), _QUIET)
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
    prepared = job.prepare(request(few, tmp_path / "set", name="set"), _QUIET)
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


# -- rejections ------------------------------------------------------------------------------------


def test_more_rejected_than_allowed_finish_after_they_are_mended(tmp_path: Path) -> None:
    made = photos.samples(90, 20, 90)
    source = sources.as_folders(tmp_path / "source", made)
    pack(request(source, tmp_path / "whole", name="set"))
    broken = source / "train" / made[7].label / made[7].file
    broken.write_bytes(made[7].data[:50])
    conclusion = pack(request(source, tmp_path / "set", name="set", max_rejected=0))
    assert conclusion.manifest is None and [one.name for one in conclusion.rejected] == [made[7].name]
    assert "--max-rejected 1" in conclusion.lines[-1]
    listed = (tmp_path / "set" / ".packing" / "rejected.txt").read_text()
    assert listed.startswith(f"train\t{made[7].name}\t")

    broken.write_bytes(made[7].data)
    kept: list[int] = []
    conclusion = pack(
        request(source, tmp_path / "set", name="set", max_rejected=0),
        lambda progress: kept.append(progress.kept),
    )
    assert conclusion.manifest is not None
    # The shard that lacked the picture was packed again, the other 5 were not: 90 and 20 pictures in all.
    assert max(kept) == 90
    assert content(tmp_path / "whole") == content(tmp_path / "set")


def test_rejected_pictures_may_be_allowed(tmp_path: Path) -> None:
    made = photos.samples(60, 20, 90)
    source = sources.as_folders(tmp_path / "source", made)
    for one in made[:3]:
        (source / "train" / one.label / one.file).write_bytes(b"no picture")
    assert pack(request(source, tmp_path / "set", max_rejected=2)).manifest is None
    manifest = pack(request(source, tmp_path / "set", max_rejected=3)).manifest
    assert manifest is not None and manifest.images("train") == 57 and len(manifest.rejected) == 3
    # Another set than ImageNet may lack any number, and says so.
    conclusion = pack(request(source, tmp_path / "other", max_rejected=None))
    assert conclusion.manifest is not None and len(conclusion.lines) == 3


def test_shard_whose_pictures_are_all_rejected_is_left_out(tmp_path: Path) -> None:
    made = photos.samples(60, 20, 90)
    source = sources.as_folders(tmp_path / "source", made)
    prepared = job.prepare(request(source, tmp_path / "set"), _QUIET)
    prepared.release()
    task = prepared.plan.tasks()[1]
    for position in task.positions:
        (source / "train" / prepared.source.pictures["train"][position].name).write_bytes(b"no picture")
    manifest = pack(request(source, tmp_path / "set")).manifest
    assert manifest is not None and len(manifest.rejected) == 20
    assert [shard.file for shard in manifest.splits["train"]] == ["train-00000.h5", "train-00002.h5"]
    assert not (tmp_path / "set" / task.file).exists()


def test_split_without_a_good_picture_is_refused(tmp_path: Path) -> None:
    made = photos.samples(40, 8, 90)
    source = sources.as_folders(tmp_path / "source", made)
    for path in (source / "val").rglob("*.JPEG"):
        path.write_bytes(b"no picture")
    with pytest.raises(ConfigError, match="no picture for val that can be decoded.*cannot identify"):
        pack(request(source, tmp_path / "set"))


# -- refusals --------------------------------------------------------------------------------------


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
        job.prepare(request(few, tmp_path / "set"), _QUIET).release()
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
        job.prepare(request(few, tmp_path / "set"), _QUIET).release()
    with pytest.raises(ConfigError, match="another list of pictures or classes"):
        pack(request(other, tmp_path / "set"))


def test_other_versions_of_the_libraries_do_not_go_on(few: Path, tmp_path: Path) -> None:
    job.prepare(request(few, tmp_path / "set"), _QUIET).release()
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
    prepared = job.prepare(request(few, tmp_path / "set"), _QUIET)
    host = os.uname().nodename
    with pytest.raises(ConfigError, match=f"process {os.getpid()} on host {host} packs into it"):
        job.prepare(request(few, tmp_path / "set"), _QUIET)
    prepared.release()
    pack(request(few, tmp_path / "set"))


def test_lock_of_a_file_system_without_locks(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No file system here lacks flock: the call answers as Lustre does without -o flock.
    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", no_locks)
    prepared = job.prepare(request(few, tmp_path / "set"), _QUIET)
    with pytest.raises(
        ConfigError, match=f"process {os.getpid()} on host .*if that process has ended, remove"
    ):
        job.prepare(request(few, tmp_path / "set"), _QUIET)
    prepared.release()
    # A process of this host that has ended has left its file.
    owner = tmp_path / "set" / ".packing" / "owner"
    owner.write_text(json.dumps({"host": os.uname().nodename, "pid": 4_194_305}))
    pack(request(few, tmp_path / "set"))


def test_picture_that_vanishes_ends_the_packing_with_its_name(few: Path, tmp_path: Path) -> None:
    made = photos.samples(60, 20, 90)
    source = sources.as_folders(tmp_path / "source", made)
    prepared = job.prepare(request(source, tmp_path / "set"), _QUIET)
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
