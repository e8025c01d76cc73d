"""report.html of a sweep: one file that needs no network and no script."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from importlib.resources import files
from itertools import islice
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from orchestrator.console import duration
from orchestrator.sweeps.records import Overview, Trial
from orchestrator.sweeps.words import counts, outcome, reason, saved_part, score, setting, train_command

ROWS, STOPS = 500, 200
"""Trials and decisions that the page lists; the rest is in trials.csv and decisions.csv."""
CAPTIONS = {
    "curves": "A line is a trial, and the marker at its end tells how it ended: crosses were stopped for missing the "
    "cut-off of a rung, which is drawn where it stood at the end.",
    "parallel": "Follow a line from the left to the right for the settings of a trial and the metric that they led "
    "to: where the dark lines meet is the place to search further.",
    "importance": "The longer a bar, the more of the differences between the trials that setting explains by itself; "
    "a short one may be left at its default.",
    "lr": "Where the points peak is the learning rate to choose, for each optimizer its own; hollow points were "
    "stopped early, and might have come higher.",
    "saving": "The blue area is the training that was done, an epoch of a trial for each unit; the grey one is what "
    "stopping early left out.",
}


def write_page(overview: Overview, folder: Path, pictures: Sequence[Path], place: str | None = None) -> Path:
    """Write FOLDER/report.html, with the pictures (PNG files) inside; returns its path. Raises OSError.

    place: of the sweep, as its user names it, where that is not `folder`: a URI.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"amount": lambda number: f"{number:,}", "score": score, "setting": setting}
    template = files("orchestrator.sweeps").joinpath("report.html.j2").read_text(encoding="utf-8")
    trials = _ordered(overview)
    stops = [decision for decision in overview.decisions if decision.stop]
    winner = next(iter(overview.ranked), None)
    page = environment.from_string(template).render(
        overview=overview,
        winner=winner,
        best=winner and winner.best(overview.metric, overview.mode),
        command=train_command(place or str(folder)),
        why=reason(overview.stopped_because),
        tiles=_tiles(overview),
        trials=[(trial, outcome(trial), trial.best(overview.metric, overview.mode)) for trial in trials[:ROWS]],
        more_trials=len(trials[ROWS:]),
        pictures=[(path.stem, CAPTIONS.get(path.stem, ""), _data_uri(path)) for path in pictures],
        stops=list(islice(stops, STOPS)),
        more_stops=len(stops[STOPS:]),
    )
    out = folder / "report.html"
    out.write_text(page, encoding="utf-8")
    return out


def _ordered(overview: Overview) -> list[Trial]:
    """Best first, then those without a value, at last those that failed."""
    ranked = overview.ranked
    known = {trial.number for trial in ranked}
    every = ranked + [trial for trial in overview.trials if trial.number not in known]
    return sorted(every, key=lambda trial: trial.status == "failed")


def _tiles(overview: Overview) -> list[tuple[str, str]]:
    return [
        (f"{len(overview.trials):,}", f"trials: {counts(overview)}" if overview.trials else "trials"),
        (f"{overview.epochs_spent:,}", f"epochs trained, of at most {overview.epochs:,} for each trial"),
        (f"{saved_part(overview):.0%}", f"saved by stopping early: {overview.epochs_saved:,} epochs"),
        (duration(overview.seconds), "in all"),
    ]


def _data_uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
