# SPDX-License-Identifier: Apache-2.0
"""One picture of a source to what a shard stores of it: a square of pixels, or a JPEG file.

Every picture becomes upright (by EXIF), RGB and 8 bits a colour. Transparency is left out, of an animation
the first picture is taken, and CMYK becomes RGB without a colour profile.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from aiperf_mpi.data import jpeg
from aiperf_mpi.data.jpeg import PictureError, UnusualError
from aiperf_mpi.data.manifest import RAW

#: Formats that are read, by Pillow's names. Others start other programs, or read more than one file.
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM")

_JPEG, _EXIF, _ORIENTATION = b"\xff\xd8", b"Exif\0\0", 0x0112

#: Markers after which the pixels of a JPEG file begin, or the file ends.
_PIXELS = (b"\xff\xda", b"\xff\xd9")

#: A JPEG file is stored as it is if its long side is at most this number of sides.
_MOST_LONG = 4

#: Larger than the square by this factor, a JPEG file is decoded at 1/2, 1/4 or 1/8.
_SCALED = 2

#: How a picture is turned upright, by its EXIF orientation.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_NO_HISTOGRAM = np.zeros((3, 256), np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """What a shard stores of a picture, and what the manifest's mean and deviation need of it.

    Attributes:
        data: its bytes: pixels, or a JPEG file.
        histogram: of the fitted pixels: how often each value comes in red, green and blue, int64 [3, 256].
    """

    data: bytes
    histogram: np.ndarray


def pack(data: bytes, side: int, encoding: str, measured: bool) -> Packed:
    """Return what a shard stores of a picture's file. Raises PictureError if it cannot be decoded.

    Only `measured` pictures have a histogram; that of another one is zero.
    """
    square, own = square_of(data, side)
    if encoding == RAW:
        stored = square.tobytes()
    else:
        stored = data if own else jpeg.encode(np.asarray(square))
    counts = np.array(square.histogram(), np.int64).reshape(3, 256) if measured else _NO_HISTOGRAM
    return Packed(stored, counts)


def square_of(data: bytes, side: int) -> tuple[Image.Image, bool]:
    """Return a picture's file as an upright square of `side` x `side` pixels in RGB.

    Return also whether the loader makes the same of the file itself, which then needs no second encoding: an
    ordinary JPEG, upright, whose short side is at most `side`, with fewer bytes than the pixels. Pillow alone
    cannot tell what is ordinary, and the hosts of a run may have simplejpeg.
    """
    if not data.startswith(_JPEG):
        return _by_pillow(data, side), False
    try:
        pixels = jpeg.decode(data, _SCALED * side)
    except UnusualError:
        return _by_pillow(data, side), False
    orientation = _orientation(jpeg.opened(data, ("JPEG",))) if _has_exif(data) else 1
    short, long = sorted(pixels.shape[:2])
    small = short <= side and long <= _MOST_LONG * side and len(data) < 3 * side**2
    own = jpeg.sees_warnings() and orientation == 1 and small
    return upright(jpeg.fit_picture(Image.fromarray(pixels), side), orientation), own


def upright(square: Image.Image, orientation: int) -> Image.Image:
    """Return a square turned and mirrored as its EXIF orientation (1 to 8) says."""
    return square.transpose(_TURNS[orientation]) if orientation in _TURNS else square


def _has_exif(data: bytes) -> bool:
    """Whether a JPEG file that can be decoded has an EXIF block among the segments before its pixels."""
    at, marker = 2, data[2:4]
    while marker[:1] == b"\xff" and marker not in _PIXELS:
        if marker == b"\xff\xff":
            at += 1
        elif data[at + 4 : at + 10] == _EXIF:
            return True
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        marker = data[at : at + 2]
    # Bytes between two segments, which decoders skip: look everywhere.
    return marker not in _PIXELS and _EXIF in data


def _by_pillow(data: bytes, side: int) -> Image.Image:
    """Return a picture of any of the formats as an upright square. Raises PictureError."""
    with jpeg.opened(data, _FORMATS) as picture:
        # Pillow turns a TIFF file itself when it decodes it.
        orientation = 1 if picture.format == "TIFF" else _orientation(picture)
        rgb = jpeg.of_pillow(lambda: _rgb(picture))
        return upright(jpeg.fit_picture(rgb, side), orientation)


def _rgb(picture: Image.Image) -> Image.Image:
    """Return a picture in RGB; of 16 bits a colour, the upper 8 are kept. Raises PictureError."""
    if picture.mode == "F":
        raise PictureError("has floating-point values")
    if not picture.mode.startswith("I"):
        return picture.convert("RGB")
    values = np.asarray(picture).astype(np.int64)
    if values.min() < 0 or values.max() >= 1 << 16:
        raise PictureError("has values of more than 16 bits")
    return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")


def _orientation(picture: Image.Image) -> int:
    """Return the EXIF orientation of an open picture, 1 where it says none or cannot be read."""
    try:
        value = picture.getexif().get(_ORIENTATION, 1)
    except Exception:
        # A damaged EXIF block says nothing, and the picture is whole without it.
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


__all__ = ["Packed", "PictureError", "pack", "square_of", "upright"]
