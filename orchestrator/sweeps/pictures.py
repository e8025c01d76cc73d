"""The pictures of a sweep: the curves of all trials, what early stopping saved, and all that other files draw."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from orchestrator.plots import canvas
from orchestrator.plots.canvas import COLORS
from orchestrator.sweeps.axes import describe, legend_below, message, only_bars, scale_of, soften, whole_numbers
from orchestrator.sweeps.importance import draw_importance, importances
from orchestrator.sweeps.parallel import draw_parallel
from orchestrator.sweeps.rates import draw_lr
from orchestrator.sweeps.records import Overview, Trial, is_number
from orchestrator.sweeps.words import counts, saved_part, score

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MANY, RUNGS = 60, 12
"""Trials beyond which lines are finer, and rungs beyond which none is drawn."""


class _Style(NamedTuple):
    """How a line looks, and its end."""

    line: str
    marker: str
    end: str


_STYLES = {
    "finished": _Style(COLORS[5], "o", COLORS[5]),
    "failed": _Style("0.75", "v", COLORS[6]),
    "interrupted": _Style(COLORS[2], "s", COLORS[2]),
    "running": _Style(COLORS[2], ">", COLORS[2]),
}
_STOPPED = (
    _Style("0.75", "x", COLORS[1]),
    _Style("0.75", "D", COLORS[3]),
    _Style("0.75", "P", COLORS[4]),
    _Style("0.75", "*", COLORS[2]),
)
"""For what stopped trials: the scheduler first."""
_Curve = tuple[list[int], list[float]]
"""Epochs with a value, and the values."""


def draw_all(overview: Overview, folder: Path, warn: Callable[[str], None]) -> list[Path]:
    """Draw FOLDER/plots/{curves,parallel,importance,lr,saving}.png; returns those that were drawn.

    A picture that cannot be drawn is told to `warn`, and the others are drawn all the same.
    """
    try:
        shares = importances(overview)
    except Exception:  # draw_importance tells it
        shares = None
    pictures: dict[str, Callable[[Path], bool | None]] = {
        "curves": lambda out: draw_curves(overview, out),
        "parallel": lambda out: draw_parallel(overview, out, shares or {}),
        "importance": lambda out: draw_importance(overview, out, shares),
        "lr": lambda out: draw_lr(overview, out),
        "saving": lambda out: draw_saving(overview, out),
    }
    drawn = []
    for name, draw in pictures.items():
        out = folder / "plots" / f"{name}.png"
        try:
            if draw(out) is not False:
                drawn.append(out)
        except Exception as error:  # whatever it is, the sweep is done and its other pictures are wanted
            warn(f"{out.name} could not be drawn: {error}")
    return drawn


@canvas.in_any_script()
def draw_curves(overview: Overview, out: Path) -> None:
    """Draw the metric over the epochs, a line per trial, with rungs and cut-offs. Raises OSError."""
    figure = canvas.make_figure(10, 6)
    axes = figure.subplots()
    every = {trial.number: _curve(trial, overview.metric) for trial in overview.trials}
    curves = {number: curve for number, curve in every.items() if curve[0]}
    title = f"{overview.metric} of {len(every):,} trial{'s' * (len(every) != 1)}"
    if not curves:
        message(axes, "no trial has a value yet")
        describe(axes, title, counts(overview))
        canvas.save_figure(figure, out)
        return
    soften(axes)
    top = overview.ranked[0]
    best = top.best(overview.metric, overview.mode)
    assert best is not None
    (line,) = axes.plot(*curves[top.number], color=COLORS[0], linewidth=2.6, zorder=5)
    axes.plot(best[1], best[0], "*", color=COLORS[0], markersize=15, markeredgecolor="white", zorder=6)
    artists = {f"trial {top.number}, the best": line} | _draw_groups(axes, overview, curves)
    axes.set_xlabel("epoch")
    axes.set_ylabel(overview.metric, parse_math=False)
    axes.set_yscale(scale_of([value for _, values in curves.values() for value in values]))
    whole_numbers(axes.xaxis)
    axes.set_xlim(0.5, max(overview.epochs, *(trial.epochs for trial in overview.trials)) + 0.5)
    legend_below(axes, artists | _draw_rungs(axes, overview), columns=3)
    describe(
        axes, f"{title}: the best is trial {top.number} with {score(best[0])} at epoch {best[1]}", counts(overview)
    )
    canvas.save_figure(figure, out)


def _curve(trial: Trial, metric: str) -> _Curve:
    points = [(row["epoch"], row[metric]) for row in trial.rows if is_number(row.get(metric))]
    return [epoch for epoch, _ in points], [value for _, value in points]


def _draw_groups(axes: Axes, overview: Overview, curves: Mapping[int, _Curve]) -> dict[str, Any]:
    """Thin lines, and a marker where each ends; the legend's names and artists."""
    from matplotlib.collections import LineCollection
    from matplotlib.lines import Line2D

    groups: dict[str, list[_Curve]] = {}
    for trial in overview.trials:
        if trial.number in curves:
            name = f"stopped by {trial.because}" if trial.status == "stopped" and trial.because else trial.status
            groups.setdefault(name, []).append(curves[trial.number])
    stopped = sorted(groups.keys() - _STYLES.keys(), key=lambda name: (overview.scheduler not in name, name))
    styles = dict(zip(stopped, chain(_STOPPED, repeat(_STOPPED[-1])), strict=False)) | _STYLES
    many = len(curves) > MANY
    artists: dict[str, Any] = {}
    for name in [name for name in ("finished", *stopped, *list(_STYLES)[1:]) if name in groups]:
        style, drawn = styles[name], groups[name]
        lines = LineCollection([np.column_stack(curve) for curve in drawn], colors=style.line)
        lines.set(linewidth=0.6 if many else 1.1, alpha=0.5 if many else 0.9, zorder=3 if name == "finished" else 2)
        axes.add_collection(lines)
        ends = axes.plot([epochs[-1] for epochs, _ in drawn], [values[-1] for _, values in drawn], style.marker)[0]
        ends.set(color=style.end, markersize=3.5 if many else 5.5, alpha=0.6 if many else 1, zorder=4)
        key = Line2D([], [], color=style.line, marker=style.marker, markeredgecolor=style.end)
        key.set_markerfacecolor(style.end)
        artists[f"{name} ({len(drawn):,})"] = key
    return artists


