"""Geometry of the views that a model sees, on uint8 images with OpenCV, which releases the GIL."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

cv2.setNumThreads(0)  # the loader's threads each take an image; OpenCV's own pool would fight with them

Image = np.ndarray[Any, np.dtype[np.uint8]]
"""(height, width, 3) RGB."""

DRAWS = 4
"""Random numbers that one training view takes: zoom, x, y, flip."""

_GREY = 114
_EXACT_BELOW = 64
"""Windows of at most so many pixels are sampled at sub-pixel positions: there a rounded pixel is a visible shift."""
_ALIASING = 1.5
"""Bilinear sampling aliases where it shrinks by more: such images are halved first."""


def train_view(image: Image, out: Image, scale: float, fliplr: float, draws: np.ndarray[Any, Any]) -> None:
    """Fill `out` (imgsz, imgsz, 3) with a random view: zoomed by 1 - scale to 1 + scale, placed at random, mirrored.

    A zoom of 1 shows a square as long as the image's short side. A window larger than the image shows grey around it.
    """
    zoom_draw, x_draw, y_draw, flip_draw = (float(d) for d in draws)
    height, width = image.shape[:2]
    window = min(height, width) / (1 + scale * (2 * zoom_draw - 1))
    # the same formula places a smaller window in the image and the image in a larger window
    view(image, out, (width - window) * x_draw, (height - window) * y_draw, window)
    if flip_draw < fliplr:
        cv2.flip(out, 1, dst=out)


def center_view(image: Image, out: Image) -> None:
    """Fill `out` with the centred square of the image: what validation and prediction see."""
    height, width = image.shape[:2]
    window = min(height, width)
    view(image, out, (width - window) / 2, (height - window) / 2, window)


def view(image: Image, out: Image, left: float, top: float, window: float) -> None:
    """Resize the square of side `window` whose corner is (left, top), in pixels of `image`, into `out`."""
    size = out.shape[0]
    while window > _ALIASING * size:
        image = _halved(image)
        left, top, window = left / 2, top / 2, window / 2
    if window <= _EXACT_BELOW:
        _sample(image, out, left, top, window)
    else:
        _paste(image, out, round(left), round(top), round(window))


def _halved(image: Image) -> Image:
    """Half the size to the pixel, also of odd sides: padded to even ones, which makes it ten times faster too."""
    height, width = image.shape[:2]
    even = cv2.copyMakeBorder(image, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
    half = (even.shape[1] // 2, even.shape[0] // 2)
    return cv2.resize(even, half, interpolation=cv2.INTER_AREA)  # type: ignore[return-value]


def _sample(image: Image, out: Image, left: float, top: float, window: float) -> None:
    step = window / out.shape[0]
    # OpenCV's coordinates are pixel centres: output centre (i + 0.5) lies at left + (i + 0.5) * step
    matrix = np.array([[step, 0, left + 0.5 * step - 0.5], [0, step, top + 0.5 * step - 0.5]])
    border: dict[str, Any] = {"borderMode": cv2.BORDER_CONSTANT, "borderValue": (_GREY,) * 3}
    inside = left >= 0 and top >= 0 and left + window <= image.shape[1] and top + window <= image.shape[0]
    if inside:
        border = {"borderMode": cv2.BORDER_REPLICATE}
    cv2.warpAffine(image, matrix, out.shape[1::-1], dst=out, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, **border)


def _paste(image: Image, out: Image, left: int, top: int, window: int) -> None:
    height, width = image.shape[:2]
    size = out.shape[0]
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + window, width), min(top + window, height)
    u0, v0, u1, v1 = (round((c - o) * size / window) for c, o in ((x0, left), (y0, top), (x1, left), (y1, top)))
    if (u0, v0, u1, v1) != (0, 0, size, size):
        out[:] = _GREY
    target = out[v0:v1, u0:u1]
    if target.size:
        cv2.resize(image[y0:y1, x0:x1], (u1 - u0, v1 - v0), dst=target, interpolation=cv2.INTER_LINEAR)
