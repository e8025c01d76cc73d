"""parallel.png: every trial as a line over the settings it had and the metric it reached."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.plots import canvas
from orchestrator.plots.canvas import COLORS, Array
from orchestrator.sweeps.axes import SOFT, describe, message, position, scale_of
from orchestrator.sweeps.importance import importances
from orchestrator.sweeps.records import Overview
from orchestrator.sweeps.words import score, setting

if TYPE_CHECKING:
    from matplotlib.axes import Axes

AXES = 10
"""Keys that are drawn, the most important ones."""
TICKS, CLOSEST = 6, 0.05
"""Values named on an axis of numbers, and how near to each other, as a part of its height."""
CATEGORIES = 16
NOT_SET = -0.1
"""The height of trials that lack a key."""


@dataclass(frozen=True)
class Axis:
    """A vertical line: the height, 0 to 1, of each trial on it, and which heights are named."""

    name: str
    heights: Array
    ticks: Sequence[tuple[float, str]]


@canvas.in_any_script()
def draw_parallel(overview: Overview, out: Path, shares: Mapping[str, float] | None = None) -> None:
    """Draw a line per trial that has a value, over an axis per searched key and the metric; the best end at the top.

    shares: of `importances`, where they are known already: the keys stand in this order. Raises OSError.
    """
    shares = importances(overview) if shares is None else shares
    keys = sorted(overview.scales, key=lambda key: -shares.get(key, 0.0))[:AXES]
    trials = overview.ranked
    figure = canvas.make_figure(10, 6)
    axes = figure.subplots()
    title = f"Settings of {len(trials):,} trial{'s' * (len(trials) != 1)} and the {overview.metric} they led to"
    if not trials or not keys:
        message(axes, "no trial has a value yet" if keys else "no key is searched")
        describe(axes, title)
        canvas.save_figure(figure, out)
        return
    left = len(overview.scales) - len(keys)
    drawn = [_axis(overview, key) for key in keys] + [_metric_axis(overview)]
    _draw_lines(axes, np.stack([axis.heights for axis in drawn], axis=1))
    for place, axis in enumerate(drawn):
        _draw_axis(axes, place, axis, 1 if place == len(keys) else -1, 14 if len(drawn) < 7 else 8)
    axes.set_axis_off()
    axes.set_xlim(-0.35, len(drawn) - 0.35)
    axes.set_ylim(NOT_SET - 0.04 if any("not set" in dict(axis.ticks).values() for axis in drawn) else -0.04, 1.2)
    best = f"orange: the best (trial {trials[0].number}); the darker a line, the better its rank"
    describe(axes, title, best + (f"; the {left} least important keys are left out" if left else ""))
    canvas.save_figure(figure, out)


def _axis(overview: Overview, key: str) -> Axis:
    scale, values = overview.scales[key], [trial.params.get(key) for trial in overview.ranked]
    missing = [key not in trial.params for trial in overview.ranked]
    places = [position(value, scale) for value in values]
    if scale == "category" or any(p is None and not gone for p, gone in zip(places, missing, strict=True)):
        heights, ticks = _categories([None if gone else setting(v) for v, gone in zip(values, missing, strict=True)])
    else:
        heights, ticks = _numbers(places, scale)
    return Axis(key, heights, ticks + [(NOT_SET, "not set")] * any(missing))


def _metric_axis(overview: Overview) -> Axis:
    best = [pair[0] for trial in overview.ranked if (pair := trial.best(overview.metric, overview.mode))]
    scale = scale_of(best)
    places = [position(value, scale) for value in best]
    heights, ticks = _numbers(places, scale, score)
    if overview.mode == "min":
        heights, ticks = 1 - heights, [(1 - height, text) for height, text in ticks]
    return Axis(overview.metric, heights, ticks)


def _categories(values: Sequence[str | None]) -> tuple[Array, list[tuple[float, str]]]:
    """Categories at equal distances; trials of one are spread a little, so that they can be counted."""
    names = sorted({value for value in values if value is not None})
    step = 1 / max(len(names) - 1, 1)
    base = {name: i * step if len(names) > 1 else 0.5 for i, name in enumerate(names)}
    heights = np.full(len(values), NOT_SET)
    for name in names:
        rows = [i for i, value in enumerate(values) if value == name]
        spread = min(0.18 * step, 0.012 * (len(rows) - 1)) / 2
        heights[rows] = base[name] + np.linspace(spread, -spread, len(rows))
    every = -(-len(names) // CATEGORIES)
    return heights, [(base[name], name) for name in names[::every]]


def _numbers(
    places: Sequence[float | None], scale: str, text: Callable[[float], str] = lambda value: _short(value)
) -> tuple[Array, list[tuple[float, str]]]:
    """Numbers by their places on the scale, from the least to the largest."""
    from matplotlib.ticker import MaxNLocator

    there = [place for place in places if place is not None]
    least, most = min(there), max(there)
    width = most - least
    heights = np.array([NOT_SET if p is None else (p - least) / width if width else 0.5 for p in places])
    wanted = sorted(set(there))
    if len(wanted) > TICKS or (width and min(np.diff(wanted), default=width) < CLOSEST * width):
        if scale == "log":
            wanted = _decades(least, most)
        else:
            wanted = [tick for tick in MaxNLocator(TICKS).tick_values(least, most) if least <= tick <= most]
        ends = [end for end in (least, most) if all(abs(end - tick) > CLOSEST * width for tick in wanted)]
        wanted = sorted([*wanted, *ends])
    named = [((p - least) / width if width else 0.5, text(10**p if scale == "log" else p)) for p in wanted]
    return heights, named


def _decades(least: float, most: float) -> list[float]:
    """Logarithms of 1, 10, ..., of every second, third, ... of them where there are many, or of 1, 2, 5, 10, ..."""
    whole = [float(power) for power in range(int(np.ceil(least)), int(np.floor(most)) + 1)]
    if len(whole) >= 3:
        return whole[:: -(-len(whole) // TICKS)]
    fine = [power + np.log10(n) for power in range(int(np.floor(least)), int(np.ceil(most)) + 1) for n in (1, 2, 5)]
    return [place for place in fine if least <= place <= most]


def _short(value: float) -> str:
    return f"{value:.{3 if abs(value) >= 1 else 2}g}".replace("e-0", "e-").replace("e+0", "e+")


def _draw_lines(axes: Axes, heights: Array) -> None:
    """A smooth line per row, level at each axis, so that it can be followed; the best (first) row comes last."""
    import matplotlib
    from matplotlib.collections import LineCollection

    steps = np.linspace(0, 1, 24)
    ease = steps**2 * (3 - 2 * steps)
    curves = heights[:, :-1, None] + ease * (heights[:, 1:] - heights[:, :-1])[:, :, None]
    x = np.arange(heights.shape[1] - 1)[:, None] + steps
    lines = np.stack([np.broadcast_to(x, curves.shape), curves], axis=-1).reshape(len(heights), -1, 2)[::-1]
    rank = np.linspace(0, 1, len(heights)) if len(heights) > 1 else np.ones(1)
    colors = matplotlib.colormaps["Blues"](0.3 + 0.65 * rank ** (1 if len(heights) <= 60 else 4))
    alpha = 0.9 if len(heights) <= 60 else 0.3 + 0.5 * rank[:-1] ** 4
    axes.add_collection(LineCollection(list(lines[:-1]), colors=colors[:-1], linewidths=0.7 + 0.8 * rank, alpha=alpha))
    axes.plot(lines[-1, :, 0], lines[-1, :, 1], color=COLORS[1], linewidth=2.6)


def _draw_axis(axes: Axes, place: int, axis: Axis, side: int, letters: int) -> None:
    """The line, its name above it, and its ticks at the left (`side` -1) or the right (1), of so many letters."""
    axes.plot([place, place], [0, 1], color="0.25", linewidth=1, zorder=3)
    name = canvas.shorten(axis.name, 26).replace(".", ". ").replace("_", "_ ")
    name = "\n".join(textwrap.wrap(name, 11)).replace(". ", ".").replace("_ ", "_")
    axes.text(place, 1.05, name, ha="center", va="bottom", fontsize=9, fontweight="bold", parse_math=False)
    behind = {"boxstyle": "round,pad=0.12", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
    for height, text in axis.ticks:
        axes.plot([place, place + 0.025 * side], [height, height], color="0.25", linewidth=1, zorder=3)
        axes.text(
            place + 0.05 * side,
            height,
            canvas.shorten(text, letters),
            ha="left" if side > 0 else "right",
            va="center",
            color=SOFT if height == NOT_SET else "0.1",
            bbox=behind,
            fontsize=9,
            zorder=4,
            parse_math=False,
        )
