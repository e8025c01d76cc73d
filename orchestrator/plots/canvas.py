"""What all pictures share: colours, figures in memory, PNG files."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text
    from PIL.ImageFont import FreeTypeFont

Array = np.ndarray[Any, np.dtype[Any]]

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""The palette of Okabe and Ito (2008), which colour-blind people can tell apart."""
LABEL_LETTERS = 32
"""Longer class names are shortened."""
DPI = 128
"""A power of two, so that pixels / DPI * DPI is exact."""


@contextmanager
def in_any_script() -> Iterator[None]:
    """Names in a script that the font lacks are drawn as boxes, without a warning for each letter."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        yield


def shorten(text: str, letters: int) -> str:
    """The text with its middle left out where it is longer than so many letters: long names often differ at the end."""
    if len(text) <= letters:
        return text
    return f"{text[: letters // 2]}…{text[len(text) - (letters - 1) // 2 :]}"


def make_figure(width: float, height: float) -> Figure:
    """A figure of so many inches, drawn in memory."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
    return FigureCanvasAgg(Figure(figsize=(width, height), dpi=DPI, layout=layout)).figure


def name_legend(axes: Axes, artists: Sequence[Any], names: Sequence[str], **options: Any) -> None:
    """A legend whose names are shown as they are: not read as formulas, and not hidden where they begin with "_"."""
    legend = axes.legend(artists, [str(i) for i in range(len(names))], frameon=False, **options)
    texts: list[Text] = legend.get_texts()
    for text, name in zip(texts, names, strict=True):
        text.set_text(name)
        text.set_parse_math(False)


def save_figure(figure: Figure, out: Path, behind: Array | None = None) -> None:
    """Write the figure as PNG, over a picture of its size where there is one. OpenCV is faster at it than savefig."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    assert isinstance(figure.canvas, FigureCanvasAgg)
    figure.canvas.draw()  # type: ignore[no-untyped-call]
    picture = np.asarray(figure.canvas.buffer_rgba())[:, :, :3]  # type: ignore[no-untyped-call]
    if behind is not None:
        picture = np.minimum(picture, behind)
    save_pixels(picture, out)


def save_pixels(pixels: Array, out: Path) -> None:
    """Write (height, width, 3) RGB uint8 as PNG. Raises OSError."""
    out.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(out), pixels[:, :, ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1]):
        raise OSError(f"cannot write {out}")


@cache
def font(size: int) -> FreeTypeFont:
    """The typeface of matplotlib's figures, for text in pictures; `size` in pixels."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)
