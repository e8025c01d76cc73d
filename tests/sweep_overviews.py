"""Overviews of sweeps to draw: trials whose metric follows from their settings, the same every time."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

from orchestrator.sweeps.records import Decision, Overview, Trial

EPOCHS, RUNG = 9, 3


def trial(number: int, values: Sequence[float | None], metric: str = "top1", **more: Any) -> Trial:
    """A trial with these values of the metric, an epoch each."""
    rows = [{"epoch": i, metric: value, "train_loss": 1.0, "seconds": 1.0} for i, value in enumerate(values, 1)]
    params = more.pop("params", {"lr": 0.01, "optimizer": "SGD"})
    return Trial(number, params, more.pop("by", "tpe"), rows=rows, **more)


def overview(trials: Sequence[Trial], **more: Any) -> Overview:
    known: dict[str, Any] = {
        "name": "brave-otter",
        "status": "finished",
        "stopped_because": "trials",
        "metric": "top1",
        "mode": "max",
        "epochs": EPOCHS,
        "scheduler": "asha",
        "rungs": [RUNG],
        "scales": {"lr": "log", "optimizer": "category"},
        "decisions": [],
        "seconds": 754.0,
    }
    return Overview(**known | {"trials": trials} | more)


def sweep(number: int, keys: int = 4, **more: Any) -> Overview:
    """So many trials: lr decides, most are stopped at the rung, every ninth fails, some lack a key."""
    draw = random.Random(number)
    names = ["lr", "optimizer", "lrf", "batch", *(f"augment.a_long_setting_{i}" for i in range(4, keys))][:keys]
    scales = {name: {"optimizer": "category", "lr": "log", "batch": "log"}.get(name, "linear") for name in names}
    trials, decisions = [], []
    for i in range(number):
        params: dict[str, Any] = {name: draw.random() for name in names}
        params |= {"lr": 10 ** draw.uniform(-4, -1), "batch": draw.choice([16, 32, 64])}
        params |= {"optimizer": draw.choice(["SGD", "AdamW", "package.of.mine:a_long_name", None, True])}
        made = trial(i, [], by="default" if i == 0 else "tpe", params={name: params[name] for name in names})
        top = 0.95 - 0.2 * abs(math.log10(params["lr"]) + 2)
        stop = i % 3 > 0
        for epoch in range(1, (RUNG if stop else EPOCHS) + 1):
            value = math.nan if i % 9 == 7 else top * (1 - math.exp(-epoch / 2))
            made.rows.append({"epoch": epoch, "top1": value if epoch != 2 else None, "train_loss": 1.0})
        made.status, made.because = ("stopped", "asha") if stop else ("finished", "epochs")
        if stop:
            decisions.append(Decision(i, RUNG, RUNG, 0.5, 0.75, i, stop=True))
        if i % 9 == 7:
            made.status, made.because = "failed", "not finite at step 7"
        if i % 5 == 4:
            del made.params[names[-1]]
        trials.append(made)
    return overview(trials, scales=scales, decisions=decisions, **more)
