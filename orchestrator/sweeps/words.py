"""How the screen and the report of a sweep write values, settings and commands."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping
from typing import Any

from orchestrator.sweeps.records import Overview, Status, Trial

STATUSES: tuple[Status, ...] = ("running", "interrupted", "failed", "stopped", "finished")
REASON_LETTERS = 300
_REASONS = {
    "trials": "all trials are done",
    "time": "the time limit is reached",
    "budget": "the budget is spent",
    "user": "stopped by the user",
    "interruption": "interrupted",
}


def score(value: float | None) -> str:
    """A value of the metric: four decimals, or four digits where it is very large or small; "-" for none."""
    if value is None:
        return "-"
    return f"{value:.4f}" if value == 0 or 0.001 <= abs(value) < 10_000 else f"{value:.4g}"


def setting(value: Any) -> str:
    """A value as YAML writes it, with four digits at most."""
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    if isinstance(value, float):
        return f"{value:.4g}"
    return " ".join(str(value).split())


def settings(params: Mapping[str, Any]) -> str:
    """All params in one line, as they are given on a command line."""
    return " ".join(f"{key}={setting(value)}" for key, value in params.items())


def outcome(trial: Trial) -> str:
    """Its status and the reason for it, where there is more to say than that all epochs are done."""
    why = " ".join(trial.because.split())[:REASON_LETTERS]
    if trial.status == "stopped" and why:
        return f"stopped by {why}"
    return f"failed: {why}" if trial.status == "failed" and why else trial.status


def reason(stopped_because: str) -> str:
    """Why a sweep ended, in words."""
    return _REASONS.get(stopped_because, stopped_because)


def counts(overview: Overview) -> str:
    """How many trials there are of each status: "3 running, 5 stopped, 4 finished"."""
    found = Counter(trial.status for trial in overview.trials)
    return ", ".join(f"{found[status]:,} {status}" for status in STATUSES if found[status])


def saved_part(overview: Overview) -> float:
    """The epochs saved, as a part of those that training everything to its end would take."""
    return overview.epochs_saved / max(overview.epochs_spent + overview.epochs_saved, 1)


def train_command(folder: str) -> str:
    """The command that trains the winner of the sweep in this folder or URI."""
    return f"orchestrator train {shlex.quote(folder.rstrip('/') + '/best.yaml')}"
