from __future__ import annotations

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from orchestrator.data.images import EXTENSIONS, Image, decode, decode_file, shrink
from tests.pictures import noise

RED, GREEN, BLUE = (200, 10, 20), (10, 200, 20), (10, 20, 200)


def quarters() -> Image:
    """Red and green above blue and white, 16 x 24."""
    image = np.full((16, 24, 3), 250, np.uint8)
    image[:8, :12], image[:8, 12:], image[8:, :12] = RED, GREEN, BLUE
    return image


def encoded(image: np.ndarray, extension: str = ".png") -> bytes:
    return cv2.imencode(extension, image[:, :, ::-1] if image.ndim == 3 else image)[1].tobytes()


@pytest.mark.parametrize("extension", sorted(EXTENSIONS))
def test_every_listed_kind_of_file_is_decoded_as_rgb(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"image{extension}"
    path.write_bytes(encoded(quarters(), extension))
    image = decode_file(str(path))
    assert image.shape == (16, 24, 3)
    assert image.dtype == np.uint8
    assert np.abs(image[2, 2].astype(int) - RED).max() < 25
    assert np.abs(image[13, 2].astype(int) - BLUE).max() < 25


def jpeg_with_orientation(orientation: int) -> bytes:
    plain = encoded(quarters(), ".jpg")
    entry = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
    tiff = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 1) + entry + b"\0\0\0\0"
    segment = b"Exif\0\0" + tiff
    return plain[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + plain[2:]


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [(1, lambda i: i), (2, np.fliplr), (3, lambda i: np.rot90(i, 2)), (6, lambda i: np.rot90(i, -1)), (8, np.rot90)],
)
def test_pictures_of_cameras_held_sideways_stand_upright(orientation: int, upright: object) -> None:
    assert callable(upright)
    expected = upright(decode(encoded(quarters(), ".jpg")))
    assert np.array_equal(decode(jpeg_with_orientation(orientation)), expected)


@pytest.mark.parametrize(
    "pixels",
    [np.full((4, 5), 77, np.uint8), np.full((4, 5), 77 * 257, np.uint16), np.full((4, 5, 4), 77, np.uint8)],
    ids=["grey", "16 bits", "alpha"],
)
def test_grey_deep_and_transparent_pictures_become_rgb(pixels: np.ndarray) -> None:
    image = decode(cv2.imencode(".png", pixels)[1].tobytes())
    assert image.shape == (4, 5, 3)
    assert image.dtype == np.uint8
    assert (image == 77).all()


def png_of(width: int, height: int) -> bytes:
    """A PNG that claims to have this size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"these are no pixels", "not an image that can be decoded"),
        (encoded(noise(9, 9))[:40], "not an image that can be decoded"),
        (png_of(100_000, 100_000), "not an image that can be decoded"),
    ],
    ids=["empty", "text", "truncated", "ten billion pixels"],
)
def test_what_is_no_image_is_a_value_error(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode(data)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (100, 200, (50, 100)),
        (200, 100, (100, 50)),
        (90, 61, (74, 50)),
        (50, 80, (50, 80)),
        (20, 30, (20, 30)),
        (60, 9000, (50, 7500)),
    ],
)
def test_images_shrink_to_the_short_side_and_never_grow(height: int, width: int, expected: tuple[int, int]) -> None:
    image = noise(height, width)
    stored = shrink(image, 50)
    assert stored.shape == (*expected, 3)
    assert stored.flags.c_contiguous
    assert np.abs(stored.mean((0, 1)) - image.mean((0, 1))).max() < 1
    assert np.array_equal(stored, image) == (min(height, width) <= 50)
