"""What the pictures of a sweep share: titles, messages, scales."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.plots import canvas
from orchestrator.sweeps.records import is_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

FAINT, SOFT = "0.9", "0.4"
DECADES = 100
"""Positive values that span more than this factor, and leave [0, 1], are drawn over a logarithmic axis."""


def describe(axes: Axes, title: str, below: str = "") -> None:
    """A title at the left, and a softer line below it; neither is read as a formula."""
    axes.set_title(title + ("\n" if below else ""), loc="left", fontsize=12, fontweight="bold", parse_math=False)
    if below:
        axes.annotate(
            below, (0, 1), (0, 6), xycoords="axes fraction", textcoords="offset points", color=SOFT, fontsize=10
        ).set_parse_math(False)


def message(axes: Axes, text: str) -> None:
    """Nothing but this text."""
    axes.clear()
    axes.set_axis_off()
    place: dict[str, Any] = {"transform": axes.transAxes, "ha": "center", "va": "center"}
    axes.text(0.5, 0.5, text, color=SOFT, fontsize=12, parse_math=False, **place)


def legend_below(axes: Axes, artists: Mapping[str, Any], columns: int, gap: float = 0.11) -> None:
    """A legend, names to artists, below the axis; `gap`: for the axis's own label, as a part of its height."""
    place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -gap), "ncols": columns, "fontsize": 9}
    canvas.name_legend(axes, list(artists.values()), list(artists), **place)


def only_bars(axes: Axes, most: float) -> None:
    """Horizontal bars up to `most` whose numbers are written at their ends: no axis for them, but room."""
    axes.set_xlim(0, most * 1.15)
    axes.set_xticks([])
    axes.tick_params(left=False)
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def whole_numbers(axis: Axis) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def soften(axes: Axes) -> None:
    """A faint grid, and no frame at the top and the right."""
    axes.grid(color=FAINT)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def scale_of(values: Sequence[float]) -> str:
    """The axis that suits values of a metric: "log" for losses that span decades, else "linear"."""
    least, most = min(values), max(values)
    return "log" if least > 0 and most > 1 and most / least > DECADES else "linear"


def position(value: Any, scale: str) -> float | None:
    """Where a number lies on its scale: itself, or its decimal logarithm; None for what has no place there."""
    if not is_number(value) or (scale == "log" and value <= 0):
        return None
    return math.log10(value) if scale == "log" else float(value)
