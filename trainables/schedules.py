"""Learning-rate schedules: pure functions of the step, ending exactly at ``lrf`` times the first rate."""

from __future__ import annotations

import math
from collections.abc import Callable

from trainables.registry import lookup

Schedule = Callable[[float, float], float]
"""(progress in [0, 1], lrf) -> factor on the learning rate."""

SCHEDULES: dict[str, Schedule] = {
    "cosine": lambda t, lrf: lrf + (1 - lrf) * 0.5 * (1 + math.cos(math.pi * t)),
    "linear": lambda t, lrf: 1 - (1 - lrf) * t if t < 1 else lrf,
    "constant": lambda t, lrf: 1.0,
}


def warmup_steps(warmup_epochs: float, epochs: int, steps_per_epoch: int) -> int:
    """Steps of linear warm-up: `warmup_epochs`, but at most a tenth of the training."""
    return round(min(warmup_epochs, 0.1 * epochs) * steps_per_epoch)


def lr_factor(name: str, step: int, total: int, warmup: int, lrf: float) -> float:
    """The factor on lr at `step` (0-based) of `total`: warm-up(step) x schedule(step); the last is `lrf` exactly."""
    schedule: Schedule = lookup(SCHEDULES, name, "schedule")
    factor = schedule(step / max(total - 1, 1), lrf)
    return factor * (step + 1) / (warmup + 1) if step < warmup else factor
