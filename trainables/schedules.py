"""Learning-rate schedules: pure functions of the step, ending exactly at ``lrf`` times the first rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from trainables.recipe import Recipe
from trainables.registry import lookup

Schedule = Callable[[float, float], float]
"""(progress in [0, 1], lrf) -> factor on the learning rate."""

SCHEDULES: dict[str, Schedule] = {
    "cosine": lambda t, lrf: lrf + (1 - lrf) * 0.5 * (1 + math.cos(math.pi * t)),
    "linear": lambda t, lrf: 1 - (1 - lrf) * t if t < 1 else lrf,
    "constant": lambda t, lrf: 1.0,
    "step": lambda t, lrf: _step(t, lrf),
    "one_cycle": lambda t, lrf: _one_cycle(t, lrf),
}
"""`constant` takes no lrf. Each of the others is 1 at its highest and exactly lrf at 1."""

ONE_CYCLE_RISE, ONE_CYCLE_START = 0.3, 1 / 25
"""Share of the steps in which one_cycle rises to the full rate, and the part of it that it begins with."""


class Phase(NamedTuple):
    """Epochs that were planned together: [first, last) from 0. A run has one, and one more each time it is extended.

    lr: whether the schedule starts anew over the phase, or the rate that the phase before ended with is held.
    """

    first: int
    last: int
    lr: Literal["restart", "hold"] = "restart"
    planned: int = 0
    """Where it was to end, if patience ended it before: its schedule is that of the plan."""


def lr_at(recipe: Recipe, phases: Sequence[Phase], epoch: int, step: int, steps: int) -> float:
    """The factor on lr at `step` of `epoch` (both from 0), where an epoch has so many `steps`."""
    current = max(i for i, phase in enumerate(phases) if i == 0 or phase.first <= epoch)
    phase = phases[current]
    if phase.lr == "hold" and current:
        return lr_at(recipe, phases[:current], phase.first - 1, steps - 1, steps)
    length = (phase.planned or phase.last) - phase.first
    warmup = warmup_steps(recipe.warmup_epochs, length, steps)
    return lr_factor(recipe.schedule, (epoch - phase.first) * steps + step, length * steps, warmup, recipe.lrf)


def warmup_steps(warmup_epochs: float, epochs: int, steps_per_epoch: int) -> int:
    """Steps of linear warm-up: `warmup_epochs`, but at most a tenth of the training."""
    return round(min(warmup_epochs, 0.1 * epochs) * steps_per_epoch)


def lr_factor(name: str, step: int, total: int, warmup: int, lrf: float) -> float:
    """The factor on lr at `step` (0-based) of `total`: warm-up(step) x schedule(step); the last is `lrf` exactly.

    one_cycle rises by itself: it takes no warm-up.
    """
    schedule: Schedule = lookup(SCHEDULES, name, "schedule")
    factor = schedule(step / max(total - 1, 1), lrf)
    return factor * (step + 1) / (warmup + 1) if step < warmup and name != "one_cycle" else factor


def _step(t: float, lrf: float) -> float:
    """Two equal drops, after half and three quarters of the steps: 1, sqrt(lrf), lrf.

    With lrf = 0 they are drops to a tenth and a hundredth, and the very last step alone has 0.
    """
    floor = lrf or 0.01
    return 1.0 if t < 0.5 else math.sqrt(floor) if t < 0.75 else floor if t < 1 else lrf


def _one_cycle(t: float, lrf: float) -> float:
    """Half a cosine up, then half a cosine down (Smith and Topin: Super-Convergence, 2018)."""
    rise = ONE_CYCLE_RISE
    first, last, part = (ONE_CYCLE_START, 1.0, t / rise) if t < rise else (1.0, lrf, (t - rise) / (1 - rise))
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * part)) if t < 1 else lrf
