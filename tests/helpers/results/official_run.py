# SPDX-License-Identifier: Apache-2.0
"""The example of an official run: packed ImageNet, an hour on 2 x 8 accelerators, everything stated.

Names of classes and of pictures are made up, so that their two hashes are those of a reference of its own;
every other rule is the benchmark's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from aiperf_mpi.config import classify, from_toml
from aiperf_mpi.config.classes import OfficialRules
from aiperf_mpi.config.ilsvrc import ILSVRC2012, hash_of_labels, hash_of_lines
from aiperf_mpi.data.manifest import RAW, TRAIN, VAL, LabelFacts, Manifest, Shard
from aiperf_mpi.paper import IMAGENET_IMAGES
from tests.helpers.results.example_run import Example, Shape, example_run

SIDE = 256
CLASSES = tuple(f"n{number:08d}" for number in range(1_000_000, 1_001_000))

#: 50 validation pictures of each class, and the training pictures: 896 classes have 1300, the others less.
#: 896 x 1300 + 104 x 1119 = 1,281,176, which is 9 too many; so the last class has 1110.
VAL_EACH = 50
TRAIN_EACH = (1300,) * 896 + (1119,) * 103 + (1110,)

#: All of the benchmark's rules, but the names of the reference.
RULES = OfficialRules(
    reference=replace(
        ILSVRC2012,
        classes_sha256=hash_of_lines(CLASSES),
        labels_sha256=hash_of_labels(
            (f"val/ILSVRC2012_val_{number + 1:08d}.JPEG" for number in range(IMAGENET_IMAGES[1])),
            (CLASSES[number % 1000] for number in range(IMAGENET_IMAGES[1])),
        ),
    )
)

LABELS = LabelFacts(TRAIN_EACH, (VAL_EACH,) * 1000, RULES.reference.labels_sha256)

#: Settings that differ from the benchmark's defaults: none has a rule.
SETS = (
    "run.official=true",
    "data.path='/data/imagenet'",
    f"data.stored_size={SIDE}",
    "train.precision='bfloat16'",
)

#: An epoch of 1,281,167 pictures takes 2 minutes, 15 of them and 14.5 make an hour. Of 50,000 validation
#: pictures 40,000 / (epoch + 1) are wrong: 14,000 or 28 % at the least.
SHAPE = Shape(
    preset="imagenet",
    sets=SETS,
    images=IMAGENET_IMAGES,
    batch=448,
    devices=8,
    device="NVIDIA H200",
    epoch_seconds=3600 / 29.5,
    tick=360.0,
    wrong=lambda epoch, number: max(40_000 // (epoch + 1), 14_000 + number),
)

MACHINE: Mapping[str, Any] = {
    "hostname": "n1",
    "platform": "Linux",
    "python": "3.12",
    "cpu": {"model": "some"},
    "memory_bytes": 1 << 36,
    "packages": {"jax": "0.10"},
    "mpi": {"vendor": "MPICH 5.0.2"},
    "file_systems": {"output": {"type": "lustre"}},
    "nodes": [{"nodes": "0-1", "accelerators": [{"name": "NVIDIA H200"}], "power": "NVML (8 devices)"}],
    "source": {"commit": "0" * 40, "dirty": False},
}


def imagenet_manifest(encoding: str = RAW, **changes: Any) -> Manifest:
    """A manifest with ImageNet's counts, in shards of 8192."""

    def shards(split: str, count: int) -> tuple[Shard, ...]:
        sizes = [min(8192, count - start) for start in range(0, count, 8192)]
        return tuple(
            Shard(f"{split}-{index:05d}.h5", size, size * SIDE * SIDE * 3 + 2048, f"{index:05d}{'c' * 59}")
            for index, size in enumerate(sizes)
        )

    manifest = Manifest(
        name="ILSVRC2012",
        encoding=encoding,
        side=SIDE,
        classes=CLASSES,
        splits={TRAIN: shards(TRAIN, IMAGENET_IMAGES[0]), VAL: shards(VAL, IMAGENET_IMAGES[1])},
        mean=(0.485, 0.456, 0.406),
        deviation=(0.229, 0.224, 0.225),
        source={"form": "archives"},
        versions={"simplejpeg": "1.8.2"},
    )
    return replace(manifest, **changes)


def official_run(
    manifest: Manifest | None = None,
    labels: LabelFacts | None = LABELS,
    sets: tuple[str, ...] = (),
    seed: int = 2021,
    shape: Shape = SHAPE,
    inventory: Mapping[str, Any] = MACHINE,
) -> Example:
    """The example of an official run, with changes that tests make."""
    manifest = manifest or imagenet_manifest()
    example = example_run(trials_each=2, epochs_each=15, seed=seed, sets=sets, shape=shape)
    cls, division, departures = classify(from_toml(example.header.config_toml), manifest, rules=RULES)
    example.header = replace(
        example.header,
        run_id=f"official-{seed}",
        cls=cls,
        division=division,
        departures=tuple(map(str, departures)),
        dataset_sha256=manifest.sha256,
        manifest=manifest.to_record(labels),
        inventory=dict(inventory),
    )
    samples = example.epochs["train_samples"] + example.epochs["val_samples"]
    of_replica = {candidate.trial_id: candidate.replica for candidate in example.candidates}
    replicas = np.array([of_replica[int(trial)] for trial in example.epochs["trial_id"]])
    for row in example.ranks:
        if row["role"] == b"trainer":
            row["bytes_read"] = int(samples[replicas == row["replica"]].sum()) * SIDE * SIDE * 3
            numbers = (8 * int(row["replica"]) + device for device in range(8))
            uuids = (f"GPU-{number:08d}-0000-4000-8000-000000000000" for number in numbers)
            row["device_uuid"] = ",".join(uuids).encode()
    return example


__all__ = ["LABELS", "MACHINE", "RULES", "SHAPE", "imagenet_manifest", "official_run"]
