"""One run in the driver, from a checked config to its summary."""

from __future__ import annotations

import time
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator import launch, report
from orchestrator.caching import Caching
from orchestrator.console import Screen
from orchestrator.data.cache import Cache
from orchestrator.data.loader import Loader, View
from orchestrator.data.prepare import Prepared
from orchestrator.environment import environment
from orchestrator.errors import RunError, describe
from orchestrator.launch import Placement
from orchestrator.preflight import Checked
from orchestrator.recorder import Recorder
from orchestrator.stop import Stop
from orchestrator.storage import RunFolder, Saved
from orchestrator.supervisor import supervise
from orchestrator.tracking import Dataset, Tracker, resolve_tracking_uri
from orchestrator.worker import Job
from trainables.augment import FITS, Augmentation
from trainables.optim import choose
from trainables.recipe import Recipe

STATUS = {"epochs": "finished", "interruption": "interrupted"}
"""Status by what ended the loop; anything else (patience) stopped it early."""
TRACKED_STATUS = {"failed": "FAILED", "interrupted": "KILLED"}


@dataclass(frozen=True)
class Result:
    """What a run came to: its folder and the content of its summary.json."""

    folder: Path
    summary: dict[str, Any]

    @property
    def interrupted(self) -> bool:
        return bool(self.summary["status"] == "interrupted")


