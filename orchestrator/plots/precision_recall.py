"""pr_curve.png: how much precision is left at each recall."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.plots import canvas
from orchestrator.plots.canvas import COLORS, Array, shorten

COLOURED, FAINT = 14, "0.8"
"""Up to so many classes each curve has a colour; of more, the lowest few have, and the others are grey."""
LOWEST = 6


@canvas.in_any_script()
def plot_precision_recall(
    recall: Sequence[float], precisions: Sequence[Sequence[float] | None], classes: Sequence[str], out: Path, of: str
) -> None:
    """Draw precision over recall at IoU 0.5, of each class and, thick, their mean; the legend tells the areas (AP).

    precisions: of each class, at each recall; None: it has no objects. of: what is matched, "boxes" or "masks".
    """
    curves = [np.asarray(curve, np.float64) if curve is not None else None for curve in precisions]
    there = sorted((i for i, c in enumerate(curves) if c is not None), key=lambda i: -_area(curves[i]))
    figure = canvas.make_figure(11, 7)
    axes = figure.subplots()
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    artists: list[Any] = []
    names: list[str] = []
    named = there if len(there) <= COLOURED else there[-LOWEST:]
    for rank, i in enumerate(there):
        curve = curves[i]
        assert curve is not None
        if i not in named:
            axes.plot(recall, curve, color=FAINT, linewidth=0.8, zorder=2)
            continue
        number = rank - (len(there) - len(named))
        color, style = COLORS[number % (len(COLORS) - 1)], ("-", "--", ":")[number // (len(COLORS) - 1) % 3]
        artists += axes.plot(recall, curve, color=color, linestyle=style, linewidth=1.4, zorder=3)
        names.append(f"{_area(curve):.3f}  {shorten(classes[i], canvas.LABEL_LETTERS)}")
    if len(there) > 1:
        mean = np.mean([curve for curve in curves if curve is not None], axis=0)
        artists[:0] = axes.plot(recall, mean, color="black", linewidth=3.2, zorder=4)
        names[:0] = [f"{_area(mean):.3f}  mean of {len(there)} classes"]
    if there:
        head = "AP" if len(named) == len(there) else f"AP: mean, and the {LOWEST} lowest classes"
        canvas.name_legend(axes, artists, names, title=head, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    elif not there:
        axes.text(0.5, 0.5, "there are no objects to find", ha="center", va="center", color="0.5")
    axes.set_title(f"Precision and recall of {of} at IoU 0.5")
    canvas.save_figure(figure, out)


def _area(curve: Array | None) -> float:
    """Average precision: the mean over the recalls, as COCO defines it."""
    return math.nan if curve is None else float(curve.mean())
