"""What a sweep shows on the screen: a live table of its trials, a line per trial that ended, the result."""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Mapping
from typing import IO, Any, Literal

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from orchestrator.console import Screen, duration
from orchestrator.sweeps.records import Overview, Trial
from orchestrator.sweeps.words import counts, outcome, reason, score, settings, train_command

TOP, LETTERS = 10, 20
REDRAW_SECONDS = 0.25
"""The table is not drawn more often than this, nor so often that it would take more than a tenth of the time."""
STYLES = {"running": "cyan", "finished": "green", "stopped": "yellow", "failed": "red", "interrupted": "magenta"}
Running = Mapping[int, tuple[int, int, int]]
"""Number of a trial that runs: the epoch that it is in, the step of this epoch, and how many steps that has."""


class SweepScreen(Screen):
    """The screen of a sweep. For one thread at a time."""

    def __init__(self, verbose: bool = False, file: IO[str] | None = None) -> None:
        """Write to `file`, or to the standard output. `verbose`: a terminal too gets a line per trial that ended."""
        super().__init__(verbose, file)
        self._board: Live | None = None
        self._due = 0.0

    def close(self) -> None:
        super().close()
        board, self._board = self._board, None
        if board is not None:
            board.stop()

    def update(self, overview: Overview, running: Running, left: float | None) -> None:
        """Draw the table anew, if the last time is long enough ago; `left`: seconds, where known. Nothing in a log."""
        now = time.monotonic()
        if not self._has_bars or (self._board is not None and now < self._due):
            return
        if self._board is None:
            self.close()
            self._board = Live(
                console=self._console, auto_refresh=False, transient=True, redirect_stderr=sys.stderr.isatty()
            )
            self._board.start()
        self._board.update(self._picture(overview, running, left), refresh=True)
        ended = time.monotonic()
        self._due = ended + max(REDRAW_SECONDS, 10 * (ended - now))

    def ended(self, trial: Trial, overview: Overview) -> None:
        """One line for a trial that ended; on a terminal only for one that failed, unless verbose."""
        if self._has_bars and not self._verbose and trial.status != "failed":
            return
        best, top = trial.best(overview.metric, overview.mode), _best(overview)
        at = f" at epoch {trial.epochs} of {overview.epochs}"
        what, _, why = outcome(trial).partition(": ")
        parts = [f"{at}: {why}" if why else at]
        if best is not None:
            parts.append(f"{overview.metric} {score(best[0])}")
        if top is not None:
            parts.append(f"best {score(top[0])} (trial {top[2]})")
        self._line(f"trial {trial.number}  ", (what, STYLES[trial.status]), "  ".join([*parts, settings(trial.params)]))

    def finished(self, summary: Mapping[str, Any], overview: Overview, folder: str, open_command: str) -> None:  # type: ignore[override]
        """The result of a sweep, from its summary.json, and the commands that go on from it; the table stays."""
        if self._board is not None:
            self._board.transient = False
            self._board.update(self._picture(overview, {}, None), refresh=True)
        self.close()
        status, why = str(summary["status"]), reason(str(summary.get("stopped_because") or ""))
        trials = int(summary["trials"]["total"])
        self._line()
        self._line(
            (status, "bold green" if status == "finished" else "bold yellow"),
            f" after {trials} trial{'s' * (trials != 1)}" + (f": {why}" if why else ""),
        )
        self._pairs(_result(summary, overview) | {"sweep": folder, "report": folder.rstrip("/") + "/report.html"})
        if summary["metric"]["best"] is not None:
            self._line()
            self._line("To train the winner:")
            self._line((train_command(folder), "bold"))
        self._line()
        self._line("To see the sweep in MLflow:")
        self._line((open_command, "bold"))

    def _picture(self, overview: Overview, running: Running, left: float | None) -> Group:
        """The table and the line below it, no higher than the terminal."""
        top = overview.ranked[:TOP]
        first = {trial.number for trial in top}
        others = [t for t in overview.trials if t.status == "running" and t.number not in first]
        room = max(self._console.height - len(top) - 5, 1)
        cells = [_cells(t, overview, running, i == 0 and bool(top)) for i, t in enumerate(top + others[:room])]
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        for i, title in enumerate(("trial", "epoch", "step", overview.metric, "status")):
            width = max([len(title), *(len(row[i]) for row in cells)])
            justify: Literal["left", "right"] = "left" if title == "status" else "right"
            table.add_column(
                Text(title), justify=justify, no_wrap=True, min_width=min(width, LETTERS), max_width=LETTERS
            )
        table.add_column("settings", no_wrap=True, ratio=1)
        for row in cells:
            table.add_row(*row)
        lines = [Text(f"… {len(others) - room} more running", style="dim")] if len(others) > room else []
        return Group(table, *lines, *map(Text, textwrap.wrap(totals(overview, left), self._console.width)))


def totals(overview: Overview, left: float | None = None) -> str:
    """A sweep as it stands, in one line; `left`: seconds, where known."""
    number = len(overview.trials)
    line = f"{number:,} trial{'s' * (number != 1)}" + (f": {counts(overview)}" if number else "")
    line += f"; epochs {overview.epochs_spent:,} spent, {overview.epochs_saved:,} saved"
    if (top := _best(overview)) is not None:
        line += f"; best {score(top[0])} by trial {top[2]}"
    return line + (f"; {duration(left)} left" if left is not None else "")


def _best(overview: Overview) -> tuple[float, int, int] | None:
    """The best value, its epoch and its trial."""
    for trial in overview.ranked[:1]:
        if (best := trial.best(overview.metric, overview.mode)) is not None:
            return *best, trial.number
    return None


def _cells(trial: Trial, overview: Overview, running: Running, first: bool) -> list[Text]:
    """A row of the table."""
    best, epoch, progress = trial.best(overview.metric, overview.mode), trial.epochs, ""
    if trial.number in running:
        epoch, step, steps = running[trial.number]
        progress = f"{step:,}/{steps:,}"
    return [
        Text(str(trial.number), style="bold" if first else ""),
        Text(f"{epoch}/{overview.epochs}"),
        Text(progress),
        Text(score(best[0] if best else None), style="bold green" if first else ""),
        Text(outcome(trial), style=STYLES[trial.status]),
        Text(settings(trial.params), style="" if first else "dim"),
    ]


def _result(summary: Mapping[str, Any], overview: Overview) -> dict[str, str]:
    """The lines of the result."""
    metric, trials, epochs = summary["metric"], summary["trials"], summary["epochs"]
    items = {"best": f"no trial has a value of {metric['name']}"}
    if metric["best"] is not None:
        number = metric["best_trial"]
        items["best"] = f"{metric['name']} {score(metric['best'])} by trial {number} at epoch {metric['best_epoch']}"
        items["settings"] = settings(next((t.params for t in overview.trials if t.number == number), {}))
    found = {name: trials.get(name, 0) for name in ("finished", "stopped", "failed", "interrupted")}
    items["trials"] = ", ".join(f"{number:,} {name}" for name, number in found.items() if number) or "none"
    items["epochs"] = f"{epochs['spent']:,} spent, {epochs['saved']:,} saved"
    if epochs["saved"] > 0 and epochs["full"]:
        items["epochs"] += f" ({epochs['saved'] / epochs['full']:.0%} of {epochs['full']:,})"
    return items | {"time": duration(summary["seconds"]["total"])}
