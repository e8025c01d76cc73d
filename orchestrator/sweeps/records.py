"""What a sweep knows of its trials: plain values, as the journal keeps them and the report draws them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from trainables.contracts import Metrics, Mode

Params = dict[str, Any]
"""Dotted config keys and their values: what a trial sets, and nothing else."""
Status = Literal["running", "finished", "stopped", "failed", "interrupted"]
"""Of a trial: finished all its epochs, stopped before (by the scheduler, patience, time or a budget), failed, or
interrupted and to be continued."""


@dataclass(frozen=True)
class Decision:
    """What a scheduler decided about a trial at an epoch, and why."""

    trial: int
    epoch: int
    rung: int
    """The epoch at which trials are compared."""
    value: float
    """The trial's best metric up to here."""
    cutoff: float | None
    """What it had to reach; None where there were too few to compare with."""
    peers: int
    """Trials that it was compared with, itself included."""
    stop: bool
    bracket: int = 0


@dataclass
class Trial:
    """One configuration and what came of it."""

    number: int
    params: Params
    by: str
    """Who proposed it: default, start_from, or the searcher's name."""
    status: Status = "running"
    because: str = ""
    """Why it ended: epochs, asha (or another scheduler), patience, time, budget; of a failed one the reason."""
    rows: list[Metrics] = field(default_factory=list)
    """A row per epoch, as in results.csv: "epoch", the metric, "train_loss", "lr", "seconds"."""
    retries: int = 0

    @property
    def epochs(self) -> int:
        """How many epochs it has done."""
        return int(self.rows[-1]["epoch"]) if self.rows else 0

    def best(self, metric: str, mode: Mode) -> tuple[float, int] | None:
        """Its best value and the first epoch that had it; None before the first validation."""
        sign = 1 if mode == "max" else -1
        scored = [(row[metric], row["epoch"]) for row in self.rows if is_number(row.get(metric))]
        return max(scored, key=lambda pair: (sign * pair[0], -pair[1]), default=None)


@dataclass(frozen=True)
class Overview:
    """A sweep as it stands: what the screen and the report show."""

    name: str
    status: str
    """As in summary.json: running, finished, stopped, failed, interrupted."""
    stopped_because: str
    metric: str
    mode: Mode
    epochs: int
    """That a trial trains for at most."""
    scheduler: str
    rungs: Sequence[int]
    """Epochs at which trials are compared, over all brackets."""
    scales: Mapping[str, Literal["linear", "log", "category"]]
    """The searched keys, and the axis that suits each."""
    trials: Sequence[Trial]
    decisions: Sequence[Decision]
    seconds: float
    """Of wall-clock time, over all sessions."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """Lines for the head of the report, as "data": "digits, 1,438 training images"."""

    @property
    def ranked(self) -> list[Trial]:
        """The trials with a value, best first; of equals the one that was proposed first."""
        sign = 1 if self.mode == "max" else -1
        scored = [(trial.best(self.metric, self.mode), trial) for trial in self.trials]
        return [t for b, t in sorted(((b, t) for b, t in scored if b), key=lambda p: (-sign * p[0][0], p[1].number))]

    @property
    def epochs_spent(self) -> int:
        return sum(trial.epochs for trial in self.trials)

    @property
    def epochs_saved(self) -> int:
        """That the scheduler and patience left out, against training every trial that did not fail to its end."""
        ended = [t for t in self.trials if t.status in ("stopped", "finished") and t.because != "budget"]
        return sum(self.epochs - t.epochs for t in ended)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
