"""What a run shows on the screen: what was decided, bars, one line per epoch, the result.

On a terminal there is at most one live line (a bar or a spinner) at the bottom, and finished lines scroll above it.
Elsewhere (a pipe, a log file, TERM=dumb) everything is plain lines without escape codes. Lines are never wrapped,
cut or read as markup, so that paths and commands can be copied.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any, NamedTuple, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

PLAIN_SECONDS, PLAIN_LINES = 10.0, 20
"""Without a terminal, an epoch tells how far it is at most once in so many seconds, and so many times in all."""
_REASONS = {
    "epochs": "all epochs are done",
    "patience": "{metric} has not improved for {stale} epochs",
    "time": "the time limit is reached",
    "budget": "the budget is spent",
    "user": "stopped by the user",
    "interruption": "interrupted",
}
_Part = str | tuple[str, str]
"""A piece of a line: text, or (text, style)."""


class Screen:
    """The screen of one run; a context manager, so that the terminal is restored whatever happens.

    For one thread at a time. With `verbose`, the lines of the epochs also tell data wait, GPU use and GPU memory.
    """

    def __init__(self, verbose: bool = False, file: IO[str] | None = None) -> None:
        """Write to `file`, or to the standard output of the moment. NO_COLOR and TERM=dumb are respected."""
        stream = sys.stdout if file is None else file
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # A name that the terminal cannot show must not end a run.
        self._console = Console(file=file, soft_wrap=True)
        # FORCE_COLOR makes rich take a log file for a terminal: colours are welcome there, moving bars are not.
        self._has_bars = self._console.is_interactive and stream.isatty()
        self._verbose = verbose
        self._live: Progress | None = None
        self._activity = ""
        """What the live line shows, or the last plain line told: a text waited for, "cache" or "training"."""
        self._pace = _Pace(0)
        self._table: _Table | None = None
        self._epoch, self._epochs, self._epoch_seconds = 0, 0, 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the live line and give the cursor back. Harmless when repeated."""
        self._activity = ""
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def decided(self, items: Mapping[str, str]) -> None:
        """What the run will do, as two aligned columns."""
        self.close()
        self._pairs(items)
        self._line()

    def measured(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """The table that the settings of a run were decided by: a row per measured batch or setting."""
        self.close()
        self._line(("measured: images at a time, seconds per step, images/s, memory", "dim"))
        for row in rows:
            how = row["precision"] + ("" if row["channels_last"] else ", NCHW") + (", compiled" * row["compile"])
            if row["seconds"] is None:
                self._line(f"{row['images']:>6}  does not fit  {how}")
                continue
            memory = "" if row["bytes"] is None else f"{row['bytes'] / 1e9:6.2f} GB"
            unfit = "" if row["fits"] else "  more than may be used"
            self._line(
                f"{row['images']:>6}  {row['seconds']:8.4f}  {row['images_per_second']:8.1f}  {memory}  {how}{unfit}"
            )
        self._line()

    def note(self, text: str) -> None:
        self._line(text)

    def warn(self, text: str) -> None:
        self._line(("warning: ", "yellow"), text)

    def waiting(self, text: str) -> None:
        """Say what is being waited for, until anything but a note or a warning follows."""
        if self._has_bars:
            self._show(text, text)
        elif self._activity != text:
            self._activity = text
            self._line(f"{text} ...")

    def building(self, done: int, total: int) -> None:
        """How many images of the cache are ready; without a terminal, a line per quarter."""
        if self._activity != "cache":
            self._pace = _Pace(done, told=-1)
        quarter, info = 4 * done // max(total, 1), f"{done:,} of {total:,} images"
        if done >= total:
            self.close()
            self._line(f"built the cache: {total:,} images")
        elif self._has_bars:
            left = self._pace.left(done, total)
            self._show("cache", "cache", done, total, info + (f"  {duration(left)} left" if left else ""))
        elif quarter > self._pace.told:
            self._activity, self._pace.told = "cache", quarter
            self._line(f"building the cache: {info} ({100 * done // total} %)")

    def progress(self, metrics: Mapping[str, Any], epochs: int | None = None) -> None:
        """How far an epoch is: epoch, step, steps, loss, images_per_second. `epochs`: of the run, where known."""
        epoch, step, steps = int(metrics["epoch"]), int(metrics["step"]), int(metrics["steps"])
        if self._activity != "training" or epoch != self._epoch:
            self._epoch, self._pace = epoch, _Pace(step)
        self._epochs = epochs or self._epochs
        rate = _COLUMNS["images_per_second"].text(metrics.get("images_per_second"))
        loss = _COLUMNS["train_loss"].text(metrics.get("loss"))
        info = f"{step:,}/{steps:,}  loss {loss}  {rate} images/s{self._left(step, steps)}"
        if self._has_bars:
            self._show("training", self._epoch_name(), step, steps, info)
            return
        self._activity, now, part = "training", time.monotonic(), PLAIN_LINES * step // steps
        if now >= self._pace.told_at + PLAIN_SECONDS and part > self._pace.told:
            self._pace.told, self._pace.told_at = part, now
            self._line(f"{self._epoch_name()}  step {info}")

    def epoch(self, row: Mapping[str, Any], epochs: int, metric: str, better: bool) -> None:
        """One line for a finished epoch. `metric`: the primary one; `better`: whether it is the best so far."""
        self._epochs, self._epoch_seconds = epochs, float(row.get("seconds") or 0.0)
        if self._live is not None and self._activity == "training":
            self._epoch, self._pace = min(int(row["epoch"]) + 1, epochs), _Pace(0)
            self._show("training", self._epoch_name(), 0, 1)
        else:
            self.close()
        if self._table is None:
            width = self._console.width if self._has_bars else None
            self._table = _Table(row, epochs, metric, self._verbose, width)
            self._line((self._table.header(), "dim"))
        self._line(*self._table.line(row, better))

    def finished(self, summary: Mapping[str, Any], run_folder: str, open_command: str) -> None:
        """The result of a run, from its summary.json, and the command that opens its page in MLflow."""
        self.close()
        metric, status, epochs = summary["metric"], str(summary["status"]), summary["epochs_completed"]
        reason = str(summary.get("stopped_because") or "")
        stale = epochs - (metric["best_epoch"] or 0)
        reason = _REASONS.get(reason, reason).format(metric=metric["name"], stale=stale)
        self._line()
        self._line(
            (status, "bold green" if status == "finished" else "bold yellow"),
            f" after {epochs} epoch{'s' * (epochs != 1)}" + (f": {reason}" if reason else ""),
        )
        self._pairs(_result(summary) | {"run": run_folder})
        self._line()
        self._line("To see the run in MLflow:")
        self._line((open_command, "bold"))

    def _line(self, *parts: _Part) -> None:
        self._console.print(Text.assemble(*parts))

    def _pairs(self, items: Mapping[str, str]) -> None:
        width = max(map(len, items), default=0)
        for key, value in items.items():
            self._line((key.ljust(width), "cyan"), f"  {value}")

    def _epoch_name(self) -> str:
        return f"epoch {self._epoch}/{self._epochs}" if self._epochs else f"epoch {self._epoch}"

    def _left(self, step: int, steps: int) -> str:
        """The time left of the epoch, and of the run, whose later epochs are taken to last as long as the last."""
        left = self._pace.left(step, steps)
        if left is None:
            return ""
        each = self._epoch_seconds or left * steps / max(steps - step, 1)
        later = max(self._epochs - self._epoch, 0)
        return f"  {duration(left)} left" + (f", run {duration(left + later * each)}" if later else "")

    def _show(self, activity: str, name: str, done: int = 0, total: int | None = None, info: str = "") -> None:
        """Draw the live line, or move it; without a total it is a spinner."""
        if self._live is None or activity != self._activity:
            self.close()
            bar = (
                BarColumn(None, complete_style="cyan", finished_style="cyan"),
                TextColumn("{task.fields[info]}", markup=False),
            )
            self._live = Progress(
                *(() if total else (SpinnerColumn(),)),
                TextColumn("{task.description}", markup=False),
                *(bar if total else (TimeElapsedColumn(),)),
                console=self._console,
                transient=True,
                redirect_stderr=sys.stderr.isatty(),  # Otherwise `2> FILE` would get nothing.
            )
            self._activity = activity
            self._live.add_task(name, total=total, info=info)
            self._live.start()
        self._live.update(self._live.task_ids[0], description=name, completed=done, total=total, info=info)


class _Pace:
    """The speed of a counter from the first value seen on: a resumed epoch starts in the middle.

    told: the last part (quarter, twentieth) of the way that a plain line told; told_at: when it did.
    """

    def __init__(self, first: int, told: int = 0) -> None:
        self.first, self.told = first, told
        self.started = self.told_at = time.monotonic()

    def left(self, done: int, total: int) -> float | None:
        """Seconds until `total`; None before anything can be told."""
        seconds = time.monotonic() - self.started
        return seconds * (total - done) / (done - self.first) if done > self.first else None


class _Column(NamedTuple):
    """How the lines of the epochs show one key of a row."""

    title: str
    width: int
    shown: Callable[[Any], str]

    def text(self, value: object) -> str:
        return "-" if value is None else self.shown(value)


_COLUMNS = {
    "epoch": _Column("epoch", 0, str),
    "train_loss": _Column("train_loss", 6, "{:.4f}".format),
    "lr": _Column("lr", 8, "{:.3g}".format),
    "images_per_second": _Column("images/s", 6, lambda rate: f"{rate:,.{0 if rate >= 10 else 1}f}"),
    "seconds": _Column("seconds", 6, "{:,.1f}".format),
    "data_wait_fraction": _Column("data wait", 4, "{:.0%}".format),
    "gpu_utilization": _Column("GPU use", 4, "{:.0%}".format),
    "gpu_memory_peak_bytes": _Column("GiB on GPU", 5, lambda size: f"{size / 2**30:.1f}"),
}
_DEVICE = ("data_wait_fraction", "gpu_utilization", "gpu_memory_peak_bytes")


class _Table:
    """The lines of the epochs: the columns of the first row, fewer where they take more than `most` characters."""

    def __init__(self, row: Mapping[str, Any], epochs: int, metric: str, verbose: bool, most: int | None) -> None:
        self.epochs, self.metric, self.columns = epochs, metric, dict[str, _Column]()
        others = [
            key
            for key, value in row.items()
            if key not in {*_COLUMNS, "step", "skipped_steps", metric} and isinstance(value, int | float | None)
        ]
        device = list(_DEVICE) if verbose else []
        for key in ["epoch", "train_loss", metric, *others, "lr", "images_per_second", "seconds", *device]:
            column = _COLUMNS.get(key, _Column(key, 6, "{:.4f}".format))
            title, width = column.title, column.width
            if key == "epoch":
                width = 2 * len(str(epochs)) + 1
            elif key == metric:
                title, width = title + "*", width + 1
            self.columns[key] = _Column(title, max(width, len(title)), column.shown)
        for key in [*reversed(others), *device, "lr", "images_per_second", "seconds", "train_loss"]:
            if most is None or len(self.header()) <= most:
                break
            del self.columns[key]

    def header(self) -> str:
        return "  ".join(column.title.rjust(column.width) for column in self.columns.values())

    def line(self, row: Mapping[str, Any], better: bool) -> list[_Part]:
        """The cells of one epoch; the primary metric has a star where it is the best so far."""
        parts: list[_Part] = []
        for key, column in self.columns.items():
            text, style = column.text(row.get(key)), ""
            if key == "epoch":
                text += f"/{self.epochs}"
            elif key == self.metric:
                text, style = text + " *"[better], "bold green" if better else "bold"
            parts += ["  " * bool(parts), (text.rjust(column.width), style)]
        return parts


def _result(summary: Mapping[str, Any]) -> dict[str, str]:
    """The lines of the result. What was not measured is left out."""
    metric, seconds, speed = summary["metric"], summary["seconds"], summary["throughput"]
    best = "the last epoch: there was no validation" if summary["epochs_completed"] else "no epoch was finished"
    items = {"best": best, "time": duration(seconds["total"])}
    if metric["best"] is not None:
        items["best"] = f"{metric['name']} {metric['best']:.4f} at epoch {metric['best_epoch']}"
    if metric["last"] not in (None, metric["best"]):
        items["best"] += f", {metric['last']:.4f} at the end"
    if seconds["to_first_step"] is not None:
        items["time"] += f", {duration(seconds['to_first_step'])} of it to the first step"
    measured = [key for key in ("images_per_second", *_DEVICE) if speed.get(key) is not None]
    if measured:
        items["speed"] = ", ".join(f"{_COLUMNS[key].text(speed[key])} {_COLUMNS[key].title}" for key in measured)
    return items


def duration(seconds: float) -> str:
    """A time as people say it, with two units at most: "8.1 s", "2 min 05 s", "1 h 12 min", "3 d 4 h"."""
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"
