"""results.png: how a run went, from its results.csv."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.plots import canvas
from orchestrator.plots.canvas import COLORS, Array
from trainables.contracts import Mode

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKED_EPOCHS = 30
"""A curve of at most so many epochs shows its points."""
_NOT_SCORES = {
    "epoch",
    "step",
    "lr",
    "images_per_second",
    "seconds",
    "data_wait_fraction",
    "gpu_utilization",
    "skipped_steps",
}
_BY_AREA = ("_small", "_medium", "_large")
"""Ends of metrics that only results.csv tells: with them there would be too many curves."""


@canvas.in_any_script()
def plot_results(results_csv: Path, out: Path, metric: str, mode: Mode = "max") -> None:
    """Draw results.csv (a row per epoch): losses, metrics, learning rate, throughput; the best epoch is marked.

    Columns of other names are drawn too: with the losses where the name tells it is one, else with the metrics where
    all values lie in [0, 1]. `mode`: whether the largest or the smallest value of the primary `metric` is the best.
    """
    columns = _read(results_csv)
    losses = [name for name in columns if "loss" in name]
    scores = [name for name in columns if name not in losses and (name == metric or _is_score(name, columns[name]))]
    scores.sort(key=lambda name: name != metric)
    figure = canvas.make_figure(11, 7.5)
    (loss, score), (rate, speed) = figure.subplots(2, 2)
    _curves(loss, columns, losses, "Loss", "loss")
    _curves(score, columns, scores, "Validation metrics", "score (0 to 1)")
    _curves(rate, columns, ["lr"], "Learning rate at the end of the epoch", "learning rate")
    _curves(speed, columns, ["images_per_second"], "Throughput", "images per second")
    rate.set_ylim(bottom=0)
    speed.set_ylim(bottom=0)
    if metric in columns:
        _mark_best(loss if metric in losses else score, columns, metric, mode)
    canvas.save_figure(figure, out)


def _read(path: Path) -> dict[str, Array]:
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


def _is_score(name: str, values: Array) -> bool:
    if name in _NOT_SCORES or name.endswith(_BY_AREA):
        return False
    return bool(np.nanmin(values) >= 0 and np.nanmax(values) <= 1)


def _curves(axes: Axes, columns: Mapping[str, Array], names: Sequence[str], title: str, label: str) -> None:
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
        axes.legend(frameon=False, fontsize=10 if len(drawn) < 6 else 8, ncols=1 if len(drawn) < 6 else 2)


def _mark_best(axes: Axes, columns: Mapping[str, Array], metric: str, mode: Mode) -> None:
    """A star at the first best value of the metric, and the value in the title."""
    values = columns[metric]
    best = int(np.nanargmax(values) if mode == "max" else np.nanargmin(values))
    epoch, value = columns["epoch"][best], values[best]
    axes.axvline(epoch, color="0.6", linestyle=":", zorder=1)
    axes.plot(epoch, value, "*", color=COLORS[-1], markersize=13, zorder=4)
    axes.set_title(f"{axes.get_title()}: best {metric} {value:.4f} at epoch {epoch:.0f}", parse_math=False)
