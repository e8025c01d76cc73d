"""The pictures of a run: how it went (results.csv), what it confuses, what the model really sees.

Figures are made as objects, without pyplot and its global state. matplotlib takes about a second to import, so it is
imported with the first picture.
"""

from __future__ import annotations

import csv
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from trainables.contracts import Mode

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""The palette of Okabe and Ito (2008), which colour-blind people can tell apart."""
MARKED_EPOCHS = 30
"""A curve of at most so many epochs shows its points."""
COUNTED_CLASSES, LABELLED_CLASSES, LABEL_LETTERS = 25, 100, 32
"""A confusion matrix shows its counts up to so many classes, and all names up to so many (beyond: half as many)."""
MOSAIC_IMAGES, MOSAIC_WIDTH = 64, 2000
"""A mosaic's most images, and its most pixels."""
TILE, CAPTION, GAP = 256, 24, 8
"""In a mosaic, in pixels: what small images are enlarged to, height of a caption, space between the images."""
DPI = 128
"""A power of two, so that pixels / DPI * DPI is exact."""

_Array = np.ndarray[Any, np.dtype[Any]]
_NOT_SCORES = {"epoch", "step", "lr", "images_per_second", "seconds", "data_wait_fraction", "gpu_utilization"}


@contextmanager
def _in_any_script() -> Iterator[None]:
    """Names in a script that the font lacks are drawn as boxes, without a warning for each letter."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        yield


@_in_any_script()
def plot_results(results_csv: Path, out: Path, metric: str, mode: Mode = "max") -> None:
    """Draw results.csv (a row per epoch): losses, metrics, learning rate, throughput; the best epoch is marked.

    Columns of other names are drawn too: with the losses where the name ends in "loss", else with the metrics where all
    values lie in [0, 1]. `mode`: whether the largest or the smallest value of the primary `metric` is the best.
    """
    columns = _read(results_csv)
    losses = [name for name in columns if name.endswith("loss")]
    scores = [name for name in columns if name not in losses and (name == metric or _is_score(name, columns[name]))]
    scores.sort(key=lambda name: name != metric)
    figure = _figure(11, 7.5)
    (loss, score), (rate, speed) = figure.subplots(2, 2)
    _curves(loss, columns, losses, "Loss", "loss")
    _curves(score, columns, scores, "Validation metrics", "score (0 to 1)")
    _curves(rate, columns, ["lr"], "Learning rate at the end of the epoch", "learning rate")
    _curves(speed, columns, ["images_per_second"], "Throughput", "images per second")
    rate.set_ylim(bottom=0)
    speed.set_ylim(bottom=0)
    if metric in columns:
        _mark_best(loss if metric in losses else score, columns, metric, mode)
    _save(figure, out)


def _read(path: Path) -> dict[str, _Array]:
    """The columns that hold finite numbers; any other cell of theirs is NaN."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = {name: np.array([_number(row[name]) for row in rows]) for name in (rows[0] if rows else ())}
    return {name: values for name, values in columns.items() if not np.isnan(values).all()}


def _number(cell: str | None) -> float:
    try:
        value = float(cell or "nan")
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def _is_score(name: str, values: _Array) -> bool:
    return name not in _NOT_SCORES and bool(np.nanmin(values) >= 0 and np.nanmax(values) <= 1)


