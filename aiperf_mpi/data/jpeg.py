# SPDX-License-Identifier: Apache-2.0
"""JPEG files to pixels and back, and pictures to squares: the same for the packer and for the loader.

simplejpeg (libjpeg-turbo) decodes if it is installed, else Pillow, which takes about a third longer; both
give the same pixels. All functions here may run in several threads: the libraries release Python's lock.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from PIL import Image

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

T = TypeVar("T")

# Pillow warns without the name of the picture, and a site may have told Python to raise every warning.
warnings.filterwarnings("ignore", module=r"PIL\.")

#: Most pixels of a picture: the largest of ImageNet has 61 million. A decoder takes some 8 bytes for each.
MOST_PIXELS = 80 << 20

#: Quality of a picture that is encoded here. At 90, with colours at half the resolution, a picture of
#: 256 x 256 pixels has about 20 KB; the loss is small against that of the source's own encoding.
QUALITY = 90

#: Scales at which a decoder can leave fine details out, at less work.
_FACTORS = (8, 4, 2)

#: Colour spaces of a JPEG that become RGB without a profile.
_ORDINARY = ("Gray", "YCbCr", "RGB")

#: Warnings of libjpeg about an odd encoder, not about content that is lost.
_HARMLESS = re.compile(
    r"extraneous bytes before marker|Invalid SOS parameters|Unknown Adobe color transform|"
    r"Inconsistent progression sequence|Unrecognized component IDs"
)

#: An object as Python shows it, with its place in memory, which differs in every process.
_OBJECT = re.compile(r" ?<[^<>]* at 0x[0-9a-f]+>")


class PictureError(ValueError):
    """A picture cannot be decoded; the text says why, without the picture's name."""


class UnusualError(PictureError):
    """A JPEG file that only the packer takes, by Pillow: of another colour space, or of an odd encoder."""


def versions() -> dict[str, str]:
    """Return the version of each library that decodes, resizes or encodes here."""
    pillow = {"pillow": Image.__version__}
    return pillow if simplejpeg is None else {"simplejpeg": simplejpeg.__version__, **pillow}


def sees_warnings() -> bool:
    """Whether `decode` rejects a file of which libjpeg warns. Pillow takes it, and simplejpeg does not."""
    return simplejpeg is not None


def decode(data: bytes | memoryview, at_least: int = 0) -> np.ndarray:
    """Return the pixels of a JPEG file, uint8 [height, width, 3] in RGB, as they are stored.

    With `at_least`, a larger picture is decoded at 1/2, 1/4 or 1/8 of its size, as long as its short side
    then has that many pixels. A grey picture has three equal colours. Raises PictureError for a damaged or
    truncated file and for more than MOST_PIXELS, and UnusualError for what is not an ordinary JPEG.
    """
    decoder = with_pillow if simplejpeg is None else with_simplejpeg
    return decoder(data, at_least)


def decode_square(data: bytes | memoryview, out: np.ndarray) -> None:
    """Decode a JPEG file into a square, uint8 [side, side, 3], and fit it where it has another size.

    What has that size already is decoded in place: new memory for its pixels would cost as much as a fifth
    of the decoding. Raises as :func:`decode`; `out` has anything then.
    """
    side = len(out)
    pixels = decode(data, side) if simplejpeg is None else with_simplejpeg(data, side, out)
    if not np.may_share_memory(pixels, out):
        out[...] = fit(pixels, side)


