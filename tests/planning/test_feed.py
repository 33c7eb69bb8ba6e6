# SPDX-License-Identifier: Apache-2.0
"""What a packed set asks of a machine, from its manifest, or for the form that `pack` writes by default."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aiperf_mpi.__main__ import main
from aiperf_mpi.config import ConfigError, load
from aiperf_mpi.data.manifest import FILE, Manifest, Shard
from aiperf_mpi.planning.estimate.estimate import estimate
from aiperf_mpi.planning.estimate.machine import Machine
from aiperf_mpi.planning.estimate.number import Number
from tests.helpers.packed import numbered_set

#: Two nodes of 4 devices that train 1000 images of ResNet-50 a second.
MACHINE = Machine(2, 4, 3, 1000.0 * 23_053_458_315)


def numbers(machine: Machine = MACHINE, *sets: str) -> dict[str, Number]:
    """Return the numbers of the group by name."""
    return {n.name: n for n in estimate(load("imagenet", sets=sets), machine) if n.group == "data"}


def test_the_default_form_is_raw_pictures_of_256_pixels() -> None:
    found = numbers()
    # 714 steps of 4 x 448 = 1,279,488 images, and 50,000: x 196,608 bytes.
    assert found["read by a replica in an epoch"].value == (1_279_488 + 50_000) * 196_608
    assert found["storage of the packed set"].value == 1_331_167 * 196_608
    assert "no data.path is given: raw pictures of 256 x 256" in found["storage of the packed set"].assumption
    # 4 x 1000 images, and 23,053,458,315 / 7,806,583,495 = 2.95308 times as many while validating.
    assert found["images for a node"].value == pytest.approx((4_000, 11_812.3), rel=1e-5)
    assert found["read by a node"].value == pytest.approx((4_000 * 196_608, 11_812.3 * 196_608), rel=1e-5)
    assert found["read by all nodes"].value == pytest.approx((8_000 * 196_608, 23_624.6 * 196_608), rel=1e-5)
    # The largest batch of HPO is 512: 4 batches x 4 devices x 512 x 196,608 bytes and 256 MiB.
    assert found["memory of a node's loader"].value == 4 * 4 * 512 * 196_608 + 2**28
    assert found["time of staging"].value == pytest.approx(1_331_167 * 196_608 / 1e9)


def test_each_trainer_of_a_node_has_its_own_loader() -> None:
    found = numbers(MACHINE, "parallel.trainers_per_node=2", "hpo.enabled=false")
    assert found["memory of a node's loader"].value == 2 * (4 * 2 * 448 * 196_608 + 2**28)


def packed(folder: Path, standin: bool = False) -> Manifest:
    """Write a manifest of JPEG files of 20 kB a training image and 30 kB a validation image."""
    splits = {
        "train": (
            Shard("train-00000.h5", 1_000_000, 20_000_000_000, "0" * 64),
            Shard("train-00001.h5", 281_167, 5_623_340_000, "1" * 64),
        ),
        "val": (Shard("val-00000.h5", 50_000, 1_500_000_000, "2" * 64),),
    }
    classes = tuple(f"n{number:08}" for number in range(1000))
    mean = (0.5, 0.5, 0.5)
    manifest = Manifest("ILSVRC2012", "jpeg", 288, classes, splits, mean, mean, standin=standin)
    (folder / FILE).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def test_the_manifest_tells_bytes_and_side(tmp_path: Path) -> None:
    total = packed(tmp_path).bytes
    found = numbers(Machine(2, 4, 3, MACHINE.ops_per_device, 5e8), f"data.path='{tmp_path}'")
    assert found["storage of the packed set"].value == total == 27_123_340_000
    assert found["read by a replica in an epoch"].value == 1_279_488 * 20_000 + 50_000 * 30_000
    assert found["read by a node"].value == pytest.approx((4_000 * 20_000, 11_812.3 * 30_000), rel=1e-5)
    # The loader holds decoded pictures.
    assert found["memory of a node's loader"].value == 4 * 4 * 512 * 288 * 288 * 3 + 2**28
    assert found["time of staging"].value == pytest.approx(total / 5e8)
    assert "from its manifest: ILSVRC2012, jpeg of 288 x 288" in found["storage of the packed set"].assumption
    packed(tmp_path, standin=True)
    found = numbers(MACHINE, f"data.path='{tmp_path}'")
    assert "made-up pictures: always a trial" in found["storage of the packed set"].assumption


def test_a_folder_without_a_readable_manifest_is_refused(tmp_path: Path) -> None:
    for content, part in (
        (None, "does not exist; name the folder that pack has written"),
        ("{", "is not JSON"),
        ("{}", "is not the manifest of a packed data set"),
    ):
        if content is not None:
            (tmp_path / FILE).write_text(content)
        with pytest.raises(ConfigError, match="manifest.json") as caught:
            numbers(MACHINE, f"data.path='{tmp_path}'")
        assert str(caught.value).startswith(f"data.path: {tmp_path}/{FILE}: ") and part in str(caught.value)


def test_the_manifest_decides_the_counts_as_in_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of `images` all pictures are used, as `run` does, and not as many as ImageNet has."""
    total = numbered_set(tmp_path, 70, 30).bytes
    sets = ("data.name='images'", f"data.path='{tmp_path}'", "data.image_size=32", "hpo.enabled=false")
    words = [word for one in (*sets, "train.batch_per_device=10") for word in ("--set", one)]
    assert main(["estimate", "--nodes", "1", "--json", *words]) == 0
    found = {number["name"]: number for number in json.loads(capsys.readouterr().out)["numbers"]}
    assert found["read by a replica in an epoch"]["value"] == total
    assert "70 images in whole batches of 10" in found["an epoch"]["assumption"]
