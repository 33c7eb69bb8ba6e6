# SPDX-License-Identifier: Apache-2.0
"""From a source of thousands of pictures to a packed set: counts, labels, rejections."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import h5py
import numpy as np
import pytest

from aiperf_mpi.config import ConfigError
from aiperf_mpi.data import jpeg
from aiperf_mpi.data.manifest import ENCODINGS, JPEG, RAW, read_manifest
from aiperf_mpi.packing import job, picture
from aiperf_mpi.packing import progress as progress_view
from aiperf_mpi.packing.check import problems
from aiperf_mpi.packing.plan import Plan
from aiperf_mpi.packing.sources import ilsvrc
from tests.helpers import pictures as photos
from tests.helpers import sources
from tests.helpers.packing import SIDE, content, pack, packed, quiet, request
from tests.helpers.sources import Sample


@pytest.fixture(scope="module")
def many() -> tuple[list[Sample], dict[str, str]]:
    """Return 3,000 training and 300 validation pictures with hostile ones among them, and the rejected."""
    odd, reasons = photos.hostile()
    return photos.samples(3000, 300) + odd, reasons


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


def test_of_many_pictures_a_sample_has_mean_and_deviation() -> None:
    plan = Plan("set", RAW, SIDE, 5000, {"train": 32_000, "val": 9_000}, "", {})
    # Shards of 5,000 pictures: the fourth has the 16,384th.
    measured = [(task.split, task.index) for task in plan.tasks() if task.measured]
    assert measured == [("train", 0), ("train", 1), ("train", 2), ("train", 3)]
    # The pictures of a shard are drawn from all.
    assert max(plan.tasks()[0].positions) > 30_000


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
    prepared = job.prepare(request(source, tmp_path / "set"), quiet)
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
