# SPDX-License-Identifier: Apache-2.0
"""The example of a run on packed pictures: what its ranks would report."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from aiperf_mpi.data.manifest import RAW, TRAIN, VAL, Manifest, Rejected, Shard
from aiperf_mpi.results.file.rows import RunHeader
from tests.helpers.results.example_run import TRAIN_IMAGES, VAL_IMAGES, Example, example_run

#: Height and width of the stored pictures, and bytes of one of them as `raw`.
SIDE = 40
PICTURE = SIDE * SIDE * 3

#: Settings of a run on them, over those of the demo.
SETS = (
    "data.name='images'",
    "data.path='/data/packed'",
    "data.channels=3",
    f"data.stored_size={SIDE}",
    f"data.train_images={TRAIN_IMAGES}",
    f"data.val_images={VAL_IMAGES}",
)


def example_manifest(encoding: str = RAW, **changes: object) -> Manifest:
    """A manifest of 1437 + 360 pictures of ten classes, in shards of 1000; two were rejected."""

    def shards(split: str, count: int) -> tuple[Shard, ...]:
        sizes = [min(1000, count - start) for start in range(0, count, 1000)]
        return tuple(
            Shard(
                f"{split}-{index:05d}.h5",
                size,
                size * PICTURE + 2048,
                f"{index}{size:04d}" + "ab5" * 19 + "0e",
            )
            for index, size in enumerate(sizes)
        )

    manifest = Manifest(
        name="pictures",
        encoding=encoding,
        side=SIDE,
        classes=tuple(f"class {number}" for number in range(10)),
        splits={TRAIN: shards(TRAIN, TRAIN_IMAGES), VAL: shards(VAL, VAL_IMAGES)},
        mean=(0.5, 0.4, 0.3),
        deviation=(0.2, 0.2, 0.2),
        rejected=(Rejected(TRAIN, "a/1.JPEG", "is empty"), Rejected(VAL, "b/2.JPEG", "is not a picture")),
        source={"form": "folders"},
        versions={"simplejpeg": "1.8.2"},
    )
    return replace(manifest, **changes)  # type: ignore[arg-type]


def of_manifest(header: RunHeader, manifest: Manifest) -> RunHeader:
    """The header of a run on the packed set of a manifest, copied to two nodes."""
    return replace(
        header,
        dataset=header.dataset if header.dataset != "digits" else "images",
        dataset_sha256=manifest.sha256,
        manifest=manifest.to_record(),
        staging_seconds=1.5,
        staged_bytes=2 * manifest.bytes,
        hash_seconds=0.5,
    )


def packed_run(manifest: Manifest | None = None, sets: tuple[str, ...] = ()) -> Example:
    """An example of two replicas on packed pictures, each of which reads one batch more than it uses."""
    example = example_run(sets=(*SETS, *sets))
    example.header = of_manifest(example.header, manifest or example_manifest())
    samples = example.epochs["train_samples"] + example.epochs["val_samples"]
    by_id = {candidate.trial_id: candidate.replica for candidate in example.candidates}
    replicas = np.array([by_id[int(trial)] for trial in example.epochs["trial_id"]])
    for row in example.ranks:
        if row["role"] == b"trainer":
            used = int(samples[replicas == row["replica"]].sum())
            row["bytes_read"] = (used + 64) * PICTURE
    return example
