"""A sheet: tiles of any shape in columns, each under its caption, with a headline and a legend of colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from orchestrator.plots.canvas import Array, font, shorten

CAPTION, GAP, TEXT, HEAD = 22, 10, 12, 15
"""In pixels: height of a line of text, space between the tiles, sizes of the text and of the headline."""
LEGEND_NAMES = 40
"""Most names of a legend."""
NARROWEST = 300
"""Of a column, in pixels: room for a caption."""
NEARLY, PIXELATED = 1.25, 4.0
"""Images that would be enlarged by less stay as they are, and by more keep their pixels."""

Legend = Sequence[tuple[tuple[int, int, int], str]]


def fit(image: Array, most: int) -> Array:
    """The image (height, width, 3) reduced or enlarged so that its long side fits `most` pixels.

    Tiny ones are enlarged by a whole factor, so that their pixels are seen; what nearly fits stays as it is.
    """
    height, width = image.shape[:2]
    scale = most / max(height, width)
    if 1 <= scale < NEARLY:
        return image
    if scale >= PIXELATED:
        factor = math.floor(scale)
        return image.repeat(factor, axis=0).repeat(factor, axis=1)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC))


def compose(tiles: Sequence[Array], captions: Sequence[str], columns: int, headline: str, legend: Legend) -> Array:
    """Lay out the tiles, at least one. Returns (height, width, 3) RGB uint8."""
    from PIL import Image, ImageDraw

    cell = max(NARROWEST, *(tile.shape[1] for tile in tiles)) + GAP
    rows = [range(start, min(start + columns, len(tiles))) for start in range(0, len(tiles), columns)]
    heights = [max(tiles[i].shape[0] for i in row) + CAPTION + GAP for row in rows]
    width = columns * cell + GAP
    draw: Any = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    places, below = _flow(draw, legend, width)
    head = 2 * CAPTION
    sheet = np.full((head + sum(heights) + below, width, 3), 255, np.uint8)
    tops = [head + sum(heights[:i]) for i in range(len(rows) + 1)]
    for row, top in zip(rows, tops, strict=False):
        for column, i in enumerate(row):
            high, wide = tiles[i].shape[:2]
            left = GAP + column * cell
            sheet[top + CAPTION : top + CAPTION + high, left : left + wide] = tiles[i]
    canvas = Image.fromarray(sheet)
    draw = ImageDraw.Draw(canvas)
    draw.text((GAP, head // 2), _fitted(draw, headline, width - 2 * GAP, HEAD), "black", font(HEAD), anchor="lm")
    for row, top in zip(rows, tops, strict=False):
        for column, i in enumerate(row):
            text = _fitted(draw, captions[i], cell - GAP, TEXT)
            draw.text((GAP + column * cell, top + CAPTION // 2), text, "black", font(TEXT), anchor="lm")
    for (color, name), (left, line) in zip(legend, places, strict=False):
        top = tops[-1] + GAP // 2 + line * CAPTION
        draw.rectangle((left, top + 4, left + 13, top + 17), fill=color)
        draw.text((left + 19, top + CAPTION // 2), name, "black", font(TEXT), anchor="lm")
    if len(legend) > len(places):
        left, line = places[-1] if places else (GAP, 0)
        more = f"and {len(legend) - len(places)} more classes"
        draw.text((GAP, tops[-1] + GAP // 2 + (line + 1) * CAPTION + CAPTION // 2), more, "black", font(TEXT), "lm")
    return np.asarray(canvas)


def _flow(draw: Any, legend: Legend, width: int) -> tuple[list[tuple[int, int]], int]:
    """Where each entry of the legend stands, as (left, line), and the height of all lines."""
    places: list[tuple[int, int]] = []
    left, line = GAP, 0
    for _, name in legend[:LEGEND_NAMES]:
        wide = 19 + math.ceil(draw.textlength(name, font(TEXT))) + 2 * GAP
        if left + wide > width and left > GAP:
            left, line = GAP, line + 1
        places.append((left, line))
        left += wide
    lines = line + 1 + (len(legend) > LEGEND_NAMES) if legend else 0
    return places, lines * CAPTION + GAP


def _fitted(draw: Any, text: str, width: int, size: int) -> str:
    """The text shortened until it fits in so many pixels."""
    letters = len(text)
    while letters > 1 and draw.textlength(shorten(text, letters), font(size)) > width:
        letters -= 1
    return shorten(text, letters)
