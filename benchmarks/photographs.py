# SPDX-License-Identifier: Apache-2.0
"""Real photographs, cut from images that installed packages have, in the sizes and qualities of ImageNet."""

from __future__ import annotations

import importlib.util
import io
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

#: Photographs of each package, below its folder.
_FILES = {
    "sklearn": ("datasets/images/china.jpg", "datasets/images/flower.jpg"),
    "matplotlib": ("mpl-data/sample_data/grace_hopper.jpg",),
    "skimage": tuple(f"data/{name}" for name in ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")),
}

#: Bounds of width and height: 500 x 375 on average, as ImageNet has; and of the quality.
WIDTHS, HEIGHTS, QUALITIES = (400, 601), (300, 451), (75, 96)


@cache
def originals() -> tuple[Image.Image, ...]:
    """Return the photographs that are installed, in RGB."""
    found = []
    for package, names in _FILES.items():
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin:
            paths = [Path(spec.origin).parent / name for name in names]
            found += [Image.open(path).convert("RGB") for path in paths if path.is_file()]
    return tuple(found)


def photograph(number: int) -> bytes:
    """Return the JPEG file of a part of a photograph; each number gives another."""
    random = np.random.default_rng((375, number))
    whole = originals()[int(random.integers(len(originals())))]
    width, height = (int(random.integers(*bounds)) for bounds in (WIDTHS, HEIGHTS))
    # A part of 0.8 to 1.2 of the picture's pixels, or as much as there is.
    zoom = min(random.uniform(0.8, 1.2), whole.width / width, whole.height / height)
    across, down = int(width * zoom), int(height * zoom)
    left, top = (int(random.integers(most + 1)) for most in (whole.width - across, whole.height - down))
    part = whole.crop((left, top, left + across, top + down)).resize((width, height))
    stream = io.BytesIO()
    part.save(stream, "JPEG", quality=int(random.integers(*QUALITIES)))
    return stream.getvalue()


def write_tree(folder: Path, train: int, val: int, classes: int = 10) -> None:
    """Write `train` and `val` photographs in a folder for each class."""
    for split, first, count in (("train", 0, train), ("val", train, val)):
        for number in range(first, first + count):
            path = folder / split / f"class_{number % classes:02d}" / f"{number:06d}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(photograph(number))
