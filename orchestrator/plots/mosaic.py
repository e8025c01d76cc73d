"""train_batch.png of a classifier: images under their titles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from orchestrator.plots import canvas
from orchestrator.plots.canvas import DPI, Array, shorten

if TYPE_CHECKING:
    from matplotlib.text import Text

MOSAIC_IMAGES, MOSAIC_WIDTH = 64, 2000
"""A mosaic's most images, and its most pixels."""
TILE, CAPTION, GAP = 256, 24, 8
"""In a mosaic, in pixels: what small images are enlarged to, height of a caption, space between the images."""


@canvas.in_any_script()
def plot_batch(images: Array, titles: Sequence[str], out: Path) -> None:
    """Draw the first 64 images of a batch as a mosaic, each under its title: what the model really sees.

    images: (n, size, size, 3) uint8 RGB, n > 0. Small ones are enlarged without smoothing, large ones made smaller.
    """
    images = images[:MOSAIC_IMAGES]
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    tiles = [_fit(image, MOSAIC_WIDTH // columns - GAP) for image in images]
    side = len(tiles[0])
    height, width = rows * (side + CAPTION + GAP), columns * (side + GAP)
    mosaic = np.full((height, width, 3), 255, np.uint8)
    figure = canvas.make_figure(width / DPI, height / DPI)
    captions = []
    for i, (tile, title) in enumerate(zip(tiles, titles, strict=False)):
        top, left = i // columns * (side + CAPTION + GAP) + CAPTION, i % columns * (side + GAP) + GAP // 2
        mosaic[top : top + side, left : left + side] = tile
        x, y = (left + side / 2) / width, 1 - (top - CAPTION / 2) / height
        captions.append(figure.text(x, y, title, ha="center", va="center", fontsize=9, parse_math=False))
    _fit_captions(captions, side)
    canvas.save_figure(figure, out, behind=mosaic)


def _fit(image: Array, most: int) -> Array:
    """The image enlarged by a whole factor up to TILE pixels, or reduced to `most`."""
    size = len(image)
    if size > most:
        return np.asarray(cv2.resize(image, (most, most), interpolation=cv2.INTER_AREA))
    factor = max(min(TILE, most) // size, 1)
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def _fit_captions(captions: Sequence[Text], width: int) -> None:
    """One size for all captions, such that the longest fits in `width` pixels; what is then too small is shortened."""
    smallest, largest = 6.5, 9.0
    widths = [caption.get_window_extent().width for caption in captions]
    size = min(max(largest * width / max(*widths, 1), smallest), largest)
    for caption, wide in zip(captions, widths, strict=True):
        title = caption.get_text()
        letters = math.floor(len(title) * width * largest / size / max(wide, 1))
        caption.set_fontsize(size)
        caption.set_text(shorten(title, letters))
        while letters > 1 and caption.get_window_extent().width > width:
            letters -= 1
            caption.set_text(shorten(title, letters))
