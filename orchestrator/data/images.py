"""From bytes to pixels: the one decode function, for every format and cache tier.

JPEG is decoded by libjpeg-turbo, plain PNG by OpenCV, all else (WebP, BMP, TIFF, GIF's first frame, alpha, 16 bits,
CMYK) by Pillow. Transparent parts become white. 16 bits are scaled as if the whole range was used, so that 12 bits
stored in 16 come out dark. 32-bit values (float, integer) have no agreed range and are refused.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import simplejpeg

from orchestrator.data.headers import MAX_PIXELS, Header, orientation_of, read_header, refuse_size
from trainables.augment import Fit as Fit
from trainables.augment import Image as Image

DECODE_VERSION = 2
"""Raised when the same bytes would give other pixels: caches made before are not used then."""

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})

TURNS = {
    1: (False, False, False),
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, True, False),
    7: (True, True, True),
    8: (True, False, True),
}
"""What makes an image of an EXIF orientation upright: transpose, then mirror in x, then in y."""

_NO_IMAGE = "not an image that can be decoded"
_PILLOW_KINDS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
_HARMLESS = ("extraneous bytes", "Invalid SOS parameters", "JFIF revision", "Adobe color transform")
"""Complaints of libjpeg about files that it decodes completely, as some cameras write them."""


@dataclass(frozen=True)
class Picture:
    """A decoded image.

    pixels: upright, maybe at reduced scale.
    height, width: of the upright image at full scale.
    orientation: EXIF's, 1 to 8, that the file has; the pixels no longer have it.
    """

    pixels: Image
    height: int
    width: int
    orientation: int

    @property
    def raw_size(self) -> tuple[int, int]:
        """(height, width) of the file's pixels, before they were turned upright."""
        transposed = TURNS[self.orientation][0]
        return (self.width, self.height) if transposed else (self.height, self.width)


def load_stored(content: bytes | Image, side: int, fit: Fit) -> Picture:
    """Decode what a format loads and shrink it to the stored size. Raises ValueError for what is no image."""
    if isinstance(content, np.ndarray):
        if content.dtype != np.uint8 or content.ndim != 3 or content.shape[2] != 3 or not content.size:
            raise ValueError(f"pixels must be (height, width, 3) uint8, not {content.shape} {content.dtype}")
        picture = Picture(content, content.shape[0], content.shape[1], 1)
    else:
        picture = open_image(content, side, fit)
    pixels = resize(picture.pixels, *store_size(picture.height, picture.width, side, fit))
    return Picture(pixels, picture.height, picture.width, picture.orientation)


def open_image(data: bytes, needed: int | None = None, fit: Fit = "short") -> Picture:
    """Decode an image file. Raises ValueError for what is no image, is cut off, or has more than MAX_PIXELS.

    needed: pixels that the short or long side (`fit`) must keep: a larger JPEG is decoded at 1/2, 1/4 or 1/8 scale,
    where its last row and column may stand for less than a whole pixel.
    """
    if not data:
        raise ValueError("the file is empty")
    header = read_header(data)
    if header is None or not header.plain:
        pixels, orientation = _decode_by_pillow(data)
        return Picture(pixels, pixels.shape[0], pixels.shape[1], orientation)
    pixels = _decode_jpeg(data, header, needed, fit) if header.kind == "jpeg" else _decode_png(data)
    transposed = TURNS[header.orientation][0]
    height, width = (header.width, header.height) if transposed else (header.height, header.width)
    return Picture(upright(pixels, header.orientation), height, width, header.orientation)


def stored_size(data: bytes) -> tuple[int, int]:
    """(height, width) of an image file's pixels as they are stored. Raises ValueError for what is no image."""
    if (header := read_header(data)) is not None:
        return header.height, header.width
    with _opened_by_pillow(data) as image:
        return image.height, image.width


def upright(pixels: Image, orientation: int) -> Image:
    """Undo an EXIF orientation, of pixels or of a mask."""
    transposed, flip_x, flip_y = TURNS[orientation]
    if transposed:
        pixels = cv2.transpose(pixels)  # type: ignore[assignment]
    if flip_x or flip_y:
        pixels = cv2.flip(pixels, -1 if flip_x and flip_y else int(flip_x))  # type: ignore[assignment]
    return pixels


