"""Which settings decided how good a trial was: fANOVA over the trials of a sweep."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator.plots import canvas
from orchestrator.plots.canvas import COLORS
from orchestrator.sweeps.axes import describe, message, only_bars, position
from orchestrator.sweeps.records import Overview, Trial

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

FEWEST, MOST = 8, 200
"""Trials with a value that an answer takes at least, and at most: of more, some of every rank are taken."""
BARS = 20


def importances(overview: Overview) -> dict[str, float]:
    """Per searched key the share of the metric's variance that it explains by itself, largest first; the sum is 1.

    A trial counts with its best value, also where it was stopped early. Empty where fewer than FEWEST trials have a
    value, or all values are equal. The same trials give the same answer. The method is fANOVA (Hutter et al., 2014)
    on the scale of each key: a learning rate searched over decades counts by decades.
    """
    trials = overview.ranked
    values = [_best(overview, trial) for trial in trials]
    if len(trials) < FEWEST or min(values) == max(values) or not overview.scales:
        return {}
    chosen = np.unique(np.linspace(0, len(trials) - 1, min(len(trials), MOST)).round().astype(int)).tolist()
    columns = {key: _coordinates(overview, key, [trials[i] for i in chosen]) for key in overview.scales}
    columns = {key: column for key, column in columns.items() if len(set(column)) > 1}
    shares = dict.fromkeys(overview.scales, 0.0) | _fanova(columns, [values[i] for i in chosen]) if columns else {}
    return {key: shares[key] for key in sorted(shares, key=lambda key: -shares[key])}


def _best(overview: Overview, trial: Trial) -> float:
    best = trial.best(overview.metric, overview.mode)
    assert best is not None
    return best[0]


def _coordinates(overview: Overview, key: str, trials: Sequence[Trial]) -> list[Any]:
    """Categories as text; numbers as places on their scale. A trial without the key is a category, or in the middle."""
    scale, found = overview.scales[key], [trial.params.get(key) for trial in trials]
    places = [position(value, scale) for value in found]
    there = [place for place in places if place is not None]
    if scale == "category" or not there:
        return [repr(value) for value in found]
    middle = statistics.median(there)
    return [middle if place is None else place for place in places]


def _fanova(columns: Mapping[str, Sequence[Any]], values: Sequence[float]) -> dict[str, float]:
    """Shares by optuna's random forest, over a study in memory."""
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    def domain(column: Sequence[Any]) -> BaseDistribution:
        if isinstance(column[0], str):
            return CategoricalDistribution(sorted(set(column)))
        return FloatDistribution(min(column), max(column))

    domains = {key: domain(column) for key, column in columns.items()}
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study()
    finally:
        optuna.logging.set_verbosity(verbosity)
    for row, value in enumerate(values):
        params = {key: column[row] for key, column in columns.items()}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=domains, value=value))
    evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=32, max_depth=16, seed=0)
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {key: float(share) for key, share in shares.items()}


@canvas.in_any_script()
def draw_importance(overview: Overview, out: Path, shares: Mapping[str, float] | None = None) -> None:
    """Draw a bar per searched key: the share of the metric's variance that it explains. Raises OSError.

    shares: of `importances`, where they are known already.
    """
    shares = importances(overview) if shares is None else shares
    shown = dict(list(shares.items())[:BARS])
    figure = canvas.make_figure(10, 1.5 + 0.42 * max(len(shown), 4))
    axes = figure.subplots()
    trials = len(overview.ranked)
    if not shown:
        message(axes, f"too few trials: {trials} with a value, {FEWEST} are needed" if trials < FEWEST else "no key")
        if trials >= FEWEST and overview.scales:
            message(axes, f"all {trials:,} trials have the same {overview.metric}: no setting made a difference")
        describe(axes, f"Which settings decide {overview.metric}")
        canvas.save_figure(figure, out)
        return
    places = range(len(shown))
    axes.barh(places, list(shown.values()), height=0.62, color=COLORS[0])
    for place, share in zip(places, shown.values(), strict=True):
        axes.annotate(
            "<1%" if 0 < share < 0.005 else f"{share:.0%}",
            (share, place),
            (6, 0),
            textcoords="offset points",
            va="center",
        )
    axes.set_yticks(places, [canvas.shorten(key, 40) for key in shown], parse_math=False)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    only_bars(axes, max(shown.values()))
    key, share = next(iter(shown.items()))
    describe(
        axes,
        f"Which settings decide {overview.metric}: {canvas.shorten(key, 40)} explains {share:.0%}",
        f"share of the differences between {trials:,} trials that each setting explains by itself (fANOVA)",
    )
    canvas.save_figure(figure, out)
