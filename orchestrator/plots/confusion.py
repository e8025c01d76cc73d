"""confusion_matrix.png: what a classifier takes for what."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.plots import canvas
from orchestrator.plots.canvas import LABEL_LETTERS, Array, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COUNTED_CLASSES, LABELLED_CLASSES = 25, 100
"""A confusion matrix shows its counts up to so many classes, and all names up to so many (beyond: half as many)."""


@canvas.in_any_script()
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
    figure = canvas.make_figure(side + names + 1.5, side + names + 0.8)
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
    canvas.save_figure(figure, out)


def _name_classes(axes: Axes, classes: Sequence[str], empty: Array, cell: float) -> None:
    """Label both axes, whose cells are `cell` inches wide; the classes without samples in grey."""
    size = len(classes)
    every = 1 if size <= LABELLED_CLASSES else math.ceil(size / (LABELLED_CLASSES / 2))
    ticks = range(0, size, every)
    names = [shorten(classes[i], LABEL_LETTERS) for i in ticks]
    font = 10 if size <= COUNTED_CLASSES else 7
    fits = max(map(len, names)) * 0.009 * font < cell * every
    axes.set_xticks(ticks, names, rotation=0 if fits else 90, fontsize=font, parse_math=False)
    axes.set_yticks(ticks, names, fontsize=font, parse_math=False)
    for tick, i in zip(axes.get_yticklabels(), ticks, strict=True):
        tick.set_color("0.5" if empty[i] else "black")
    some = "" if every == 1 else f" (one name in {every})"
    axes.set_xlabel(f"predicted class{some}")
    axes.set_ylabel(f"true class{some}")


def _write_counts(axes: Axes, counts: Array, shares: Array) -> None:
    font = min(10.0, 42 / len(str(counts.max())))
    for (row, column), share in np.ndenumerate(shares):
        if not math.isnan(share):
            color = "white" if share > 0.55 else "black" if share > 0 else "0.75"
            count = str(counts[row, column])
            axes.text(column, row, count, ha="center", va="center", color=color, fontsize=font)
