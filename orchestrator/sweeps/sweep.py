"""A sweep in the driver: what Tune's trials report goes to the journal, to files and to MLflow."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from orchestrator import launch
from orchestrator.caching import Caching
from orchestrator.config import Config, Tune
from orchestrator.data.loader import Loader
from orchestrator.errors import RunError, describe
from orchestrator.mailbox import Message
from orchestrator.reading import load_config
from orchestrator.recorder import Recorder
from orchestrator.run import Result, view_of
from orchestrator.stop import Stop
from orchestrator.storage import RunFolder
from orchestrator.sweeps.account import Account, Variant
from orchestrator.sweeps.capacity import Capacity
from orchestrator.sweeps.folder import SweepFolder
from orchestrator.sweeps.planned import MEASURED_KEYS, Planned, variant_of
from orchestrator.sweeps.records import Status, Trial
from orchestrator.sweeps.screen import SweepScreen
from orchestrator.sweeps.space import with_params
from orchestrator.sweeps.state import BUDGET, SAMPLES, State
from orchestrator.sweeps.trial import Shared, Spec
from orchestrator.tracking import Dataset, Tracker
from trainables.recipe import Recipe

POLL_SECONDS = 0.25
TABLE_SECONDS = 2.0
"""How far trials.csv and decisions.csv may be behind while trials run."""
NO_MEMORY = ("OutOfMemory", "low on memory", "out of memory")
FINISHED: dict[str, Status] = {"epochs": "finished", "interruption": "interrupted"}
TRACKED: dict[str, str] = {"failed": "FAILED", "interrupted": "KILLED"}


class Sweep:
    """One sweep: the director of Ray Tune's trials, and what it leaves behind, also where it fails."""

    def __init__(
        self,
        planned: Planned,
        capacity: Capacity,
        folder: SweepFolder,
        state: State,
        tracker: Tracker,
        screen: SweepScreen,
        stop: Stop,
        verbose: bool,
        key: str,
        uri: str,
    ) -> None:
        """key: tells the sweep from all others; those of its trials begin with it. uri: of MLflow."""
        self.planned, self.capacity, self.folder, self.state = planned, capacity, folder, state
        self.tracker, self.screen, self.stop, self.verbose, self.key = tracker, screen, stop, verbose, key
        self.config, self.uri = planned.config, uri
        self.recorders: dict[int, Recorder] = {}
        self.trackers: list[Tracker] = []
        self.progress: dict[int, tuple[int, int, int]] = {}
        """Epoch, step and steps of the trials that train."""
        self.account = Account(planned, capacity, folder, state)
        self.error: str = ""
        self._measuring: int | None = None
        self._specs: dict[int, Spec] = {}
        self._micro: dict[int, int] = {}
        """The micro-batch of trials that a machine had no memory for."""
        self._lock = threading.RLock()
        self._warned: set[str] = set()
        self._tables_due = 0.0

    # ---------------------------------------------------------------------------------------- from start to end

    def execute(self) -> Result:
        """Run until the budget is used, or nothing is left to try. Raises RunError where all trials fail alike."""
        with ExitStack() as caches:
            for name, checked in self.planned.variants.items():
                caching = Caching(checked, self._all_workers, self.screen, self.stop, self.verbose)
                prepared, view = caches.enter_context(caching), view_of(checked)
                self.account.variants[name] = Variant(checked, view, prepared, Loader(prepared.cache, view).info)
            self.screen.decided(self.account.facts())
            self.tracker.start()
            try:
                self._close_earlier()
                self._tune()
            except Exception as error:
                self.error = self.error or describe(error)
            return self._finish()

    def _tune(self) -> None:
        from orchestrator.sweeps import tuner

        shared = Shared(
            variants={name: (variant.view, variant.prepared.place) for name, variant in self.account.variants.items()},
            placement=self.capacity.placement,
            cpus=launch.all_cpus(),
            neighbours=self.capacity.neighbours,
        )
        tune = self.config.tune
        failures: list[Exception] = []

        def run() -> None:
            try:
                tuner.run(self, shared, self.capacity.concurrent, tune.retries, self.folder.scratch, self.verbose)
            except Exception as error:
                failures.append(error)

        self.screen.waiting("starting the trials")
        for left in reversed(range(tune.retries + 1)):
            thread = threading.Thread(target=run, name="ray-tune", daemon=True)
            thread.start()
            while thread.is_alive():
                with self._lock:
                    overview, seconds = self.account.overview("running", ""), self.account.seconds_left()
                    self.screen.update(overview, dict(self.progress), seconds)
                thread.join(POLL_SECONDS)
            if not failures:
                return
            cause = failures.pop()
            if not left or not tuner.was_lost(cause):
                raise cause
            self._begin_again(str(cause.__cause__))

    def _close_earlier(self) -> None:
        """Complete the records of trials that ended shortly before their driver was killed."""
        for number in sorted(self.state.unclosed):
            trial = self.state.trials[number]
            folder = self.folder.trial(self.state.folders[number])
            self._record(trial, load_config(folder.path / "config.yaml"), folder)
            self._finish_record(number)

    def _begin_again(self, reason: str) -> None:
        """Tune itself ended: Ray ends a trial where a machine has no memory left, which Tune does not expect."""
        with self._lock:
            for number in [n for n, t in self.state.trials.items() if t.status == "running"]:
                if number in self.progress:  # it was training
                    self.lost(self._specs[number], reason, final=False)
                    self.state.waiting.append(number)
            self._measuring = None

    # --------------------------------------------------------------------------------- what Tune asks and tells

    def next(self) -> Spec | None:
        with self._lock:
            if self._measuring is not None or self.is_over():
                return None
            trial = self.state.next(lambda number: self.folder.make_trial(number).path.name)
            return self._begin(trial) if trial else None

    def has_more(self) -> bool:
        with self._lock:
            return not self.is_over() and (not self.state.all_started or bool(self.state.waiting))

    def take(self, number: int, messages: list[Message]) -> bool:
        with self._lock:
            stops = [self._take(number, message) for message in messages]
            return any(stops) or self.is_over()

    def lost(self, spec: Spec, reason: str, final: bool) -> Spec:
        with self._lock:
            last = reason.splitlines()[-1] if reason else "its process was lost"
            if final:
                self._end(spec.number, "failed", f"lost {self.config.tune.retries + 1} times, at last: {last}")
                return spec
            self.state.record("retry", trial=spec.number, reason=last)
            spec = self._specs[spec.number]  # with what it has measured
            if any(text in reason for text in NO_MEMORY) and spec.recipe["batch"] > 0:
                share = -(-spec.recipe["batch"] // self.capacity.placement.workers)
                self._micro[spec.number] = micro = max(min(share, spec.recipe["micro_batch"] or share) // 2, 1)
                spec = self._specs[spec.number] = replace(spec, recipe=spec.recipe | {"micro_batch": micro})
                last += f"; it goes on with at most {micro} images at a time"
            self.screen.warn(f"trial {spec.number} was lost and goes on from its last checkpoint: {last}")
            return spec

    def is_over(self) -> bool:
        return bool(self.stop.event.is_set() or self.error or self.state.over)

    # ------------------------------------------------------------------------------------------- a trial's life

    def _begin(self, trial: Trial) -> Spec:
        folder, number = self.folder.trial(self.state.folders[trial.number]), trial.number
        known = trial.rows and (folder.path / "config.yaml").exists()
        if known:
            config = load_config(folder.path / "config.yaml")
        else:
            config = with_params(self.config, trial.params).model_copy(update=self.state.settings)
        changes: dict[str, Any] = {"epochs": self.state.plan.max_epochs, "name": folder.name, "tune": Tune()}
        if number in self._micro:
            changes["micro_batch"] = self._micro[number]
        config = config.model_copy(update=changes)
        measures = not known and (self.planned.measures_each or not self.state.settings)
        if measures and not self.planned.measures_each:
            self._measuring = number
        self._record(trial, config, folder)
        self.progress[number] = (trial.epochs, 0, 0)
        self._specs[number] = spec = Spec(
            number=number,
            recipe=config.model_dump(include=set(Recipe.model_fields)),
            folder=folder.path,
            variant=variant_of(config),
            measured=not measures,
            largest_batch=0 if self.planned.measures_each else self.planned.largest_batch,
        )
        return spec

    def _record(self, trial: Trial, config: Config, folder: RunFolder) -> None:
        """Open what a trial is recorded in."""
        variant, number = self.account.variants[variant_of(config)], trial.number
        checked = replace(variant.checked, config=config)
        prepared, manifest = variant.prepared, checked.manifest
        tracker = Tracker(
            self.uri,
            experiment=self.folder.path.parent.name,
            run_name=f"{self.folder.name}-{number:04d}",
            run_folder=str(folder.path),
            params=trial.params | {"epochs": config.epochs},
            tags={"task": config.task, "model": config.model, "trial": str(number), "by": trial.by},
            dataset=Dataset(manifest.name, manifest.fingerprint, config.data),
            on_warning=lambda text: self._warn_once(text),
            key=f"{self.key}-{number}",
            parent=self.tracker,
        )
        self.trackers.append(tracker)
        folder.write_config(config)
        folder.rewrite_results(trial.rows)
        self.recorders[number] = Recorder(
            checked,
            self.capacity.placement,
            variant.info,
            {"tier": prepared.tier, "bytes": prepared.cache.bytes, "build_seconds": None, "reused": True},
            folder,
            TrialScreen(self, number),
            tracker,
            time.time(),
            list(trial.rows),
            folder.read_summary(),
        )

    def _take(self, number: int, message: Message) -> bool:
        """One report of a trial; whether it is to stop."""
        trial, recorder = self.state.trials[number], self.recorders[number]
        if trial.status != "running":
            return True
        if message.outcome:
            return self._outcome(number, message)
        known = len(recorder.rows)
        recorder.handle(message.metrics, message.has_state)
        if "decided" in message.metrics:
            decided = message.metrics["decided"]
            spec = self._specs[number]
            self._specs[number] = replace(spec, recipe=spec.recipe | decided, measured=True)
            if self._measuring == number:
                self._settle(decided)
        for row in recorder.rows[known:]:
            if self.state.epoch(number, row):
                self._close(number)
                return True
        return False

    def _outcome(self, number: int, message: Message) -> bool:
        if "failed" in message.metrics:
            self._end(number, "failed", message.metrics["failed"])
        else:
            because = message.metrics["stopped_because"]
            self._end(number, FINISHED.get(because, "stopped"), because)
        return True

    def _settle(self, decided: Mapping[str, Any]) -> None:
        """What the first trial has measured holds for all."""
        searched = self.planned.space.domains
        settings = {key: decided[key] for key in MEASURED_KEYS if key in decided and key not in searched}
        self.state.record("decided", settings=settings or {"amp": self.config.amp})
        self._measuring = None

    def _end(self, number: int, status: Status, because: str) -> None:
        self.state.end(number, status, because)
        self._close(number)
        if self._measuring == number:
            self._measuring = None
        if (failure := self.state.common_failure) and status == "failed":
            self.error = f"the first trials failed, all for the same reason: {failure}"

    def _close(self, number: int) -> None:
        """Finish what a trial is recorded in, and tell."""
        self._finish_record(number)
        trial = self.state.trials[number]
        overview = self.account.overview("running", "")
        if time.monotonic() >= self._tables_due:
            self.folder.write_tables(overview, self.state.folders)
            self._tables_due = time.monotonic() + TABLE_SECONDS
        self.screen.ended(trial, overview)

    # -------------------------------------------------------------------------------------------------- the end

    def _finish(self) -> Result:
        """Write what the sweep leaves behind, also a failed one."""
        self.screen.waiting("writing the report")
        status, because = self._ending()
        overview = self.account.overview(status, because)
        self.account.draw(overview, self.recorders, self.screen.warn)
        for tracker in self.trackers:
            tracker.hurry()
        for tracker in self.trackers:
            tracker.finish("KILLED")  # those that have not ended
        for number, recorder in self.recorders.items():
            trial = self.state.trials[number]
            recorder.write_summary(trial.status, trial.because)  # now with the run in MLflow
        summary = self.account.write_summary(overview, self.error, self.tracker.info)
        self.tracker.log_artifacts(self.folder.path)
        self.tracker.finish(TRACKED.get(status, "FINISHED"), self.account.metrics(overview))
        summary = self.account.write_summary(overview, self.error, self.tracker.info)
        self.state.record("closed")
        shutil.rmtree(self.folder.scratch, ignore_errors=True)
        if self.error:
            raise RunError(f"the sweep failed: {self.error}\nmore in {self.folder.path}")
        self.screen.finished(summary, overview, str(self.folder.path), self.tracker.open_command)
        if status == "interrupted":
            self.screen.note(f"\nTo continue it:\norchestrator resume {self.folder.path}")
        return Result(self.folder.path, summary)

    def _ending(self) -> tuple[str, str]:
        """Status of the sweep, and why it ended; what still trains ends with it."""
        with self._lock:
            trials, over = self.state.trials, self.state.over
            if not self.error and not self.stop.event.is_set() and not any(t.rows for t in trials.values()):
                reasons = [t.because for t in trials.values() if t.status == "failed"]
                self.error = f"no trial has had a result: {reasons[0] if reasons else 'none was begun'}"
            ending = ("failed", "") if self.error else ("finished", SAMPLES)
            if self.stop.event.is_set() and not self.error:
                ending = ("interrupted", self.stop.reason)
            elif over == BUDGET and not self.error:
                ending = ("stopped", BUDGET)
            for number in [n for n, t in trials.items() if t.status == "running"]:
                self.state.end(number, "stopped" if ending[1] == BUDGET else "interrupted", ending[1])
                if number in self.recorders:
                    self._finish_record(number)
            return ending

    def _finish_record(self, number: int) -> None:
        trial, recorder = self.state.trials[number], self.recorders[number]
        self.progress.pop(number, None)
        recorder.write_summary(trial.status, trial.because)
        recorder.tracker.end(TRACKED.get(trial.status, "FINISHED"))

    def _warn_once(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            self.screen.warn(text)

    @property
    def _all_workers(self) -> launch.Placement:
        """What the cache is prepared for: every worker of every trial at once."""
        one = self.capacity.placement
        return replace(one, workers=one.workers * self.capacity.concurrent, in_process=False)


class TrialScreen:
    """What a run tells its screen, for one trial of many: progress goes to the table, warnings name the trial."""

    def __init__(self, sweep: Sweep, number: int) -> None:
        self._sweep, self._number = sweep, number

    def progress(self, metrics: Mapping[str, Any], epochs: int | None = None) -> None:
        self._sweep.progress[self._number] = (metrics["epoch"], metrics["step"], metrics["steps"])

    def epoch(self, row: Mapping[str, Any], epochs: int, metric: str, better: bool) -> None:
        self._sweep.progress[self._number] = (row["epoch"], 0, 0)

    def warn(self, text: str) -> None:
        self._sweep.screen.warn(f"trial {self._number}: {text}")

    def note(self, text: str) -> None:
        pass

    def measured(self, table: list[dict[str, Any]]) -> None:
        self._sweep.screen.measured(table)

    def decided(self, decisions: Mapping[str, str]) -> None:
        pass
