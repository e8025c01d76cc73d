"""Boxes, masks and names drawn into an image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from orchestrator.plots.canvas import Array, font

COLORS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#D55E00", "#CC79A7", "#0072B2")
"""By class, in turns: the palette of Okabe and Ito (2008) without black; first what is seen best on photos."""
CROWD = "#B0B0B0"
SHADE = 0.35
"""How much of its colour a mask lays over the image."""
CROWDED = 40
"""Of more objects the lines are thin."""
TEXT = 11
"""Height of names in pixels."""
COVERED = 0.15
"""Names cover at most this share of the image."""


@dataclass(frozen=True)
class Marks:
    """What is to be drawn, in pixels of the picture, what matters most first.

    boxes: (n, 4) xyxy. colors: RGB of each. captions: of each, may be empty.
    masks: (height, width) uint8 of each, 1 on the object, or None for a box only; may be made as they are asked for.
    """

    boxes: Array
    colors: Sequence[tuple[int, int, int]]
    captions: Sequence[str]
    masks: Iterable[Array | None] | None = None


def color_of(label: int) -> tuple[int, int, int]:
    """RGB of a class."""
    return rgb(COLORS[label % len(COLORS)])


def rgb(color: str) -> tuple[int, int, int]:
    """ "#0072B2" as (0, 114, 178)."""
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def draw_marks(picture: Array, marks: Marks) -> Array:
    """A copy of (height, width, 3) RGB uint8 with the objects on it.

    A name that would cover another one is left out, and so are all further ones where names cover too much.
    """
    picture = np.ascontiguousarray(picture).copy()
    wide = 1 if len(marks.boxes) > CROWDED or min(picture.shape[:2]) < 160 else 2
    for mask, color in zip(marks.masks or (), marks.colors, strict=False):
        if mask is not None:
            _shade(picture, mask, color)
    thin = 1 if marks.masks is not None else wide  # there the outline of the mask is what counts
    for box, color in reversed(list(zip(marks.boxes, marks.colors, strict=True))):
        _rectangle(picture, box, color, thin)
    return _write(picture, marks)


def _shade(picture: Array, mask: Array, color: tuple[int, int, int]) -> None:
    left, top, width, height = cv2.boundingRect(mask)
    if not width:
        return
    part, inside = picture[top : top + height, left : left + width], mask[top : top + height, left : left + width]
    part[inside > 0] = (part[inside > 0] * (1 - SHADE) + np.array(color) * SHADE).astype(np.uint8)
    outlines, _ = cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, outlines, -1, color, 1, cv2.LINE_8, offset=(left, top))


def _rectangle(picture: Array, box: Array, color: tuple[int, int, int], wide: int) -> None:
    x0, y0, x1, y1 = _corners(box, picture.shape)
    if wide > 1:  # a dark rim, so that the line is seen on any ground
        cv2.rectangle(picture, (x0 - 1, y0 - 1), (x1 + 1, y1 + 1), (0, 0, 0), 1)
    cv2.rectangle(picture, (x0, y0), (x1, y1), color, 1)
    if wide > 1:
        cv2.rectangle(picture, (x0 + 1, y0 + 1), (max(x1 - 1, x0), max(y1 - 1, y0)), color, 1)


def _corners(box: Array, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """The first and last pixels of a box, inside the picture."""
    x0, y0, x1, y1 = (round(float(side)) for side in box)
    height, width = shape[:2]
    x0, y0 = min(max(x0, 0), width - 1), min(max(y0, 0), height - 1)
    return x0, y0, min(max(x1 - 1, x0), width - 1), min(max(y1 - 1, y0), height - 1)


def _write(picture: Array, marks: Marks) -> Array:
    """The picture with the names: above the box where there is room, else in it or below."""
    from PIL import Image, ImageDraw

    height, width = picture.shape[:2]
    taken = np.zeros((height, width), bool)
    room = COVERED * taken.size
    canvas = Image.fromarray(picture)
    draw = ImageDraw.Draw(canvas)
    for box, color, caption in zip(marks.boxes, marks.colors, marks.captions, strict=True):
        if not caption:
            continue
        wide, high = round(draw.textlength(caption, font(TEXT))) + 4, TEXT + 4
        room -= wide * high
        if room < 0:
            break
        x0, y0, _, y1 = _corners(box, picture.shape)
        left = max(min(x0, width - wide), 0)
        for top in (y0 - high, y0, y1 + 1, y1 + 1 - high):
            place = (slice(top, top + high), slice(left, left + wide))
            if top >= 0 and top + high <= height and not taken[place].any():
                taken[place] = True
                draw.rectangle((left, top, left + wide - 1, top + high - 1), fill=color)
                draw.text((left + 2, top + high // 2), caption, _ink(color), font(TEXT), anchor="lm")
                break
    return np.asarray(canvas)


def _ink(ground: tuple[int, int, int]) -> tuple[int, int, int]:
    """Black or white, whichever is read more easily (luma of ITU-R BT.601)."""
    red, green, blue = ground
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 120 else (255, 255, 255)