class Run:
    """One run: what it needs is made step by step, what it leaves behind is written also where it fails."""

    def __init__(
        self,
        checked: Checked,
        placement: Placement,
        screen: Screen,
        stop: Stop,
        verbose: bool,
        started: float,
        saved: Saved | None,
    ) -> None:
        self.checked, self.placement, self.screen, self.stop = checked, placement, screen, stop
        self.verbose, self.started, self.saved = verbose, started, saved

    def execute(self) -> Result:
        if self.saved:
            self.saved.refuse_other_data(self.checked.manifest.fingerprint)
        with Caching(self.checked, self.placement, self.screen, self.stop, self.verbose) as prepared:
            return self._train(prepared)

    def _train(self, prepared: Prepared) -> Result:
        self.stop.raise_if_asked()
        view = view_of(self.checked)
        loader = Loader(prepared.cache, view)
        folder = self._folder(prepared.cache)
        recorder = self._recorder(folder, loader, prepared)
        self._show_decisions(prepared, loader, folder)
        job = Job(
            recipe=self.checked.config.model_dump(include=set(Recipe.model_fields)),
            view=view,
            cache=prepared.place,
            run_folder=folder.path,
            restore=self.saved.checkpoint if self.saved else None,
            record_samples=self.checked.config.record_samples,
            profile=self.checked.config.profile,
            cpus=launch.all_cpus(),
        )
        self.screen.waiting("preparing the model" if self.placement.in_process else "starting the workers")
        try:
            because = supervise(job, self.placement, prepared.cache, recorder.handle, self.stop)
        except Exception as error:
            (folder.logs / "driver.log").write_text(traceback.format_exc())
            self._finish(recorder, prepared.cache, "failed", "")
            raise RunError(_explain(error, folder)) from error
        status = STATUS.get(because, "stopped")
        return self._finish(recorder, prepared.cache, status, self.stop.reason if status == "interrupted" else because)

    def _folder(self, cache: Cache) -> RunFolder:
        if self.saved:
            self.saved.folder.write_config(self.checked.config)
            return self.saved.take_up()
        config = self.checked.config
        experiment = config.tracking.experiment or self.checked.manifest.name
        model = config.model.replace(":", ".").replace("/", ".")
        name = config.name or f"{model}-{time.strftime('%Y%m%d-%H%M%S')}"
        folder = RunFolder.create(self.checked.storage, experiment, name)
        folder.write_config(config.model_copy(update={"name": folder.name}))
        issues = [(i.id, i.kind, i.reason) for i in cache.issues]
        folder.write_csv("data_issues.csv", ("id", "kind", "reason"), issues)
        folder.write_json("environment.json", environment())
        return folder

    def _recorder(self, folder: RunFolder, loader: Loader, prepared: Prepared) -> Recorder:
        config, manifest = self.checked.config, self.checked.manifest
        uri, notice = resolve_tracking_uri(config.tracking.uri, config.storage)
        if notice:
            self.screen.note(notice)
        tracker = Tracker(
            uri,
            experiment=folder.path.parent.name,
            run_name=folder.name,
            run_folder=str(folder.path),
            params=config.model_dump(mode="json"),
            tags={"task": config.task, "model": config.model}
            | ({"extended": self.saved.changes} if self.saved and self.saved.changes else {}),
            dataset=Dataset(manifest.name, manifest.fingerprint, config.data),
            on_warning=self.screen.warn,
            run_id=self.saved.run_id if self.saved else None,
        )
        tier = {
            "tier": prepared.tier,
            "bytes": prepared.cache.bytes,
            "build_seconds": prepared.cache.build_seconds,
            "reused": prepared.reused,
        }
        rows, before = (self.saved.rows, self.saved.summary) if self.saved else ([], {})
        return Recorder(
            self.checked, self.placement, loader.info, tier, folder, self.screen, tracker, self.started, rows, before
        )

    def _show_decisions(self, prepared: Prepared, loader: Loader, folder: RunFolder) -> None:
        config, info, workers = self.checked.config, loader.info, self.placement.workers
        manifest = self.checked.manifest
        choice = choose(config, config.total_epochs * loader.steps)
        steps = f" of {loader.steps:,} steps" if config.batch > 0 else ""
        skipped = f", {info.skipped} left out (data_issues.csv)" if info.skipped else ""
        shares = f" = {workers} x {-(-config.batch // workers)}" if workers > 1 else ""
        decisions = {
            "data": f"{info.name}: {info.train:,}{self._part()} training and {info.val:,} validation images, "
            f"{len(info.classes)} classes{skipped} (format {manifest.format}: {manifest.reason})",
            "cache": prepared.describe(),
            "model": f"{config.model}, {self.checked.parameters:,} parameters, imgsz {info.imgsz}",
            "weights": str(self.checked.pretrained or "from scratch"),
            "devices": str(self.placement),
            "batch": "measured before the first epoch" if config.batch < 0 else f"{config.batch}{shares}",
            "optimizer": f"{choice.name}, lr {choice.lr:g}, momentum {choice.momentum:g} (by {choice.chosen_by})",
            "epochs": f"{config.epochs if config.epochs != 'auto' else '300, 600 or 1200'}{steps}; "
            f"the best by {self.checked.metric}",
            "run": str(folder.path),
        }
        if self.saved:
            decisions["resumed"] = self.saved.describe()
        if self.saved and self.saved.changes:
            decisions["extended"] = self.saved.changes
        self.screen.decided(decisions)

    def _part(self) -> str:
        fraction, available = self.checked.config.fraction, self.checked.selection.available
        return f" of {available:,} (fraction {fraction:g})" if fraction < 1 else ""

    def _finish(self, recorder: Recorder, cache: Cache, status: str, because: str) -> Result:
        """Write what a run leaves behind, also a failed one."""
        folder, tracker = recorder.folder, recorder.tracker
        self.screen.waiting("writing plots and summary")
        if recorder.rows:
            try:
                self._plot(recorder, cache, status != "failed")
            except Exception as error:  # no picture is worth the end of a run
                (folder.logs / "plots.log").write_text(traceback.format_exc())
                self.screen.warn(f"the pictures could not be drawn: {describe(error)}; more in {folder.logs}")
        recorder.write_summary(status, because)
        tracker.log_artifacts(folder.path)
        tracker.finish(TRACKED_STATUS.get(status, "FINISHED"))
        summary = recorder.write_summary(status, because)
        if status != "failed":
            self.screen.finished(summary, str(folder.path), tracker.open_command)
        if status == "interrupted":
            self.screen.note(f"\nTo continue it:\norchestrator resume {folder.path}")
        return Result(folder.path, summary)

    def _plot(self, recorder: Recorder, cache: Cache, first_batch: bool) -> None:
        folder, classes, details = recorder.folder, recorder.info.classes, recorder.details
        report.plot_results(folder.results, folder.plots / "results.png", self.checked.metric, self.checked.mode)
        if details:
            report.plot_details(details, classes, folder.path, report.pictures_of(cache))
        if first_batch:  # else what failed may have been the data
            loader = Loader(cache, replace(view_of(self.checked), batch=max(recorder.config.batch, 1)))
            report.plot_train_batch(loader.first_batch(), classes, folder.plots / "train_batch.png")


def _explain(error: Exception, folder: RunFolder) -> str:
    """One message for a failed run: the error and its place, where to read more."""
    return f"the run failed: {describe(error)}\nmore in {folder.logs}; the run: {folder.path}"


def view_of(checked: Checked) -> View:
    """What of the cache a run reads, and how."""
    config, manifest = checked.config, checked.manifest
    return View(
        name=manifest.name,
        fingerprint=manifest.fingerprint,
        classes=manifest.classes,
        imgsz=checked.imgsz,
        batch=max(config.batch, 1),  # -1: measured first
        seed=config.seed,
        train=checked.selection.train,
        val=checked.selection.val,
        augmentation=Augmentation.of(config),
        fit=FITS[config.task],
        multi_scale=config.multi_scale,
        masks=config.task == "segment",
    )
