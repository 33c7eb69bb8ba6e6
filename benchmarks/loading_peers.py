# SPDX-License-Identifier: Apache-2.0
"""Measure another loader for `loading.py`, in a Python of its own; print its row as JSON.

    python loading_peers.py {torchvision TREE, dali TAR} THREADS REPEATS

It imports nothing of aiperf_mpi: that Python has only the peers. TREE has a folder for each class, TAR has
the same files as `loading.py` loads.
"""

from __future__ import annotations

import json
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

SIDE, BATCH = 256, 448


def torchvision(tree: Path, threads: int) -> Callable[[], int]:
    """Return a function that loads all pictures of a tree in a random order, by worker processes."""
    import torch
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    steps = [transforms.Resize(SIDE), transforms.CenterCrop(SIDE), transforms.PILToTensor()]
    images = ImageFolder(str(tree), transforms.Compose(steps))
    loader = torch.utils.data.DataLoader(
        images, BATCH, shuffle=True, num_workers=threads, drop_last=True, persistent_workers=True
    )

    def epoch() -> int:
        return sum(len(labels) for _, labels in loader)

    return epoch


def dali(path: Path, threads: int) -> Callable[[], int]:
    """Return a function that loads the JPEG files of a tar in a random order, on the processor."""
    from nvidia.dali import fn, pipeline_def, types

    index = path.with_suffix(".idx")
    count = write_index(path, index)

    @pipeline_def(batch_size=BATCH, num_threads=threads, device_id=None)  # type: ignore[untyped-decorator]
    def pipeline():  # type: ignore[no-untyped-def]
        files, labels = fn.readers.webdataset(
            paths=[str(path)],
            index_paths=[str(index)],
            ext=["jpg", "cls"],
            random_shuffle=True,
            initial_fill=1024,
            missing_component_behavior="error",
        )
        images = fn.decoders.image(files, device="cpu", output_type=types.RGB)
        return images, labels

    pipe = pipeline()
    pipe.build()

    def epoch() -> int:
        done = 0
        while done < max(count - BATCH, 1):
            images, _ = pipe.run()
            done += len(images)
        return done

    return epoch


def write_index(path: Path, index: Path) -> int:
    """Write the index that DALI wants: ending, offset, size and name of each file; return the count."""
    samples: dict[str, list[str]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            stem, _, ending = member.name.partition(".")
            words = f"{ending} {member.offset_data} {member.size} {member.name}"
            samples.setdefault(stem, []).append(words)
    lines = [f"v1.2 {len(samples)}", *(" ".join(words) for words in samples.values())]
    index.write_text("\n".join(lines) + "\n")
    return len(samples)


def main() -> int:
    """Measure a peer, and print its row."""
    name, path, threads, repeats = sys.argv[1:]
    make, title = {
        "torchvision": (torchvision, "torchvision, ImageFolder and DataLoader"),
        "dali": (dali, "DALI, readers.webdataset on the processor"),
    }[name]
    epoch = make(Path(path), int(threads))
    seconds = []
    for turn in range(int(repeats) + 1):
        begin = time.perf_counter()
        count = epoch()
        if turn:
            seconds.append((time.perf_counter() - begin) / count)
    print(json.dumps({title: {"seconds": seconds}}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