def _curves(axes: Axes, columns: Mapping[str, _Array], names: Sequence[str], title: str, label: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title)
    axes.set_xlabel("epoch")
    axes.set_ylabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    drawn = [name for name in names if name in columns]
    for i, name in enumerate(drawn):
        there = ~np.isnan(columns[name])
        axes.plot(
            columns["epoch"][there],
            columns[name][there],
            color=COLORS[i % len(COLORS)],
            linestyle=("-", "--", ":")[i // len(COLORS) % 3],
            marker="o" if there.sum() <= MARKED_EPOCHS else "",
            markersize=4,
            zorder=3 - i / 100,
            label=name,
        )
    if not drawn:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center", color="0.5")
    elif len(drawn) > 1:
        axes.legend(frameon=False)


def _mark_best(axes: Axes, columns: Mapping[str, _Array], metric: str, mode: Mode) -> None:
    """A star at the first best value of the metric, and the value in the title."""
    values = columns[metric]
    best = int(np.nanargmax(values) if mode == "max" else np.nanargmin(values))
    epoch, value = columns["epoch"][best], values[best]
    axes.axvline(epoch, color="0.6", linestyle=":", zorder=1)
    axes.plot(epoch, value, "*", color=COLORS[-1], markersize=13, zorder=4)
    axes.set_title(f"{axes.get_title()}: best {metric} {value:.4f} at epoch {epoch:.0f}", parse_math=False)


@_in_any_script()
def plot_confusion(matrix: Sequence[Sequence[int]], classes: Sequence[str], out: Path) -> None:
    """Draw a confusion matrix (rows: true class, columns: predicted), coloured by its share of the row.

    Counts are written into the cells where they can be read, and class names thinned out where they cannot.
    A row without samples is grey.
    """
    from matplotlib.colors import PowerNorm

    size = len(classes)
    counts = np.asarray(matrix, dtype=np.int64).reshape(size, size)
    totals = counts.sum(axis=1, keepdims=True)
    shares = counts / np.where(totals > 0, totals, np.nan)
    side = max(size * 0.45, 3) if size <= COUNTED_CLASSES else min(max(size * 0.15, 11), 13)
    names = 0.08 * min(max(map(len, classes)), LABEL_LETTERS) + 0.3
    figure = _figure(side + names + 1.5, side + names + 0.8)
    axes = figure.subplots()
    axes.set_facecolor("0.85")
    # Rare confusions are what one looks for among many classes: their colours get more of the scale.
    norm = PowerNorm(1 if size <= COUNTED_CLASSES else 0.5, vmin=0, vmax=1)
    image = axes.imshow(np.ma.masked_invalid(shares), cmap="Blues", norm=norm, interpolation="nearest")
    figure.colorbar(image, ax=axes, label="share of the samples of the true class", shrink=0.7, aspect=30)
    _name_classes(axes, classes, totals[:, 0] == 0, side / size)
    if size <= COUNTED_CLASSES:
        _write_counts(axes, counts, shares)
    right = np.trace(counts) / max(totals.sum(), 1)
    title = f"{size:,} classes, {totals.sum():,} samples, {right:.1%} right"
    axes.set_title(title + ("\ngrey rows: no samples" if (totals == 0).any() else ""))
    _save(figure, out)


def _name_classes(axes: Axes, classes: Sequence[str], empty: _Array, cell: float) -> None:
    """Label both axes, whose cells are `cell` inches wide; the classes without samples in grey."""
    size = len(classes)
    every = 1 if size <= LABELLED_CLASSES else math.ceil(size / (LABELLED_CLASSES / 2))
    ticks = range(0, size, every)
    names = [_shorten(classes[i], LABEL_LETTERS) for i in ticks]
    font = 10 if size <= COUNTED_CLASSES else 7
    fits = max(map(len, names)) * 0.009 * font < cell * every
    axes.set_xticks(ticks, names, rotation=0 if fits else 90, fontsize=font, parse_math=False)
    axes.set_yticks(ticks, names, fontsize=font, parse_math=False)
    for tick, i in zip(axes.get_yticklabels(), ticks, strict=True):
        tick.set_color("0.5" if empty[i] else "black")
    some = "" if every == 1 else f" (one name in {every})"
    axes.set_xlabel(f"predicted class{some}")
    axes.set_ylabel(f"true class{some}")


def _write_counts(axes: Axes, counts: _Array, shares: _Array) -> None:
    font = min(10.0, 42 / len(str(counts.max())))
    for (row, column), share in np.ndenumerate(shares):
        if not math.isnan(share):
            color = "white" if share > 0.55 else "black" if share > 0 else "0.75"
            count = str(counts[row, column])
            axes.text(column, row, count, ha="center", va="center", color=color, fontsize=font)


@_in_any_script()
def plot_batch(images: _Array, titles: Sequence[str], out: Path) -> None:
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
    figure = _figure(width / DPI, height / DPI)
    captions = []
    for i, (tile, title) in enumerate(zip(tiles, titles, strict=False)):
        top, left = i // columns * (side + CAPTION + GAP) + CAPTION, i % columns * (side + GAP) + GAP // 2
        mosaic[top : top + side, left : left + side] = tile
        x, y = (left + side / 2) / width, 1 - (top - CAPTION / 2) / height
        captions.append(figure.text(x, y, title, ha="center", va="center", fontsize=9, parse_math=False))
    _fit_captions(captions, side)
    _save(figure, out, behind=mosaic)


def _fit(image: _Array, most: int) -> _Array:
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
        caption.set_text(_shorten(title, letters))
        while letters > 1 and caption.get_window_extent().width > width:
            letters -= 1
            caption.set_text(_shorten(title, letters))


def _shorten(text: str, letters: int) -> str:
    """The text with its middle left out where it is longer than so many letters: long names often differ at the end."""
    if len(text) <= letters:
        return text
    return f"{text[: letters // 2]}…{text[len(text) - (letters - 1) // 2 :]}"


def _figure(width: float, height: float) -> Figure:
    """A figure of so many inches, drawn in memory."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
    return FigureCanvasAgg(Figure(figsize=(width, height), dpi=DPI, layout=layout)).figure


def _save(figure: Figure, out: Path, behind: _Array | None = None) -> None:
    """Write the figure as PNG, over a picture of its size where there is one. OpenCV is faster at it than savefig."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    assert isinstance(figure.canvas, FigureCanvasAgg)
    figure.canvas.draw()  # type: ignore[no-untyped-call]
    picture = np.asarray(figure.canvas.buffer_rgba())[:, :, :3]  # type: ignore[no-untyped-call]
    if behind is not None:
        picture = np.minimum(picture, behind)
    out.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(out), picture[:, :, ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1]):
        raise OSError(f"cannot write {out}")