def with_simplejpeg(data: bytes | memoryview, at_least: int = 0, out: np.ndarray | None = None) -> np.ndarray:
    """Decode by simplejpeg, see :func:`decode`. Every warning of the library is an error.

    The pixels are in `out` if they have its size exactly, and `at_least` does not reduce them.
    """
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        check_size(width, height)
        _check_colours(colours)
        factor = _factor(height, width, at_least)
        fits = factor == 1 and out is not None and out.shape == (height, width, 3) and out.flags.c_contiguous
        pixels: np.ndarray = simplejpeg.decode_jpeg(
            data,
            "RGB",
            min_height=-(-height // factor),
            min_width=-(-width // factor),
            min_factor=factor,
            buffer=out if fits else None,
        )
    except PictureError:
        raise
    except (ValueError, TypeError) as error:
        kind = UnusualError if _HARMLESS.search(str(error)) else PictureError
        raise kind(_reason(error)) from None
    return pixels


def with_pillow(data: bytes | memoryview, at_least: int = 0) -> np.ndarray:
    """Decode by Pillow, see :func:`decode`. A file with an end but a gap before it passes as whole."""
    with opened(data, ("JPEG",)) as picture:
        _check_colours({"L": "Gray", "RGB": "RGB"}.get(picture.mode, picture.mode))
        factor = _factor(picture.height, picture.width, at_least)
        if factor > 1:
            picture.draft("RGB", (picture.width // factor, picture.height // factor))
        return pixels_of(picture)


def opened(data: bytes | memoryview, formats: tuple[str, ...] | None = None) -> Image.Image:
    """Return a picture that Pillow has opened, but not yet decoded. Raises PictureError."""

    def open_it() -> Image.Image:
        return Image.open(io.BytesIO(data), formats=formats)

    picture = of_pillow(open_it)
    check_size(picture.width, picture.height)
    return picture


def pixels_of(picture: Image.Image) -> np.ndarray:
    """Return the pixels of an open picture, uint8 [height, width, 3] in RGB. Raises PictureError."""
    return of_pillow(lambda: np.asarray(picture.convert("RGB")))


def check_size(width: int, height: int) -> None:
    """Raise PictureError for a picture with more than MOST_PIXELS."""
    if width * height > MOST_PIXELS:
        raise PictureError(f"{width} x {height} pixels, more than {MOST_PIXELS}")


def fit(pixels: np.ndarray, side: int) -> np.ndarray:
    """Return a picture as a square, uint8 [side, side, 3]: its short side scaled to `side`, centre crop.

    The filter is bilinear with antialiasing. A picture that is such a square already comes back as it is.
    """
    if pixels.shape[:2] == (side, side):
        return pixels
    return np.asarray(fit_picture(Image.fromarray(pixels), side))


def fit_picture(picture: Image.Image, side: int) -> Image.Image:
    """Return a picture of Pillow, in RGB, as a square, see :func:`fit`."""
    if picture.size == (side, side):
        return picture
    short = min(picture.width, picture.height)
    left, top = (picture.width - short) / 2, (picture.height - short) / 2
    box = (left, top, left + short, top + short)
    return picture.resize((side, side), Image.Resampling.BILINEAR, box=box)


def encode(pixels: np.ndarray) -> bytes:
    """Return a picture, uint8 [height, width, 3] in RGB, as a JPEG file of QUALITY."""
    if simplejpeg is not None:
        return bytes(
            simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), QUALITY, "RGB", "420", fastdct=False)
        )
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=QUALITY, subsampling="4:2:0")
    return file.getvalue()


def _factor(height: int, width: int, at_least: int) -> int:
    """Return by what a picture may be reduced so that its short side has `at_least` pixels."""
    short = min(height, width)
    return next((factor for factor in _FACTORS if at_least and short // factor >= at_least), 1)


def _check_colours(colours: str) -> None:
    if colours not in _ORDINARY:
        raise UnusualError(f"a JPEG of the colour space {colours}, not RGB or grey")


def of_pillow(function: Callable[[], T]) -> T:
    """Return what a function of Pillow returns; all its errors become a PictureError."""
    try:
        return function()
    except MemoryError:
        raise
    except Exception as error:
        raise PictureError(_reason(error)) from None


def _reason(error: Exception) -> str:
    """Return the first line of a library's error, the same in every process: manifests have it."""
    lines = _OBJECT.sub("", str(error)).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
