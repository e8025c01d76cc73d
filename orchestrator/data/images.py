"""From bytes to pixels: the one decode function, for every format and cache tier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

DECODE_VERSION = 1
"""Raised when the same bytes would give other pixels: caches made before are not used then."""

Image = np.ndarray[Any, np.dtype[np.uint8]]
"""(height, width, 3) RGB."""

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})


def decode_file(path: str) -> Image:
    """Read and decode an image file. Raises OSError or ValueError."""
    return decode(Path(path).read_bytes())


def decode(data: bytes) -> Image:
    """RGB pixels, upright by the EXIF orientation. Raises ValueError for what is no image."""
    if not data:
        raise ValueError("the file is empty")
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error as error:  # as for more than a billion pixels
        raise ValueError(f"not an image that can be decoded: {error.err}") from error
    if pixels is None:
        raise ValueError("not an image that can be decoded")
    return pixels  # type: ignore[return-value]


def shrink(image: Image, short_side: int) -> Image:
    """Resize so that the shorter side has `short_side` pixels; a smaller image stays as it is."""
    height, width = image.shape[:2]
    factor = short_side / min(height, width)
    if factor >= 1:
        return np.ascontiguousarray(image)
    size = (max(round(width * factor), 1), max(round(height * factor), 1))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)  # type: ignore[return-value]
