"""How far a training has come: what decides how it goes on."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

RECENT = 5


@dataclass
class Progress:
    """Where a training is: what a checkpoint stores beside the tensors. `samples` are those consumed of `epoch`."""

    epoch: int = 0
    samples: int = 0
    loss_sum: float = 0.0
    counted: int = 0
    """Samples in `loss_sum`: those of skipped steps are not."""
    best: float | None = None
    best_epoch: int = 0
    stopped_because: str = ""
    improved: float | None = None
    """The metric that `patience` counts from: better than the one before by `min_delta`."""
    improved_epoch: int = 0
    validated: int = 0
    """The last epoch that was validated."""
    improved_loss: float | None = None
    """The training loss of that epoch."""
    last_loss: float | None = None
    """The training loss of the last epoch."""
    seconds: float = field(default=0.0, compare=False)
    """Over all sessions."""
    updates: int = 0
    """Optimizer steps."""
    micro: int = 0
    """The micro-batch that memory forced; 0: none."""
    phases: list[Any] = field(default_factory=list)
    skipped: list[dict[str, Any]] = field(default_factory=list)
    """Steps that were left out because they were not finite: epoch, step, samples."""
    scaler: dict[str, Any] = field(default_factory=dict)
    recent: list[dict[str, Any]] = field(default_factory=list, compare=False)
    """The rows of the last RECENT epochs: who restores a checkpoint tells them again, should they have been lost."""

    def remember(self, row: dict[str, Any]) -> None:
        self.recent = [*self.recent, dict(row)][-RECENT:]

    def is_better(self, value: float | None, mode: str) -> bool:
        return _beats(value, self.best, mode, 0.0)

    def has_improved(self, value: float | None, mode: str, min_delta: float) -> bool:
        return _beats(value, self.improved, mode, min_delta)


def _beats(value: float | None, best: float | None, mode: str, margin: float) -> bool:
    if value is None or math.isnan(value):
        return False
    return best is None or (value > best + margin if mode == "max" else value < best - margin)


def most_at_once(micro_batch: int | None, forced: int) -> int | None:
    """The micro-batch that the setting and memory (0: it forced none) limit; None: nothing does."""
    return min((limit for limit in (micro_batch, forced) if limit), default=None)
