"""What a sweep tells of itself: on the screen, in summary.json, in best.yaml and in its report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator import report
from orchestrator.data.loader import View
from orchestrator.data.prepare import Prepared
from orchestrator.errors import describe
from orchestrator.preflight import Checked
from orchestrator.reading import load_config
from orchestrator.recorder import Recorder
from orchestrator.sweeps import page, pictures
from orchestrator.sweeps.capacity import Capacity
from orchestrator.sweeps.folder import SweepFolder
from orchestrator.sweeps.planned import Planned, variant_of
from orchestrator.sweeps.records import Overview, Trial
from orchestrator.sweeps.state import State
from trainables.contracts import DataInfo


@dataclass(frozen=True)
class Variant:
    """The data as one part of the trials sees them."""

    checked: Checked
    view: View
    prepared: Prepared
    info: DataInfo


@dataclass
class Account:
    """Reads the state of a sweep, and changes nothing of it."""

    planned: Planned
    capacity: Capacity
    folder: SweepFolder
    state: State
    variants: dict[str, Variant] = field(default_factory=dict)

    def overview(self, status: str, because: str) -> Overview:
        plan, checked = self.state.plan, self.planned.checked
        return Overview(
            name=self.folder.name,
            status=status,
            stopped_because=because,
            metric=checked.metric,
            mode=checked.mode,
            epochs=plan.max_epochs,
            scheduler=plan.scheduler_name,
            rungs=plan.scheduler.rungs,
            scales=self.planned.space.scales,
            trials=list(self.state.trials.values()),
            decisions=self.state.decisions,
            seconds=self.state.seconds,
            facts=self.facts() if status != "running" else {},
        )

    def facts(self) -> dict[str, str]:
        """Lines for the first screen and the head of the report."""
        checked, plan, config = self.planned.checked, self.state.plan, self.planned.config
        manifest, space, limits = checked.manifest, self.planned.space, plan.limits
        budget = [
            f"{limits.samples} trials" if limits.samples else "",
            f"{limits.seconds / 3600:g} hours" if limits.seconds else "",
            f"{limits.epochs} epochs in all" if limits.epochs else "",
        ]
        rungs = ", ".join(map(str, plan.scheduler.rungs))
        size = f" ({space.size} combinations)" if space.is_finite else ""
        return {
            "data": f"{manifest.name}: {len(checked.selection.train):,} training and {len(checked.selection.val):,} "
            f"validation images, {len(manifest.classes)} classes",
            "cache": self._cache(),
            "model": f"{config.model}, imgsz {config.imgsz}",
            "space": ", ".join(space.domains) + size,
            "searcher": f"{plan.searcher_name}, for the best {checked.metric}",
            "scheduler": plan.scheduler_name + (f", at epochs {rungs}" if rungs else ""),
            "budget": f"{', '.join(filter(None, budget)) or 'all combinations'}, {plan.max_epochs} epochs each at most",
            "devices": str(self.capacity),
            "sweep": str(self.folder.path),
        }

    def seconds_left(self) -> float | None:
        """As the trials that have ended tell; None where nothing can be told yet."""
        state, limits = self.state, self.state.plan.limits
        ended = sum(trial.status != "running" for trial in state.trials.values())
        if not ended or limits.samples is None:
            return None
        seconds = state.seconds * max(limits.samples - ended, 0) / ended
        return min(seconds, max(limits.seconds - state.seconds, 0)) if limits.seconds else seconds

    def draw(self, overview: Overview, recorders: Mapping[int, Recorder], warn: Callable[[str], None]) -> None:
        """The tables, best.yaml, pictures and page; none of the pictures is worth the end of a sweep."""
        self.folder.write_tables(overview, self.state.folders)
        if not overview.ranked:
            return
        self._write_best(overview)
        try:
            self._draw_winner(overview.ranked[0], recorders)
            drawn = pictures.draw_all(overview, self.folder.path, warn)
            page.write_page(overview, self.folder.path, drawn)
        except Exception as error:
            warn(f"the report could not be written: {describe(error)}")

    def write_summary(self, overview: Overview, error: str, mlflow: Mapping[str, Any]) -> dict[str, Any]:
        """Write and return summary.json, with the names that others build on."""
        checked, plan, trials = self.planned.checked, self.state.plan, overview.trials
        winner = overview.ranked[0] if overview.ranked else None
        best = winner.best(overview.metric, overview.mode) if winner else None
        statuses = ("finished", "stopped", "failed", "interrupted")
        summary: dict[str, Any] = {
            "status": overview.status,
            "stopped_because": overview.stopped_because,
            "error": error or None,
            "task": checked.config.task,
            "dataset": {"name": checked.manifest.name, "fingerprint": checked.manifest.fingerprint},
            "metric": {
                "name": overview.metric,
                "mode": overview.mode,
                "best": best and best[0],
                "best_trial": winner and winner.number,
                "best_epoch": best and best[1],
            },
            "best": winner
            and {
                "params": winner.params,
                "epochs": winner.epochs,
                "folder": f"{self.folder.trials.name}/{self.state.folders[winner.number]}",
            },
            "trials": {"total": len(trials)} | {s: sum(trial.status == s for trial in trials) for s in statuses},
            "epochs": {
                "spent": overview.epochs_spent,
                "saved": overview.epochs_saved,
                "full": overview.epochs * len(trials),
            },
            "searcher": plan.searcher_name,
            "scheduler": plan.scheduler_name,
            "concurrent": self.capacity.concurrent,
            "cache": self._cache_facts(),
            "seconds": {"total": overview.seconds},
            "mlflow": dict(mlflow),
        }
        self.folder.write_summary(summary)
        return summary

    def metrics(self, overview: Overview) -> dict[str, float]:
        """What MLflow shows of the whole sweep."""
        found = {"trials": float(len(overview.trials)), "epochs_spent": float(overview.epochs_spent)}
        if overview.ranked:
            winner = overview.ranked[0]
            value, _ = winner.best(overview.metric, overview.mode) or (0.0, 0)
            found |= {f"best_{overview.metric}": value, "best_trial": float(winner.number)}
        return found

    def _write_best(self, overview: Overview) -> None:
        winner = overview.ranked[0]
        value, epoch = winner.best(overview.metric, overview.mode) or (0.0, 0)
        folder = self.folder.trial(self.state.folders[winner.number])
        told = f"Trial {winner.number} of the sweep {self.folder.name}: {overview.metric} {value:.6g} at epoch {epoch}."
        self.folder.write_best(load_config(folder.path / "config.yaml"), told)

    def _draw_winner(self, winner: Trial, recorders: Mapping[int, Recorder]) -> None:
        """The pictures of a run, for the best trial only."""
        folder = self.folder.trial(self.state.folders[winner.number])
        report.plot_results(
            folder.results, folder.plots / "results.png", self.planned.checked.metric, self.planned.checked.mode
        )
        recorder = recorders.get(winner.number)
        if recorder and recorder.details:
            cache = self.variants[variant_of(recorder.config)].prepared.cache
            report.plot_details(recorder.details, recorder.info.classes, folder.path, report.pictures_of(cache))

    def _cache_facts(self) -> dict[str, Any]:
        prepared = [variant.prepared for variant in self.variants.values()]
        if not prepared:
            return {}
        seconds = sum(p.cache.build_seconds or 0.0 for p in prepared)
        planned = 0 if self.state.over else self.state.plan.limits.samples or self.planned.space.size or 0
        trials = max(len(self.state.trials), planned, 1)
        kept = prepared[0].tier != "false"
        return {
            "tier": prepared[0].tier,
            "bytes": sum(p.cache.bytes for p in prepared),
            "variants": len(prepared),
            "build_seconds": seconds,
            "reused": all(p.reused for p in prepared),
            "seconds_saved": seconds / len(prepared) * (trials - 1) if kept else 0.0,
        }

    def _cache(self) -> str:
        facts, prepared = self._cache_facts(), next(iter(self.variants.values())).prepared
        several = f"; {facts['variants']} variants of it" if facts["variants"] > 1 else ""
        saved = facts["seconds_saved"]
        told = f"; decoded once for all trials, which saves {saved:.0f} s" if saved >= 1 else ""
        return prepared.describe() + several + told
