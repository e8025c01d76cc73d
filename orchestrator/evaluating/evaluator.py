"""One evaluation, from a checked subject to the files that it leaves."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator import launch
from orchestrator.caching import Caching
from orchestrator.config import Config, ConfigError
from orchestrator.data.loader import View
from orchestrator.data.prepare import Prepared
from orchestrator.data.selection import Selection
from orchestrator.drafts import replacing
from orchestrator.errors import RunError, describe
from orchestrator.evaluating.job import EvaluationJob
from orchestrator.evaluating.screen import ValScreen
from orchestrator.evaluating.subject import Subject
from orchestrator.launch import Placement
from orchestrator.plots.classes import class_rows
from orchestrator.plots.examples import Picture, Pictures
from orchestrator.preflight import Checked
from orchestrator.report import pictures_of, plot_details
from orchestrator.stop import Stop
from orchestrator.storage import make_folder
from orchestrator.supervisor import supervise
from orchestrator.trained import Trained, Weights
from trainables.augment import FITS
from trainables.contracts import Metrics
from trainables.recipe import Recipe
from trainables.tasks import build_task


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation came to: its folder, the content of its metrics.json, and the task's details."""

    folder: Path
    report: dict[str, Any]
    details: Metrics


@dataclass(frozen=True)
class Evaluator:
    """One evaluation: the cache, the pass, the files."""

    trained: Trained
    config: Config
    subject: Subject
    split: str
    weights: Weights
    placement: Placement
    screen: ValScreen
    stop: Stop

    def run(self, verbose: bool) -> Evaluation:
        ema = self.trained.has_ema(self.weights)
        with (
            Caching(self._checked(), self.placement, self.screen, self.stop, verbose) as prepared,
            self._new() as folder,
        ):
            self.stop.raise_if_asked()
            self.screen.decided(self._decisions(prepared, ema))
            started = time.monotonic()
            found = self._pass(prepared, folder, ema)
            report = self._report(prepared, found, ema) | {"seconds": time.monotonic() - started}
            details: Metrics = found["details"]
            self.screen.waiting("writing plots")
            rows = class_rows(details, self.trained.classes)
            plot_details(details, self.trained.classes, folder, self._pictures(prepared))
            with replacing(folder / "metrics.json") as draft:
                draft.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            primary = build_task(self.config).primary
            self.screen.scores(report["metrics"], primary)
            self.screen.classes(rows, "accuracy" if "accuracy" in rows[0] else primary if primary in rows[0] else "map")
            self.screen.written(str(folder))
            return Evaluation(folder, report, details)

    def _checked(self) -> Checked:
        task = build_task(self.config)
        selection = Selection(train=self.subject.keys[:0], val=self.subject.keys, available=0)
        return Checked(
            config=self.config,
            manifest=self.subject.whole,
            used=self.subject.used,
            selection=selection,
            storage=self.trained.run.parents[1],
            metric=task.primary,
            mode=task.mode,
            parameters=0,
            pretrained=None,
        )

    @contextmanager
    def _new(self) -> Iterator[Path]:
        """RUN/val/NAME, which is taken away again where the evaluation does not come to its end."""
        name = "".join(c if c.isalnum() or c in "._-" else "-" for c in f"{self.split}-{self.subject.whole.name}")
        folder = make_folder(self.trained.run / "val", name)
        try:
            yield folder
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def _pass(self, prepared: Prepared, folder: Path, ema: bool) -> Metrics:
        """The scores and details, from wherever the model runs."""
        found: Metrics = {}
        total = len(prepared.cache.positions(self.subject.keys))

        def handle(metrics: Metrics, has_state: bool) -> None:
            if "scores" in metrics:
                found.update(metrics)
            elif "evaluated" in metrics:
                self.screen.evaluating(metrics["evaluated"], total)

        if not self.placement.in_process:
            (folder / "logs").mkdir()
        job = EvaluationJob(
            recipe=self.config.model_dump(include=set(Recipe.model_fields)),
            view=self._view(),
            cache=prepared.place,
            run_folder=folder,
            restore=self.trained.checkpoint,
            record_samples=False,
            profile=False,
            cpus=launch.all_cpus(),
            ema=ema,
            indices=self.subject.indices,
        )
        self.screen.waiting("preparing the model" if self.placement.in_process else "starting the workers")
        try:
            supervise(job, self.placement, prepared.cache, handle, self.stop)
        except ConfigError:
            raise
        except Exception as error:
            self.stop.raise_if_asked()
            raise RunError(f"the evaluation failed: {describe(error)}") from error
        return found

    def _view(self) -> View:
        config, whole = self.config, self.subject.whole
        assert config.imgsz is not None
        return View(
            name=whole.name,
            fingerprint=whole.fingerprint,
            classes=self.trained.classes,
            imgsz=config.imgsz,
            batch=config.batch,
            seed=config.seed,
            train=self.subject.keys[:0],
            val=self.subject.keys,
            fit=FITS[config.task],
            masks=config.task == "segment",
        )

    def _pictures(self, prepared: Prepared) -> Pictures:
        """The images with their labels by the run's indices."""
        pictures, indices = pictures_of(prepared.cache), self.subject.indices

        def picture(position: int) -> Picture:
            found = pictures(position)
            if indices is None or found.objects is None:
                return found
            labels = np.array(indices, np.int64)[found.objects.labels]
            return replace(found, objects=replace(found.objects, labels=labels))

        return picture

    def _decisions(self, prepared: Prepared, ema: bool) -> dict[str, str]:
        trained, whole = self.trained, self.subject.whole
        return {
            "run": str(trained.run),
            "checkpoint": f"{trained.checkpoint.name}, after {trained.epoch} epochs"
            + (", moving average of the weights" if ema else ""),
            "data": f"{whole.name}: {len(self.subject.keys):,} images of split {self.split} ({self.config.data})",
            "cache": prepared.describe(),
            "devices": str(self.placement),
        }

    def _report(self, prepared: Prepared, found: Metrics, ema: bool) -> dict[str, Any]:
        """The content of metrics.json."""
        config, whole = self.config, self.subject.whole
        return {
            "run": str(self.trained.run),
            "checkpoint": self.trained.checkpoint.name,
            "epoch": found["epoch"],
            "weights": "ema" if ema else "raw",
            "task": config.task,
            "model": config.model,
            "data": config.data,
            "dataset": {"name": whole.name, "fingerprint": whole.fingerprint, "split": self.split}
            | {"images": len(prepared.cache.positions(self.subject.keys)), "skipped": prepared.cache.skipped},
            "imgsz": config.imgsz,
            "batch": config.batch,
            "precision": found["precision"],
            "workers": self.placement.workers,
            "metrics": {name: _json(value) for name, value in found["scores"].items()},
        }


def _json(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
