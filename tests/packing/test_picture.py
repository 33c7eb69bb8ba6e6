# SPDX-License-Identifier: Apache-2.0
"""One picture to what a shard stores: oddities of ImageNet and of other sets, and what is rejected."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_image

from aiperf_mpi.data import jpeg
from aiperf_mpi.data.manifest import JPEG, RAW
from aiperf_mpi.packing import picture as packing

SIDE = 64


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """Return a photograph of 320 x 214 pixels."""
    return Image.fromarray(load_sample_image("flower.jpg")).resize((320, 214))


def file_of(picture: Image.Image, form: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(float) - other.astype(float)).mean())


def square(data: bytes) -> np.ndarray:
    return np.asarray(packing.square_of(data, SIDE)[0])


def expected(picture: Image.Image) -> np.ndarray:
    return jpeg.fit(np.asarray(picture.convert("RGB")), SIDE)


@pytest.mark.parametrize("form", ["PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "JPEG"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "RGBA", "LA"])
def test_every_format_and_mode_becomes_rgb(photo: Image.Image, form: str, mode: str) -> None:
    picture = photo.convert(mode)
    try:
        data = file_of(picture, form)
    except OSError:
        pytest.skip(f"{form} has no mode {mode}")
    assert difference(square(data), expected(picture)) < 6


@pytest.mark.parametrize("adobe", [True, False])
def test_cmyk_becomes_rgb(photo: Image.Image, adobe: bool) -> None:
    # Pillow writes CMYK as Adobe does, inverted and with a marker; without it the values are as they are.
    data = file_of(photo.convert("CMYK"))
    if not adobe:
        place = data.index(b"\xff\xee")
        data = data[:place] + data[place + 2 + int.from_bytes(data[place + 2 : place + 4], "big") :]
    assert square(data).shape == (SIDE, SIDE, 3)
    if adobe:
        assert difference(square(data), expected(photo)) < 6


def test_16_bit_png_keeps_the_upper_bits() -> None:
    values = np.linspace(0, 65535, 80 * 80).astype(np.uint16).reshape(80, 80)
    data = file_of(Image.fromarray(values), "PNG")
    grey = Image.fromarray((values >> 8).astype(np.uint8))
    assert np.array_equal(square(data), expected(grey))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_picture_is_upright_by_exif(photo: Image.Image, orientation: int, form: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = file_of(photo, form, exif=exif)
    turned = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert difference(square(data), expected(turned)) < 1
    # A turned file is not stored as it is: the loader does not look at EXIF.
    assert packing.square_of(data, 256)[1] == (form == "JPEG" and orientation == 1)


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_orientation_without_meaning_is_upright(photo: Image.Image, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(square(file_of(photo, exif=exif)), square(file_of(photo)))


def test_exif_is_found_among_segments_and_not_in_pixels(photo: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = file_of(photo, exif=exif)
    upright, turned = square(file_of(photo)), square(data)
    # A comment that has the marker of pixels, and two bytes that fill, before the block of EXIF.
    comment = b"\xff\xfe" + (2 + 4).to_bytes(2, "big") + b"\xff\xda??"
    assert np.array_equal(square(data[:2] + comment + b"\xff\xff" + data[2:]), turned)
    # The letters of EXIF after the end of the file do not count.
    assert np.array_equal(square(file_of(photo) + data[data.index(b"Exif") :]), upright)


def test_damaged_exif_is_left_aside(photo: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = bytearray(file_of(photo, exif=exif))
    place = data.index(b"Exif\0\0") + 6
    data[place : place + 12] = b"\xff" * 12
    assert difference(square(bytes(data)), expected(photo)) < 6


def test_wrong_extension_does_not_matter_and_png_is_read_as_png(photo: Image.Image) -> None:
    assert np.array_equal(square(file_of(photo, "PNG")), expected(photo))


@pytest.mark.parametrize(("width", "height"), [(1, 1), (12000, 30), (30, 12000), (2, 3)])
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_smallest_and_longest_pictures_are_fitted(width: int, height: int, form: str) -> None:
    data = file_of(Image.new("RGB", (width, height), (200, 100, 50)), form)
    assert difference(square(data), np.full((SIDE, SIDE, 3), (200, 100, 50))) < 2


def test_large_jpeg_is_scaled_while_it_is_decoded(photo: Image.Image) -> None:
    large = photo.resize((1600, 1070))
    assert difference(square(file_of(large, quality=95)), expected(large)) < 2


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "WEBP", "BMP"])
@pytest.mark.parametrize("part", [0.02, 0.5, 0.95])
def test_truncated_picture_is_rejected(photo: Image.Image, form: str, part: float) -> None:
    data = file_of(photo, form)
    with pytest.raises(packing.PictureError):
        square(data[: int(part * len(data))])


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8", b"text", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"GIF89a", bytes(99)]
)
def test_what_is_not_a_picture_is_rejected_with_a_reason(data: bytes) -> None:
    with pytest.raises(packing.PictureError, match=r"[a-z]{3}"):
        square(data)


def test_a_bomb_is_rejected_before_it_is_decoded() -> None:
    # 30,000 x 30,000 pixels of one bit: 110 KB as PNG, 2.7 GB as pixels.
    data = file_of(Image.new("1", (30_000, 30_000)), "PNG")
    with pytest.raises(packing.PictureError, match="pixels"):
        square(data)


def test_floating_point_picture_is_rejected() -> None:
    data = file_of(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF")
    with pytest.raises(packing.PictureError, match="floating-point"):
        square(data)


def test_small_ordinary_jpeg_is_stored_as_it_is(photo: Image.Image) -> None:
    data = file_of(photo)
    packed = packing.pack(data, 256, JPEG, True)
    assert packed.data == data
    # The loader makes the same square of the file.
    square = jpeg.fit(jpeg.decode(packed.data), 256)
    assert np.array_equal(square, np.asarray(packing.square_of(data, 256)[0]))
    assert np.array_equal(packed.histogram @ np.arange(256), square.sum(axis=(0, 1)))


def large(photo: Image.Image) -> bytes:
    return file_of(photo.resize((600, 400)))


def long(photo: Image.Image) -> bytes:
    return file_of(photo.resize((1200, 60)))


def noise(photo: Image.Image) -> bytes:
    return file_of(
        Image.effect_noise((60, 60), 200).convert("RGB"), quality=100, subsampling=0, comment=b"x" * 60_000
    )


@pytest.mark.parametrize("make", [large, long, noise])
def test_other_jpeg_is_fitted_and_encoded_once(photo: Image.Image, make: object) -> None:
    data = make(photo)  # type: ignore[operator]
    packed = packing.pack(data, 128, JPEG, False)
    assert packed.data != data and jpeg.decode(packed.data).shape == (128, 128, 3)
    assert not packed.histogram.any()


@pytest.mark.parametrize("kind", ["whole", "gap", "extraneous"])
def test_what_pillow_alone_packs_is_read_by_simplejpeg(
    photo: Image.Image, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host that packs may lack simplejpeg, and Pillow does not tell that libjpeg warns of a file."""
    data = file_of(photo)
    place = data.index(b"\xff\xdb")
    odd = {"gap": data[: len(data) // 2] + data[-2:], "extraneous": data[:place] + bytes(3) + data[place:]}
    with monkeypatch.context() as patch:
        patch.setattr(jpeg, "simplejpeg", None)
        stored = packing.pack(odd.get(kind, data), 256, JPEG, True).data
    jpeg.decode_square(stored, np.empty((256, 256, 3), np.uint8))


def test_raw_picture_is_its_pixels(photo: Image.Image) -> None:
    packed = packing.pack(file_of(photo), SIDE, RAW, True)
    pixels = np.frombuffer(packed.data, np.uint8).reshape(SIDE, SIDE, 3)
    assert np.array_equal(pixels, square(file_of(photo)))
    counts = packed.histogram @ np.arange(256)
    assert np.array_equal(counts, pixels.reshape(-1, 3).sum(axis=0, dtype=np.int64))
