"""What a run tells: every report of the loop goes to the screen, results.csv and MLflow, and into the summary."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from orchestrator.launch import Placement
from orchestrator.preflight import Checked
from orchestrator.storage import RunFolder
from orchestrator.tracking import Tracker
from trainables.contracts import DataInfo, Metrics
from trainables.optim import choose

DETAILS = "details"


class Watcher(Protocol):
    """Who is shown what a run tells: a screen, or a line in the table of a sweep."""

    def decided(self, decisions: Mapping[str, str]) -> None: ...

    def measured(self, table: list[Metrics]) -> None: ...

    def progress(self, metrics: Metrics, epochs: int | None = None) -> None: ...

    def epoch(self, row: Metrics, epochs: int, metric: str, better: bool) -> None: ...

    def warn(self, text: str) -> None: ...

    def note(self, text: str) -> None: ...


@dataclass
class Recorder:
    """Takes the loop's reports on the driver, in their order, wherever the loop runs."""

    checked: Checked
    placement: Placement
    info: DataInfo
    cache: dict[str, Any]
    """Tier, bytes, build_seconds, reused."""
    folder: RunFolder
    screen: Watcher
    tracker: Tracker
    started: float
    """Wall-clock time of the command."""
    rows: list[Metrics]
    """One per epoch; those of earlier sessions where the run was resumed."""
    before: dict[str, Any] = field(default_factory=dict)
    """The summary of an earlier session."""
    facts: Metrics = field(default_factory=dict)
    """What the loop told of its device and precision."""
    table: list[Metrics] = field(default_factory=list)
    """What was measured before the run."""
    events: list[Metrics] = field(default_factory=list)
    """What happened that is not the usual: memory that ran out, steps skipped, epochs added."""
    details: Metrics = field(default_factory=dict)
    """Of the best epoch of this session: what plots draw beyond scalars."""
    to_first_step: float | None = None

    def __post_init__(self) -> None:
        self.config = self.checked.config.model_copy(update={"name": self.folder.name})
        """With what was decided in place of what was open."""
        self.epochs = self.config.total_epochs
        self.chosen_by = self.before.get("batch", {}).get("chosen_by", "config")
        chosen = "auto" if self.config.optimizer == "auto" else "config"
        self.optimizer_by = self.before.get("optimizer", {}).get("chosen_by", chosen)
        self.table = self.before.get("measured", [])
        self.events = self.before.get("events", [])
        for row in self.rows:  # what the tracker has already is not written twice
            self.tracker.log_epoch(row, row["epoch"])

    def handle(self, metrics: Metrics, has_state: bool) -> None:
        """Take one report of the loop."""
        if "decided" in metrics:
            self._decide(metrics["decided"], metrics["table"])
            return
        if "event" in metrics:
            self._note(metrics)
            return
        if "recent" in metrics:
            for row in metrics["recent"]:
                self._epoch(row)
            return
        if "device" in metrics:
            self.facts = metrics
            self.screen.decided(self._as_it_runs())
            return
        self.epochs = metrics.get("epochs", self.epochs)
        if self.to_first_step is None:
            self.to_first_step = time.time() - self.started
        if not has_state:
            self.screen.progress(metrics, self.epochs)
        elif "train_loss" in metrics:
            self._epoch(metrics)

    def write_summary(self, status: str, stopped_because: str) -> dict[str, Any]:
        """Write and return summary.json, with the names that others build on."""
        config, info, name = self.config, self.info, self.checked.metric
        last = next((row[name] for row in reversed(self.rows) if row.get(name) is not None), None)
        share = self._share
        micro = self.facts.get("micro") or share
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
            "metric": {"name": name, "mode": self.checked.mode} | self._best() | {"last": last},
            "epochs_completed": len(self.rows),
            "batch": {
                "global": config.batch,
                "per_worker": share,
                "micro": micro,
                "accumulation": -(-share // micro),
                "chosen_by": self.chosen_by,
            },
            "measured": self.table,
            "events": self.events,
            "precision": self.facts.get("precision"),
            "optimizer": asdict(choose(config, config.total_epochs * -(-info.train // max(config.batch, 1))))
            | {"chosen_by": self.optimizer_by},
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

    def _decide(self, decided: Metrics, table: list[Metrics]) -> None:
        """Write what was open into the config of the run, once: resume and extend go by it."""
        if decided.get("batch"):
            self.chosen_by = "probe"
        self.table = table or self.table
        self.config = self.config.model_copy(update=decided)
        self.folder.write_config(self.config)
        self.tracker.describe(self.config.model_dump(mode="json"))
        if table:
            self.screen.measured(table)

    @property
    def _share(self) -> int:
        """The most images that a worker has of a batch; 1 while the batch is still to be measured."""
        return max(-(-self.config.batch // self.placement.workers), 1)

    def _as_it_runs(self) -> dict[str, str]:
        """What was not known before the model stood in memory."""
        facts, config = self.facts, self.config
        share = self._share
        micro = f", in parts of {facts['micro']}" if facts["micro"] < share else ""
        frozen = facts["parameters"] - facts["trained"]
        lines = {
            "precision": f"{facts['precision']}, {'NHWC' if facts['channels_last'] else 'NCHW'}"
            + (", compiled" if facts["compile"] else ""),
        }
        if self.chosen_by == "probe" or micro:
            lines["batch"] = f"{config.batch} ({share} per worker{micro}), by {self.chosen_by}"
        if frozen:
            lines["frozen"] = f"{frozen:,} of {facts['parameters']:,} parameters"
        if facts["sync_bn"]:
            lines["batch norms"] = "synchronised over the workers"
        return lines

    def _note(self, metrics: Metrics) -> None:
        self.events.append(metrics)
        if "micro" in metrics:
            self.facts["micro"] = metrics["micro"]
        kind = metrics["event"]
        (self.screen.warn if kind in ("memory", "not finite") else self.screen.note)(metrics["text"])

    def _epoch(self, metrics: Metrics) -> None:
        """Take an epoch's row, once: what was trained again, or told again, is known."""
        if self.rows and metrics["epoch"] <= self.rows[-1]["epoch"]:
            return
        row = {k: v for k, v in metrics.items() if k != DETAILS}
        if better := DETAILS in metrics:
            self.details = metrics[DETAILS]
        self.rows.append(row)
        self.folder.append_result(row)
        self.tracker.log_epoch(row, row["epoch"])
        # if the driver dies now, this is what its summary says
        self.write_summary("interrupted", "interruption")
        self.screen.epoch(row, max(self.epochs, row["epoch"]), self.checked.metric, better)

    def _best(self) -> dict[str, Any]:
        """The first of the best epochs, by the one metric."""
        name, sign = self.checked.metric, 1 if self.checked.mode == "max" else -1
        rows = [row for row in self.rows if row.get(name) is not None and not math.isnan(row[name])]
        best = max(rows, key=lambda row: (sign * row[name], -row["epoch"]), default=None)
        return {"best": best and best[name], "best_epoch": best and best["epoch"]}


def _mean(rows: list[Metrics], name: str) -> float | None:
    """The mean over the epochs, without the first (which warms up) where there are more."""
    values = [row[name] for row in (rows[1:] or rows) if row.get(name) is not None]
    return sum(values) / len(values) if values else None
