"""lr.png: which learning rates led where, with which optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.plots import canvas
from orchestrator.plots.canvas import COLORS
from orchestrator.sweeps.axes import describe, legend_below, message, scale_of, soften
from orchestrator.sweeps.records import Overview, Trial, is_number
from orchestrator.sweeps.words import score, setting

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@canvas.in_any_script()
def draw_lr(overview: Overview, out: Path) -> bool:
    """Draw each trial's best value over its learning rate, a colour per optimizer. Raises OSError.

    Filled: trained to the end; hollow: stopped early. False, and no picture, where `lr` is not searched.
    """
    if "lr" not in overview.scales:
        return False
    figure = canvas.make_figure(10, 5.6)
    axes = figure.subplots()
    title = f"{overview.metric} by learning rate"
    trials = [trial for trial in overview.ranked if is_number(trial.params.get("lr")) and trial.params["lr"] > 0]
    if not trials:
        message(axes, "no trial has a value yet")
        describe(axes, title)
        canvas.save_figure(figure, out)
        return True
    soften(axes)
    best = [t.best(overview.metric, overview.mode) for t in trials]
    values = {trial.number: pair[0] for trial, pair in zip(trials, best, strict=True) if pair}
    artists = _draw_optimizers(axes, overview, trials, values)
    top = trials[0]
    at = (top.params["lr"], values[top.number])
    artists[f"the best (trial {top.number})"] = axes.plot(
        *at, "o", markersize=16, markerfacecolor="none", color=COLORS[6], linestyle="", zorder=5
    )[0]
    axes.set_xscale("log" if overview.scales["lr"] == "log" else "linear")
    axes.set_yscale(scale_of(list(values.values())))
    axes.set_xlabel("learning rate")
    axes.set_ylabel(f"best {overview.metric}", parse_math=False)
    legend_below(axes, artists, len(artists) if len(artists) < 7 else 4, 0.12)
    with_what = f" with {setting(top.params['optimizer'])}" if "optimizer" in top.params else ""
    describe(
        axes,
        f"{title}: the best is {score(at[1])} at lr {setting(at[0])}{with_what}",
        "filled: trained to the end; hollow: stopped before",
    )
    canvas.save_figure(figure, out)
    return True


def _draw_optimizers(
    axes: Axes, overview: Overview, trials: Sequence[Trial], values: Mapping[int, float]
) -> dict[str, Any]:
    """The points; the legend's names and artists where there is more than one colour."""
    from matplotlib.lines import Line2D

    searched = "optimizer" in overview.scales
    name = {t.number: setting(t.params.get("optimizer", "not set")) if searched else "trial" for t in trials}
    colors, markers = [*COLORS[:6], "0.4"], "osD^"
    size = 8 if len(trials) <= 60 else 5
    artists = {}
    for i, optimizer in enumerate(sorted(set(name.values()))):
        color, marker = colors[i % len(colors)], markers[i // len(colors) % len(markers)]
        for done in (False, True):
            points = [t for t in trials if name[t.number] == optimizer and (t.status == "finished") == done]
            axes.plot(
                [t.params["lr"] for t in points],
                [values[t.number] for t in points],
                marker,
                color=color,
                markersize=size,
                markerfacecolor=color if done else "white",
                markeredgewidth=1.4,
                alpha=0.9,
                zorder=3 + done,
            )
        artists[optimizer] = Line2D([], [], color=color, marker=marker, markersize=8, linestyle="")
    return artists if searched else {}
