"""Schedulers: who stops bad trials early. Each is a pure function of what it was told, so a journal replays it.

A scheduler gets every trial's best value so far, epoch by epoch, and answers with a `Decision` where it compared the
trial with others. Ray Tune asks it through `orchestrator.sweeps.tuner`.
"""

from __future__ import annotations

import bisect
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from orchestrator.config import Tune
from orchestrator.sweeps.records import Decision
from trainables.contracts import Mode
from trainables.recipe import Recipe
from trainables.registry import lookup

MEDIAN_PEERS = 3
"""The median rule compares a trial with so many others or more."""


class Scheduler(Protocol):
    """Decides whether a trial goes on. Called in the driver, for every validated epoch of every trial, in order."""

    rungs: Sequence[int]
    """The epochs at which trials are compared; empty: at every epoch, or never."""

    def judge(self, trial: int, epoch: int, value: float) -> Decision | None:
        """`value`: the trial's best metric so far. None where there was nothing to decide at this epoch."""


class Never:
    """Every trial trains to its end."""

    rungs: Sequence[int] = ()

    def judge(self, trial: int, epoch: int, value: float) -> Decision | None:
        return None


class Asha:
    """Asynchronous successive halving (Li et al. 2020, https://arxiv.org/abs/1810.05934), the stopping variant.

    Trials are compared at rungs: `grace` epochs, and each time `reduction` times as many. A trial goes on where its
    value is among the best 1/`reduction` of those that have reached the rung, itself included; the first ones always.
    With several brackets, trial i belongs to bracket i mod `brackets`, whose first rung is `reduction` times later than
    that of the one before.
    """

    def __init__(self, epochs: int, grace: int, reduction: int, mode: Mode, brackets: int = 1) -> None:
        self.reduction, self._sign = reduction, 1 if mode == "max" else -1
        self._brackets = [list(_rungs(grace * reduction**b, reduction, epochs)) for b in range(brackets)]
        self._brackets = [rungs for rungs in self._brackets if rungs] or [[]]
        self.rungs: Sequence[int] = sorted({rung for rungs in self._brackets for rung in rungs})
        self._reached: dict[tuple[int, int], dict[int, float]] = defaultdict(dict)

    def judge(self, trial: int, epoch: int, value: float) -> Decision | None:
        bracket = trial % len(self._brackets)
        rungs = self._brackets[bracket]
        number = bisect.bisect_right(rungs, epoch) - 1
        if number < 0 or trial in self._reached[bracket, rungs[number]]:
            return None
        peers = self._reached[bracket, rungs[number]]
        peers[trial] = value
        cutoff = self._cutoff(list(peers.values()))
        stop = cutoff is not None and self._sign * value < self._sign * cutoff
        return Decision(trial, epoch, rungs[number], value, cutoff, len(peers), stop, bracket)

    def survives(self, trial: int) -> bool:
        """Whether a trial is among the best of all that have come to the last rung that it reached."""
        bracket = trial % len(self._brackets)
        reached = [rung for rung in self._brackets[bracket] if trial in self._reached[bracket, rung]]
        if not reached:
            return True
        peers = self._reached[bracket, reached[-1]]
        cutoff = self._cutoff(list(peers.values()))
        return cutoff is None or self._sign * peers[trial] >= self._sign * cutoff

    def _cutoff(self, values: list[float]) -> float | None:
        """The value that the best 1/`reduction` of these reach; None where there are too few for a best part."""
        if len(values) < self.reduction:
            return None
        return sorted(values, key=lambda v: -self._sign * v)[math.ceil(len(values) / self.reduction) - 1]


class Median:
    """The median stopping rule (Golovin et al. 2017, Google Vizier): a trial stops whose best value is below the
    median, over the other trials, of the mean of their values up to the same epoch."""

    rungs: Sequence[int] = ()

    def __init__(self, grace: int, mode: Mode) -> None:
        self.grace, self._sign = grace, 1 if mode == "max" else -1
        self._values: dict[int, dict[int, float]] = defaultdict(dict)

    def judge(self, trial: int, epoch: int, value: float) -> Decision | None:
        if epoch in self._values[trial]:
            return None
        self._values[trial][epoch] = value
        if epoch < self.grace:
            return None
        means = [
            float(np.mean([v for e, v in values.items() if e <= epoch]))
            for other, values in self._values.items()
            if other != trial and max(values) >= epoch
        ]
        if len(means) < MEDIAN_PEERS:
            return None
        cutoff = statistics.median(means)
        return Decision(trial, epoch, epoch, value, cutoff, len(means) + 1, self._sign * value < self._sign * cutoff)


def _rungs(first: int, reduction: int, epochs: int) -> Sequence[int]:
    """The rungs below the last epoch, where nothing is left to save."""
    rungs = []
    while first < epochs:
        rungs.append(first)
        first *= reduction
    return rungs


def default_grace(recipe: Recipe) -> int:
    """A 27th of the epochs (three rungs of a reduction of 3 above it), and more than the warm-up."""
    epochs = recipe.total_epochs
    warmup = min(recipe.warmup_epochs, epochs / 10)
    return max(1, round(epochs / 27), math.ceil(warmup) + 1 if warmup >= 1 else 1)


Builder = Callable[[Tune, int, int, Mode], Scheduler]
"""Of the settings, the epochs of a trial, the grace and the mode."""

SCHEDULERS: dict[str, Builder] = {
    "asha": lambda tune, epochs, grace, mode: Asha(epochs, grace, tune.reduction, mode),
    "hyperband": lambda tune, epochs, grace, mode: Asha(epochs, grace, tune.reduction, mode, tune.brackets),
    "median": lambda tune, epochs, grace, mode: Median(grace, mode),
    "none": lambda tune, epochs, grace, mode: Never(),
}


def build_scheduler(tune: Tune, recipe: Recipe, mode: Mode) -> Scheduler:
    """The scheduler that the settings name; `recipe` is a trial's. Raises ValueError for an unknown one."""
    build: Builder = lookup(SCHEDULERS, tune.scheduler, "scheduler")
    return build(tune, recipe.total_epochs, tune.grace or default_grace(recipe), mode)
