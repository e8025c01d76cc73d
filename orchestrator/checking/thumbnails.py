"""Small pictures of samples with their boxes and masks, as they stand inline in the page of `orchestrator check`."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import simplejpeg

from orchestrator.checking.look import Box, Load, picture_of
from orchestrator.data import masks
from orchestrator.data.images import Image
from orchestrator.data.objects import Frame, Objects, resolve
from trainables.contracts import Sample

SIDE, SMALLEST = 168, 84
"""The long side of a thumbnail in pixels, and what smaller images are enlarged to, by a whole factor."""
QUALITY = 80
MARK, OTHER, WRONG = (255, 122, 0), (255, 255, 255), (230, 0, 60)
"""Colours of what the picture is about, of other objects, and of what is wrong."""
SMALL, ROOM = 0.12, 4
"""An object below this share of the image's long side is shown with only so many times its own size around it."""

CROWDED = 8
"""Of more objects the boxes are drawn thin."""

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class View:
    """A window of an image, in its full-scale pixels, and the pixels per pixel that it is drawn with."""

    left: float
    top: float
    width: float
    height: float
    scale: float

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the thumbnail."""
        return max(round(self.width * self.scale), 1), max(round(self.height * self.scale), 1)

    def at(self, points: Array) -> Array:
        """Points (n, 2) of the image in the thumbnail, rounded to pixels."""
        return np.round((points - (self.left, self.top)) * self.scale).astype(np.int32)


def thumbnail(sample: Sample, load: Load, frame: Frame, label: int | None = None, box: Box | None = None) -> str | None:
    """A data URI of the sample, or None where it cannot be read.

    label: the class whose objects are marked; the others are drawn thin. box: something wrong, marked in red.
    """
    try:
        content = load(sample.image)
        picture = picture_of(content, None if sample.objects else 2 * SIDE)
    except (OSError, ValueError):
        return None
    size = picture.height, picture.width
    objects = resolve(sample, picture.raw_size, picture.orientation, frame)[0] if sample.objects else None
    view = _view(size, None if objects is None else _focus(objects, label, box))
    pixels = _cut(picture.pixels, size, view)
    if objects is not None:
        for marked in (False, True):
            for i in np.flatnonzero((objects.labels == label) == marked):
                _draw(pixels, objects, int(i), view, MARK if marked or label is None else OTHER)
    if box is not None:
        _rectangle(pixels, np.array(box), view, WRONG, 3)
    data = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()


def _focus(objects: Objects, label: int | None, box: Box | None) -> Array | None:
    """The box to be seen: the one that is wrong, or the largest of the class."""
    if box is not None:
        return np.array(box)
    boxes = objects.boxes[objects.labels == label].astype(np.float64)
    return boxes[(boxes[:, 2:] - boxes[:, :2]).max(1).argmax()] if len(boxes) else None


def _view(size: tuple[int, int], focus: Array | None) -> View:
    """The whole image, or a square around a focus that would be too small in it."""
    height, width = size
    long = max(size)
    if focus is not None and (side := float((focus[2:] - focus[:2]).max())) < SMALL * long and long > SIDE:
        window = min(max(ROOM * side, SIDE / 3), *size)
        left, top = ((focus[:2] + focus[2:]) / 2 - window / 2).clip(0, (width - window, height - window)).round()
        return View(float(left), float(top), window, window, SIDE / window)
    scale = SIDE / long if long > SIDE else 1.0 if long >= SMALLEST else -(-SMALLEST // long)
    return View(0, 0, width, height, scale)


def _cut(pixels: Image, size: tuple[int, int], view: View) -> Array:
    """The window as a thumbnail. `size`: (height, width) of the image at full scale, which `pixels` may not have."""
    y, x = pixels.shape[0] / size[0], pixels.shape[1] / size[1]
    top, left = round(view.top * y), round(view.left * x)
    part = pixels[top : max(round((view.top + view.height) * y), top + 1)]
    part = part[:, left : max(round((view.left + view.width) * x), left + 1)]
    smaller = view.size[0] < part.shape[1]
    method = cv2.INTER_AREA if smaller else cv2.INTER_NEAREST if view.scale > ROOM else cv2.INTER_CUBIC
    return np.array(cv2.resize(part, view.size, interpolation=method))


def _draw(pixels: Array, objects: Objects, i: int, view: View, color: tuple[int, int, int]) -> None:
    encoded = objects.masks[i] if objects.masks else b""
    if not encoded:
        _rectangle(pixels, objects.boxes[i], view, color, 2 if color == MARK and len(objects) <= CROWDED else 1)
        return
    mask = np.zeros(pixels.shape[:2], np.uint8)
    masks.draw(masks.decode(encoded), mask, view.scale, view.left, view.top)
    if color == MARK:
        pixels[mask > 0] = (pixels[mask > 0] * 0.65 + np.array(color) * 0.35).astype(np.uint8)
    outline, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(pixels, outline, -1, color, 1, cv2.LINE_AA)


def _rectangle(pixels: Array, box: Array, view: View, color: tuple[int, int, int], thickness: int) -> None:
    (x0, y0), (x1, y1) = view.at(box.reshape(2, 2)).tolist()
    cv2.rectangle(pixels, (x0, y0), (max(x1 - 1, x0), max(y1 - 1, y0)), color, thickness)
