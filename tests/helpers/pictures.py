# SPDX-License-Identifier: Apache-2.0
"""Thousands of pictures cut from the images that installed packages have, and hostile ones among them."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image

from tests.helpers.sources import SYNSETS, Sample

#: Kinds of pictures that come now and then among the ordinary ones, and are packed.
_KINDS: tuple[dict[str, object], ...] = (
    {"mode": "L"},
    {"mode": "CMYK"},
    {"progressive": True},
    {"subsampling": 0},
    {"form": "PNG"},
    {"mode": "P", "form": "PNG"},
    {"mode": "RGBA", "form": "PNG"},
    {"orientation": 6},
    {"orientation": 3},
)


@cache
def photographs() -> tuple[Image.Image, ...]:
    """Return the images of scikit-learn and matplotlib, in RGB."""
    folder = Path(matplotlib.get_data_path()) / "sample_data"
    names = ("grace_hopper.jpg", "Minduka_Present_Blue_Pack.png", "logo2.png")
    drawn = [Image.open(folder / name).convert("RGB") for name in names]
    return (*(Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")), *drawn)


def saved(
    picture: Image.Image, form: str = "JPEG", mode: str = "RGB", orientation: int = 1, **options: object
) -> bytes:
    """Return the file of a picture."""
    stream, exif = io.BytesIO(), Image.Exif()
    if orientation != 1:
        exif[0x0112] = orientation
        options["exif"] = exif
    picture.convert(mode).save(stream, form, **options)
    return stream.getvalue()


def cut(random: np.random.Generator, most: int = 300) -> Image.Image:
    """Return a part of one of the photographs, of a random size up to `most` pixels."""
    whole = photographs()[int(random.integers(len(photographs())))]
    width, height = (int(random.integers(16, min(most, side) + 1)) for side in whole.size)
    left, top = int(random.integers(whole.width - width + 1)), int(random.integers(whole.height - height + 1))
    return whole.crop((left, top, left + width, top + height))


def photograph(random: np.random.Generator, number: int, most: int = 300) -> bytes:
    """Return the file of a part of a photograph, at a random quality; every 25th is of an unusual kind."""
    kind = _KINDS[number // 25 % len(_KINDS)] if number % 25 == 0 else {}
    options = kind if kind.get("form") == "PNG" else {"quality": int(random.integers(40, 98)), **kind}
    return saved(cut(random, most), **options)  # type: ignore[arg-type]


def samples(train: int, val: int, most: int = 300) -> list[Sample]:
    """Return ordinary samples of four classes of ILSVRC2012, `train` and `val` in all."""
    random = np.random.default_rng(12)
    labels = [SYNSETS[number % len(SYNSETS)] for number in range(max(train, val))]
    of_train = [
        Sample("train", labels[number], f"{labels[number]}_{number}.JPEG", photograph(random, number, most))
        for number in range(train)
    ]
    of_val = [
        Sample(
            "val", labels[number], f"ILSVRC2012_val_{number + 1:08d}.JPEG", photograph(random, number, most)
        )
        for number in range(val)
    ]
    return of_train + of_val


def hostile() -> tuple[list[Sample], dict[str, str]]:
    """Return odd training samples, and for each that is rejected its name and a part of the reason."""
    photo = photographs()[0].resize((120, 90))
    whole, png = saved(photo), saved(photo, "PNG")
    deep = (np.arange(64 * 48).reshape(48, 64) * 20).astype(np.uint16)
    label = SYNSETS[0]
    kept = {
        "wrong extension.png": whole,
        "a PNG.JPEG": png,
        "ä ö 日本 🦊.JPEG": whole,
        "a\nnew line.JPEG": whole,
        "16 bits.png": saved_as_it_is(Image.fromarray(deep), "PNG"),
        "one pixel.JPEG": saved(Image.new("RGB", (1, 1), (9, 99, 199))),
        "long.JPEG": saved(Image.new("RGB", (12000, 30), (9, 99, 199))),
        "long.png": saved(Image.new("RGB", (30, 12000), (9, 99, 199)), "PNG"),
    }
    rejected = {
        "truncated.JPEG": (whole[: len(whole) // 2], "Premature end"),
        "gap.JPEG": (whole[: len(whole) // 2] + b"\xff\xd9", "premature end"),
        "truncated.png": (png[: len(png) // 2], "truncated"),
        "empty.JPEG": (b"", "no bytes"),
        "text.JPEG": (b"<html>404 Not Found</html>" * 20, "cannot identify"),
        "header.JPEG": (whole[:20], ""),
        "bomb.png": (saved(Image.new("1", (20_000, 20_000)), "PNG", "1"), "pixels"),
        "float.tiff": (saved_as_it_is(Image.fromarray(np.ones((9, 9), np.float32)), "TIFF"), "floating"),
    }
    made = [Sample("train", label, name, data) for name, data in kept.items()]
    made += [Sample("train", label, name, data) for name, (data, _) in rejected.items()]
    # The same picture is in both splits, and one of the validation pictures is damaged.
    made += [Sample("val", label, "zz_twice.JPEG", whole), Sample("val", label, "zz_cut.JPEG", whole[:99])]
    reasons = {f"{label}/{name}": reason for name, (_, reason) in rejected.items()}
    return made, {**reasons, f"{label}/zz_cut.JPEG": ""}


def saved_as_it_is(picture: Image.Image, form: str) -> bytes:
    """Return the file of a picture in its own mode."""
    stream = io.BytesIO()
    picture.save(stream, form)
    return stream.getvalue()
