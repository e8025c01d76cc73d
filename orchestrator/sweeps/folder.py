"""A sweep's folder: its config and journal, tables of trials and decisions, best.yaml, summary, a folder per trial."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.config import Config, ConfigError, Tune, dump
from orchestrator.drafts import replacing, write_text
from orchestrator.storage import RunFolder, make_folder
from orchestrator.sweeps.journal import JOURNAL
from orchestrator.sweeps.records import Overview

DECISIONS = ("trial", "epoch", "rung", "bracket", "value", "cutoff", "peers", "decision")


class SweepFolder:
    """One sweep's folder on a local (or shared) file system. Written by the driver; trials write into their own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.journal = path / JOURNAL
        self.config = path / "sweep.yaml"
        self.trials = path / "trials"
        self.plots = path / "plots"
        self.scratch = path / ".ray"
        """Ray Tune's own files; removed at the end."""

    @classmethod
    def create(cls, storage: Path, experiment: str, name: str) -> SweepFolder:
        """Make a new folder; a name that is taken gets the next free number. Raises OSError."""
        folder = cls(make_folder(storage / experiment, name))
        folder.trials.mkdir()
        folder.plots.mkdir()
        return folder

    @classmethod
    def open(cls, path: Path) -> SweepFolder:
        """A sweep that exists. Raises ConfigError where there is none."""
        folder = cls(path.expanduser().absolute())
        if not folder.journal.is_file() or not folder.config.is_file():
            raise ConfigError(f"{path} is not the folder of a sweep: it has no {JOURNAL} or no {folder.config.name}")
        return folder

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def best(self) -> Path:
        return self.path / "best.yaml"

    def make_trial(self, number: int) -> RunFolder:
        """A new trial's folder; what a driver left of one that it did not journal gets a neighbour."""
        return RunFolder.create(self.path, self.trials.name, f"{number:04d}")

    def trial(self, name: str) -> RunFolder:
        return RunFolder(self.trials / name)

    def write_config(self, config: Config) -> None:
        write_text(self.config, dump(config))

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        write_text(self.path / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")

    def write_environment(self, values: Mapping[str, Any]) -> None:
        write_text(self.path / "environment.json", json.dumps(values, indent=2, ensure_ascii=False) + "\n")

    def write_best(self, config: Config, told: str) -> None:
        """best.yaml: a config that `orchestrator train` takes."""
        plain = config.model_copy(update={"name": None, "tune": Tune()})
        write_text(self.best, f"# {told}\n#   orchestrator train {self.best}\n{dump(plain)}")

    def write_tables(self, overview: Overview, folders: Mapping[int, str]) -> None:
        """trials.csv, in the order of their numbers, and decisions.csv, in the order of time."""
        metric = overview.metric
        header = ("trial", "by", "status", "because", "epochs", f"best_{metric}", "best_epoch", "retries", "folder")
        rows = []
        for trial in overview.trials:
            best, epoch = trial.best(metric, overview.mode) or ("", "")
            told = (trial.number, trial.by, trial.status, trial.because, trial.epochs, best, epoch, trial.retries)
            rows.append([*told, f"{self.trials.name}/{folders[trial.number]}", *map(trial.params.get, overview.scales)])
        self._write_csv("trials.csv", (*header, *overview.scales), rows)
        decisions = (
            (d.trial, d.epoch, d.rung, d.bracket, d.value, d.cutoff, d.peers, "stop" if d.stop else "continue")
            for d in overview.decisions
        )
        self._write_csv("decisions.csv", DECISIONS, decisions)

    def _write_csv(self, name: str, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        with replacing(self.path / name) as draft, draft.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(header)
            writer.writerows(rows)
