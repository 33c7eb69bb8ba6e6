# SPDX-License-Identifier: Apache-2.0
"""JPEG files to pixels, and pictures to squares: what the packer and the loader share."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from aiperf_mpi.data import jpeg

DECODERS = [jpeg.with_pillow, jpeg.with_simplejpeg]


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """Return a photograph, uint8 [427, 640, 3]."""
    return np.asarray(load_sample_image("china.jpg"))


def file_of(pixels: np.ndarray, mode: str = "RGB", **options: object) -> bytes:
    """Return pixels as a JPEG file by Pillow, at high quality."""
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "JPEG", **{"quality": 95} | options)
    return file.getvalue()


def mean_difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(float) - other.astype(float)).mean())


FORMS = [
    {},
    {"progressive": True},
    {"subsampling": 0},
    {"subsampling": 1},
    {"keep_rgb": True},
    {"restart_marker_rows": 2},
    {"mode": "L"},
]


@pytest.mark.parametrize("options", FORMS, ids=str)
@pytest.mark.parametrize("at_least", [0, 1, 50, 100, 213, 214, 500])
def test_both_libraries_decode_to_the_same_pixels(
    picture: np.ndarray, options: dict[str, object], at_least: int
) -> None:
    data = file_of(picture, **options)  # type: ignore[arg-type]
    one, other = (decoder(data, at_least) for decoder in DECODERS)
    assert one.dtype == np.uint8 and np.array_equal(one, other)


def test_decoded_picture_is_the_picture(picture: np.ndarray) -> None:
    assert mean_difference(jpeg.decode(file_of(picture)), picture) < 4
    grey = np.asarray(Image.fromarray(picture).convert("L"))
    decoded = jpeg.decode(file_of(picture, "L"))
    assert decoded.shape == picture.shape and mean_difference(decoded, grey[:, :, None]) < 4


# 427 x 640 pixels: at 1/2, 1/4 and 1/8 the short side has 214, 107 and 54 pixels, rounded up; what it
# must have is compared with 213, 106 and 53, rounded down.
@pytest.mark.parametrize(
    ("at_least", "shape"), [(0, (427, 640)), (214, (427, 640)), (213, (214, 320)), (106, (107, 160))]
)
@pytest.mark.parametrize("decoder", DECODERS)
def test_scaled_decoding_keeps_the_short_side_large_enough(
    picture: np.ndarray, decoder: Callable[[bytes, int], np.ndarray], at_least: int, shape: tuple[int, int]
) -> None:
    assert decoder(file_of(picture), at_least).shape[:2] == shape


@pytest.mark.parametrize("decoder", DECODERS)
def test_cmyk_is_refused_by_name(picture: np.ndarray, decoder: Callable[[bytes], np.ndarray]) -> None:
    with pytest.raises(jpeg.UnusualError, match="CMYK"):
        decoder(file_of(picture, "CMYK"))


def test_a_warning_without_loss_is_unusual_not_damage(picture: np.ndarray) -> None:
    # The bytes after the first marker belong to nothing; libjpeg passes over them with a warning.
    data = file_of(picture)
    place = data.index(b"\xff\xdb")
    with pytest.raises(jpeg.UnusualError, match="extraneous bytes"):
        jpeg.with_simplejpeg(data[:place] + bytes(5) + data[place:])


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("part", [0.0, 0.001, 0.1, 0.5, 0.99])
def test_truncated_file_is_an_error(
    picture: np.ndarray, decoder: Callable[[bytes], np.ndarray], part: float
) -> None:
    data = file_of(picture)
    with pytest.raises(jpeg.PictureError):
        decoder(data[: int(part * len(data))])


def test_a_gap_before_the_end_marker_is_an_error(picture: np.ndarray) -> None:
    data = file_of(picture)
    with pytest.raises(jpeg.PictureError, match="premature end"):
        jpeg.with_simplejpeg(data[: len(data) // 2] + data[-2:])


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"\xff\xd8\xff\xe0", b"not a picture", bytes(1000)])
def test_what_is_not_a_picture_is_an_error(decoder: Callable[[bytes], np.ndarray], data: bytes) -> None:
    with pytest.raises(jpeg.PictureError):
        decoder(data)


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_picture_of_absurd_size_is_refused_before_it_is_decoded(
    decoder: Callable[[bytes], np.ndarray],
) -> None:
    # The header says 60,000 x 60,000 pixels: 10.8 GB if they were decoded.
    data = bytearray(file_of(np.zeros((16, 16, 3), np.uint8)))
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = (60_000).to_bytes(2, "big") * 2
    with pytest.raises(jpeg.PictureError, match="pixels"):
        decoder(bytes(data))


@pytest.mark.parametrize(("height", "width"), [(427, 640), (640, 427), (427, 427), (1, 1), (30, 12000)])
def test_fit_gives_a_square(picture: np.ndarray, height: int, width: int) -> None:
    pixels = np.resize(picture, (height, width, 3))
    square = jpeg.fit(pixels, 32)
    assert square.shape == (32, 32, 3) and square.dtype == np.uint8


def test_fit_takes_the_centre() -> None:
    # Three vertical stripes of 100 columns each: the centre crop has the middle one alone.
    stripes = np.repeat(np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8), 100, axis=1)
    wide = np.repeat(stripes, 100, axis=0)
    for pixels in (wide, wide.transpose(1, 0, 2)):
        assert (jpeg.fit(np.ascontiguousarray(pixels), 50)[2:-2, 2:-2] == [0, 255, 0]).all()


def test_fit_is_antialiased() -> None:
    # A board of single black and white pixels is grey at a fifth of its size, however it is sampled.
    board = np.indices((320, 320)).sum(axis=0) % 2 * np.uint8(255)
    square = jpeg.fit(np.repeat(board[:, :, None], 3, axis=2).astype(np.uint8), 64)
    assert np.abs(square.astype(int) - 127).max() <= 3


def test_fit_commutes_with_rotation(picture: np.ndarray) -> None:
    # Rows and columns are each rounded, by at most half a step, in both orders: 2 steps in all.
    turned = jpeg.fit(np.ascontiguousarray(np.rot90(picture)), 64).astype(int)
    assert np.abs(turned - np.rot90(jpeg.fit(picture, 64))).max() <= 2


def test_fit_leaves_a_square_of_the_right_side_alone(picture: np.ndarray) -> None:
    square = np.ascontiguousarray(picture[:256, :256])
    assert jpeg.fit(square, 256) is square


@pytest.mark.parametrize("library", ["simplejpeg", "Pillow alone"])
@pytest.mark.parametrize("size", [(64, 64), (64, 80), (20, 20), (300, 200)])
def test_square_is_decoded_into_its_place(
    picture: np.ndarray, library: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    if library == "Pillow alone":
        monkeypatch.setattr(jpeg, "simplejpeg", None)
    data = file_of(picture[: size[0], : size[1]])
    # Its neighbours in the batch stay as they are.
    batch = np.full((3, 64, 64, 3), 7, np.uint8)
    jpeg.decode_square(data, batch[1])
    assert np.array_equal(batch[1], jpeg.fit(jpeg.decode(data, 64), 64))
    assert (batch[[0, 2]] == 7).all()

    # What is not one piece of memory cannot be decoded in place.
    wide = np.full((64, 128, 3), 7, np.uint8)
    jpeg.decode_square(data, wide[:, :64])
    assert np.array_equal(wide[:, :64], batch[1]) and (wide[:, 64:] == 7).all()


def test_damaged_square_is_an_error(picture: np.ndarray) -> None:
    data = file_of(picture[:64, :64])
    with pytest.raises(jpeg.PictureError, match="Premature end"):
        jpeg.decode_square(data[: len(data) * 9 // 10], np.empty((64, 64, 3), np.uint8))


def test_encoded_picture_is_close_and_of_the_stated_size(picture: np.ndarray) -> None:
    square = jpeg.fit(picture, 256)
    data = jpeg.encode(square)
    assert jpeg.decode(data).shape == square.shape
    assert mean_difference(jpeg.decode(data), square) < 6
    assert 8_000 < len(data) < 40_000


def test_threads_decode_and_fit_alike(picture: np.ndarray) -> None:
    data = file_of(picture)
    squares: list[np.ndarray] = []
    threads = [
        threading.Thread(target=lambda: squares.append(jpeg.fit(jpeg.decode(data), 64))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(squares) == 8 and all(np.array_equal(squares[0], other) for other in squares)


def test_versions_name_the_libraries() -> None:
    assert set(jpeg.versions()) == {"simplejpeg", "pillow"}
    assert all(version[0].isdigit() for version in jpeg.versions().values())