def _draw_rungs(axes: Axes, overview: Overview) -> dict[str, Any]:
    """Where trials are compared, and what they had to reach there at last."""
    if not 0 < len(overview.rungs) <= RUNGS:
        return {}
    for rung in overview.rungs:
        line = axes.axvline(rung, color="0.6", linestyle=(0, (2, 3)), linewidth=1.2, zorder=1)
    artists: dict[str, Any] = {"rung: trials are compared": line}
    last = {(d.bracket, d.rung): d.cutoff for d in overview.decisions if d.cutoff is not None}
    if last:
        at = [rung for _, rung in last], list(last.values())
        cutoffs = axes.plot(*at, "_", color=COLORS[6], markersize=18, markeredgewidth=2, zorder=5)[0]
        artists["cut-off of the rung, at the end"] = cutoffs
    return artists


@canvas.in_any_script()
def draw_saving(overview: Overview, out: Path) -> None:
    """Draw the epochs trained against training every trial to its end, in all and by epoch. Raises OSError."""
    figure = canvas.make_figure(10, 5.6)
    bars, steps = figure.subplots(2, 1, height_ratios=(1, 2.6))
    spent, saved = overview.epochs_spent, overview.epochs_saved
    title = f"Stopping early saved {saved:,} of {spent + saved:,} epochs ({saved_part(overview):.0%})"
    if not spent:
        message(steps, "no epoch was finished yet")
        bars.set_axis_off()
        describe(bars, "Epochs trained", counts(overview))
        canvas.save_figure(figure, out)
        return
    describe(bars, title if saved > 0 else f"{spent:,} epochs were trained; none was saved", counts(overview))
    bars.barh([0, 1], [spent, spent + saved], height=0.66, color=[COLORS[0], "0.8"])
    bars.set_yticks([0, 1], ["this sweep", "all to the end"])
    bars.set_ylim(1.5, -0.5)
    for row, number in enumerate((spent, spent + saved)):
        bars.annotate(f"{number:,} epochs", (number, row), (6, 0), textcoords="offset points", va="center")
    only_bars(bars, spent + saved)
    _draw_steps(steps, overview)
    canvas.save_figure(figure, out)


def _draw_steps(axes: Axes, overview: Overview) -> None:
    """How many trials trained each epoch, and how many were stopped before it."""
    epochs = max(overview.epochs, *(trial.epochs for trial in overview.trials))
    edges = np.arange(epochs + 1) + 0.5
    ended = [trial.epochs for trial in overview.trials if trial.status in ("stopped", "finished")]
    trained = np.array([sum(trial.epochs > i for trial in overview.trials) for i in range(epochs)])
    everything = trained + [sum(last <= i < overview.epochs for last in ended) for i in range(epochs)]
    soften(axes)
    artists = {
        "trained": axes.stairs(trained, edges, fill=True, color=COLORS[0], zorder=2),
        "saved by stopping early": axes.stairs(everything, edges, baseline=trained, fill=True, color="0.8", zorder=2),
    }
    axes.set_xlabel("epoch")
    axes.set_ylabel("trials")
    axes.set_xlim(0.5, epochs + 0.5)
    axes.set_ylim(0, everything.max() * 1.05)
    whole_numbers(axes.xaxis)
    whole_numbers(axes.yaxis)
    legend_below(axes, artists, columns=2, gap=0.2)