def store_size(height: int, width: int, side: int, fit: Fit) -> tuple[int, int]:
    """(height, width) of an image whose short or long side is shrunk to `side`; a smaller one keeps its size."""
    factor = side / (min(height, width) if fit == "short" else max(height, width))
    if factor >= 1:
        return height, width
    return max(round(height * factor), 1), max(round(width * factor), 1)


def resize(pixels: Image, height: int, width: int) -> Image:
    """Shrink without aliasing, nearly as Pillow's BILINEAR does, at a quarter of its cost.

    By at most a half at a time: a blur over three pixels, whose width makes up for what the factor asks, and then
    linear interpolation.
    """
    while pixels.shape[:2] != (height, width):
        rows, columns = max(height, -(-pixels.shape[0] // 2)), max(width, -(-pixels.shape[1] // 2))
        size_y, sigma_y = _blur(pixels.shape[0] / rows)
        size_x, sigma_x = _blur(pixels.shape[1] / columns)
        if max(size_x, size_y) > 1:
            pixels = cv2.GaussianBlur(  # type: ignore[assignment]
                pixels, (size_x, size_y), sigma_x, sigmaY=sigma_y, borderType=cv2.BORDER_REPLICATE
            )
        pixels = cv2.resize(pixels, (columns, rows), interpolation=cv2.INTER_LINEAR)  # type: ignore[assignment]
    return np.ascontiguousarray(pixels)


def _blur(factor: float) -> tuple[int, float]:
    """Size and sigma of the blur before shrinking by a factor of at most 2.

    A triangle as wide as the factor has the variance factor² / 6, linear interpolation 1/6, and a blur by
    [a, 1 - 2a, a] the missing 2a.
    """
    a = (factor * factor - 1) / 12
    if a < 0.005:
        return 1, 1.0
    return 3, math.sqrt(-0.5 / math.log(a / (1 - 2 * a)))


def _decode_jpeg(data: bytes, header: Header, needed: int | None, fit: Fit) -> Image:
    height, width = header.height, header.width
    side = min(height, width) if fit == "short" else max(height, width)
    scale = next((s for s in (8, 4, 2) if needed and -(-side // s) >= needed), 1)
    smallest = {"min_height": -(-height // scale), "min_width": -(-width // scale)}
    try:
        return simplejpeg.decode_jpeg(data, "RGB", **smallest)  # type: ignore[no-any-return]
    except ValueError as error:
        if not any(complaint in str(error) for complaint in _HARMLESS):
            raise ValueError(f"a damaged JPEG: {error}") from error
    return simplejpeg.decode_jpeg(data, "RGB", strict=False, **smallest)  # type: ignore[no-any-return]


def _decode_png(data: bytes) -> Image:
    try:
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise ValueError(f"{_NO_IMAGE}: {error.err}") from error
    if pixels is None:
        raise ValueError(f"{_NO_IMAGE}: a damaged PNG")
    return pixels  # type: ignore[return-value]


def _decode_by_pillow(data: bytes) -> tuple[Image, int]:
    """Upright RGB pixels and the orientation that the file has."""
    with _opened_by_pillow(data) as image:
        if image.format == "TIFF":  # turned by Pillow while it loads
            return _rgb(image), orientation_of(data)
        pixels = _rgb(image)
        orientation = orientation_of(image.info.get("exif", b"").removeprefix(b"Exif\0\0"))
        return upright(pixels, orientation), orientation


@contextmanager
def _opened_by_pillow(data: bytes) -> Iterator[Any]:
    """The image before its pixels are read. Every failure inside becomes a ValueError."""
    import PIL.Image

    PIL.Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    try:
        with PIL.Image.open(io.BytesIO(data), formats=_PILLOW_KINDS) as image:
            refuse_size(image.height, image.width)
            yield image
    except PIL.UnidentifiedImageError as error:
        raise ValueError(_NO_IMAGE) from error
    except ValueError:
        raise
    except Exception as error:  # whatever a decoder stumbles on: OSError, SyntaxError, struct.error, IndexError, ...
        raise ValueError(f"{_NO_IMAGE}: {error}") from error


def _rgb(image: Any) -> Image:
    """A Pillow image as RGB."""
    import PIL.Image

    if image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.uint32)
        return np.repeat(((grey * 2 + 257) // 514).astype(np.uint8)[:, :, None], 3, axis=2)
    if image.mode in ("F", "I"):
        raise ValueError("32-bit values have no agreed range: save the image with 8 or 16 bits")
    if image.has_transparency_data:
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return np.array(image.convert("RGB"))
