"""What a run tells: every report of the loop goes to the screen, results.csv and MLflow, and into the summary."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from orchestrator.console import Screen
from orchestrator.launch import Placement
from orchestrator.preflight import Checked
from orchestrator.storage import RunFolder
from orchestrator.tracking import Tracker
from trainables.contracts import DataInfo, Metrics
from trainables.optim import choose

DETAILS = "details"


@dataclass
class Recorder:
    """Takes the loop's reports on the driver, in their order, wherever the loop runs."""

    checked: Checked
    placement: Placement
    info: DataInfo
    cache: dict[str, Any]
    """Tier, bytes, build_seconds, reused."""
    folder: RunFolder
    screen: Screen
    tracker: Tracker
    started: float
    """Wall-clock time of the command."""
    rows: list[Metrics]
    """One per epoch; those of earlier sessions where the run was resumed."""
    facts: Metrics = field(default_factory=dict)
    """What the loop told of its device and precision."""
    details: Metrics = field(default_factory=dict)
    """Of the best epoch of this session: what plots draw beyond scalars."""
    to_first_step: float | None = None

    def handle(self, metrics: Metrics, has_state: bool) -> None:
        """Take one report of the loop."""
        if "device" in metrics:
            self.facts = metrics
            return
        if self.to_first_step is None:
            self.to_first_step = time.time() - self.started
        if not has_state:
            self.screen.progress(metrics, self.checked.config.total_epochs)
        elif "train_loss" in metrics:
            self._epoch(metrics)

    def write_summary(self, status: str, stopped_because: str) -> dict[str, Any]:
        """Write and return summary.json, with the names that others build on."""
        config, info, name = self.checked.config, self.info, self.checked.metric
        last = self.rows[-1] if self.rows else {}
        share = -(-config.batch // self.placement.workers)
        summary = {
            "status": status,
            "stopped_because": stopped_because,
            "task": config.task,
            "model": config.model,
            "dataset": {
                "name": info.name,
                "fingerprint": info.fingerprint,
                "classes": list(info.classes),
                "train": info.train,
                "val": info.val,
                "skipped": info.skipped,
            },
            "metric": {"name": name, "mode": self.checked.mode} | self._best() | {"last": last.get(name)},
            "epochs_completed": len(self.rows),
            "batch": {
                "global": config.batch,
                "per_worker": share,
                "micro": share,
                "accumulation": 1,
                "chosen_by": "config",
            },
            "precision": self.facts.get("precision"),
            "optimizer": asdict(choose(config, config.total_epochs * -(-info.train // config.batch))),
            "throughput": {
                "images_per_second": _mean(self.rows, "images_per_second"),
                "data_wait_fraction": _mean(self.rows, "data_wait_fraction"),
                "gpu_utilization": _mean(self.rows, "gpu_utilization"),
                "gpu_memory_peak_bytes": max((r["gpu_memory_peak_bytes"] or 0 for r in self.rows), default=0) or None,
            },
            "cache": self.cache,
            "workers": [self.placement.workers],
            "restarts": 0,
            "seconds": {"total": time.time() - self.started, "to_first_step": self.to_first_step},
            "mlflow": self.tracker.info,
        }
        self.folder.write_json("summary.json", summary)
        return summary

    def _epoch(self, metrics: Metrics) -> None:
        row = {k: v for k, v in metrics.items() if k != DETAILS}
        if better := DETAILS in metrics:
            self.details = metrics[DETAILS]
        self.rows.append(row)
        self.folder.append_result(row)
        self.tracker.log_epoch(row, row["epoch"])
        # if the driver dies now, this is what its summary says
        self.write_summary("interrupted", "interruption")
        self.screen.epoch(row, self.checked.config.total_epochs, self.checked.metric, better)

    def _best(self) -> dict[str, Any]:
        """The first of the best epochs, by the one metric."""
        name, sign = self.checked.metric, 1 if self.checked.mode == "max" else -1
        rows = [row for row in self.rows if not math.isnan(row[name])]
        best = max(rows, key=lambda row: (sign * row[name], -row["epoch"]), default=None)
        return {"best": best and best[name], "best_epoch": best and best["epoch"]}


def _mean(rows: list[Metrics], name: str) -> float | None:
    """The mean over the epochs, without the first (which warms up) where there are more."""
    values = [row[name] for row in (rows[1:] or rows) if row[name] is not None]
    return sum(values) / len(values) if values else None
