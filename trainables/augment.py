"""Geometry of the views that a model sees, on uint8 images with OpenCV, which releases the GIL."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, Self

import cv2
import numpy as np

from trainables.recipe import Recipe

cv2.setNumThreads(0)  # the loader's threads each take an image; OpenCV's own pool would fight with them

Image = np.ndarray[Any, np.dtype[np.uint8]]
"""(height, width, 3) RGB."""

Fit = Literal["short", "long"]
"""Which side of an image a view at zoom 1 is as long as: "short" fills the view, "long" shows the whole image."""

FITS: dict[str, Fit] = {"classify": "short", "detect": "long", "segment": "long"}
"""By task: a class shows in a part of the image, but every object must be in the view."""

DRAWS = 9
"""Random numbers that one training view takes: zoom, x, y, two flips, brightness, contrast, saturation, hue."""

_GREY = 114
_EXACT_BELOW = 64
"""Windows of at most so many pixels are sampled at sub-pixel positions: there a rounded pixel is a visible shift."""
_ALIASING = 1.5
"""Bilinear sampling aliases where it shrinks by more: such images are halved first."""


@dataclass(frozen=True)
class Window:
    """The square of an image that a view shows, in pixels of the image, and how the view is mirrored."""

    left: float
    top: float
    side: float
    flip_x: bool = False
    flip_y: bool = False


@dataclass(frozen=True)
class Augmentation:
    """What changes from view to view; the settings of `Recipe` with these names."""

    scale: float = 0.0
    fliplr: float = 0.0
    flipud: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    @classmethod
    def of(cls, recipe: Recipe) -> Self:
        return cls(**{field.name: getattr(recipe, field.name) for field in fields(cls)})

    @property
    def colours(self) -> bool:
        return any((self.brightness, self.contrast, self.saturation, self.hue))

    @property
    def draws(self) -> int:
        """How many of the DRAWS are looked at."""
        return DRAWS if self.colours else 5

    @property
    def is_still(self) -> bool:
        """Whether every view of a square image is the same."""
        return not (self.scale or self.fliplr or self.flipud or self.colours)


def train_view(image: Image, out: Image, how: Augmentation, draws: np.ndarray[Any, Any], fit: Fit = "short") -> Window:
    """Fill `out` (size, size, 3) with a random view: zoomed by 1 - scale to 1 + scale, placed at random, mirrored.

    At zoom 1 the window is as long as the side of the image that `fit` names. A window that reaches beyond the image
    shows grey there.
    """
    zoom, x, y, mirror_x, mirror_y = (float(d) for d in draws[:5])
    height, width = image.shape[:2]
    side = _side(height, width, fit) / (1 + how.scale * (2 * zoom - 1))
    # the same formula places a smaller window in the image and the image in a larger window
    left, top, side = view(image, out, (width - side) * x, (height - side) * y, side)
    window = Window(left, top, side, mirror_x < how.fliplr, mirror_y < how.flipud)
    if window.flip_x or window.flip_y:
        cv2.flip(out, (0 if not window.flip_x else 1 if not window.flip_y else -1), dst=out)
    if how.colours:
        cv2.transform(out, _colour_matrix(how, draws[5:]), dst=out)
    return window


def center_view(image: Image, out: Image, fit: Fit = "short") -> Window:
    """Fill `out` with the centred square of the image: what validation and prediction see."""
    height, width = image.shape[:2]
    side = _side(height, width, fit)
    return Window(*view(image, out, (width - side) / 2, (height - side) / 2, side))


def _side(height: int, width: int, fit: Fit) -> int:
    return min(height, width) if fit == "short" else max(height, width)


def _colour_matrix(how: Augmentation, draws: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """(3, 4): all four jitters as one affine map of RGB in 0..255.

    Brightness and contrast are factors in 1 - b .. 1 + b, contrast around middle grey, saturation a blend with the
    luma of ITU-R BT.601, hue a rotation of the chroma plane of YIQ by up to `hue` turns.
    """
    brightness, contrast, saturation = (
        1 + limit * (2 * float(draw) - 1)
        for limit, draw in zip((how.brightness, how.contrast, how.saturation), draws[:3], strict=True)
    )
    angle = 2 * np.pi * how.hue * (2 * float(draws[3]) - 1)
    cos, sin = saturation * np.cos(angle), saturation * np.sin(angle)
    chroma = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    factor = brightness * contrast
    linear = factor * (_FROM_YIQ @ chroma @ _TO_YIQ)
    return np.hstack([linear, np.full((3, 1), 127.5 * (1 - contrast))])


_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_FROM_YIQ = np.linalg.inv(_TO_YIQ)


def view(image: Image, out: Image, left: float, top: float, window: float) -> tuple[float, float, float]:
    """Resize the square of side `window` whose corner is (left, top), in pixels of `image`, into `out`.

    Returns left, top and side as they were drawn: large windows go to whole pixels.
    """
    size, halvings = out.shape[0], 1
    while window > _ALIASING * size:
        image, halvings = _halved(image), halvings * 2
        left, top, window = left / 2, top / 2, window / 2
    if window <= _EXACT_BELOW:
        _sample(image, out, left, top, window)
    else:
        left, top, window = round(left), round(top), round(window)
        _paste(image, out, left, top, window)
    return left * halvings, top * halvings, window * halvings


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
    if left == top == 0 and height == width == window == size:
        np.copyto(out, image)
        return
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + window, width), min(top + window, height)
    u0, v0, u1, v1 = (round((c - o) * size / window) for c, o in ((x0, left), (y0, top), (x1, left), (y1, top)))
    if (u0, v0, u1, v1) != (0, 0, size, size):
        out[:] = _GREY
    target = out[v0:v1, u0:u1]
    if target.size:
        cv2.resize(image[y0:y1, x0:x1], (u1 - u0, v1 - v0), dst=target, interpolation=cv2.INTER_LINEAR)
