"""Run folders: STORAGE/EXPERIMENT/RUN with the names that others build on."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.config import Config, ConfigError, dump
from orchestrator.drafts import write_text
from trainables.checkpoint import find, load
from trainables.contracts import Metrics

OBJECT_STORES = ("s3://", "gs://")


def check_storage(storage: str) -> Path:
    """The absolute folder of a storage setting. Raises ValueError where a run folder could not be written in it.

    Leaves nothing behind: it writes an unnamed file into the nearest folder that exists.
    """
    if storage.startswith(OBJECT_STORES):
        raise ValueError("storage on an object store is not available yet; name a folder")
    folder = Path(storage).expanduser().absolute()
    nearest = next(p for p in (folder, *folder.parents) if p.exists())
    if not nearest.is_dir():
        raise ValueError(f"storage {folder} cannot be made: {nearest} is a file")
    try:
        with tempfile.TemporaryFile(dir=nearest):
            return folder
    except OSError as error:
        raise ValueError(f"storage {folder} is not writable: {error.strerror}") from error


@dataclass(frozen=True)
class Saved:
    """A run of before, as it is taken up again."""

    folder: RunFolder
    checkpoint: Path | None
    rows: list[Metrics]
    """results.csv up to the checkpoint."""
    run_id: str | None
    """Of MLflow."""
    fingerprint: str
    summary: dict[str, Any]
    """summary.json, as the session before left it."""
    changes: str = ""
    """What `extend` changes, in words."""

    def refuse_other_data(self, fingerprint: str) -> None:
        """Raises ConfigError where the data set has changed since: the order would be another."""
        if fingerprint != self.fingerprint:
            raise ConfigError(
                f"the data of {self.folder.path} have changed since it was started; train a new run on them"
            )

    def take_up(self) -> RunFolder:
        """The folder, with the rows of results.csv beyond the checkpoint dropped: their epochs are trained again."""
        self.folder.rewrite_results(self.rows)
        return self.folder

    def describe(self) -> str:
        return f"after {len(self.rows)} epochs" + (f", from {self.checkpoint}" if self.checkpoint else "")


class RunFolder:
    """One run's folder on a local (or shared) file system. Written by the driver, checkpoints by rank 0."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.logs = path / "logs"
        self.plots = path / "plots"
        self.results = path / "results.csv"

    @classmethod
    def create(cls, storage: Path, experiment: str, name: str) -> RunFolder:
        """Make a new folder; a name that is taken gets the next free number. Raises OSError."""
        folder = cls(make_folder(storage / experiment, name))
        for part in (folder.checkpoints, folder.logs, folder.plots):
            part.mkdir()
        return folder

    @classmethod
    def open(cls, path: Path, done: bool = False) -> Saved:
        """Read a run that was interrupted or failed, or (`done`) has ended.

        Raises ConfigError where there is nothing to continue.
        """
        folder = cls(path.expanduser().absolute())
        try:
            summary = json.loads((folder.path / "summary.json").read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise ConfigError(f"{path} is not the folder of a run that can be resumed: {error}") from error
        if not done and summary["status"] in ("finished", "stopped"):
            raise ConfigError(
                f"{path} is {summary['status']} after {summary['epochs_completed']} epochs: nothing to resume; "
                f"for more epochs: orchestrator extend {path} epochs=..."
            )
        checkpoint = find(folder.checkpoints)
        epochs = load(checkpoint).progress["epoch"] if checkpoint else 0
        rows = [row for row in folder.read_results() if row["epoch"] <= epochs]
        return Saved(folder, checkpoint, rows, summary["mlflow"]["run_id"], summary["dataset"]["fingerprint"], summary)

    @property
    def name(self) -> str:
        return self.path.name

    def write_config(self, config: Config) -> None:
        write_text(self.path / "config.yaml", dump(config))

    def write_json(self, name: str, values: dict[str, Any]) -> None:
        write_text(self.path / name, json.dumps(values, indent=2, ensure_ascii=False) + "\n")

    def write_csv(self, name: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        with (self.path / name).open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(header)
            writer.writerows(rows)

    def append_result(self, row: Metrics) -> None:
        """Add an epoch's row to results.csv; the first row decides the columns."""
        columns = self._columns() or list(row)
        with self.results.open("a", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore")
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow(row)

    def rewrite_results(self, rows: Sequence[Metrics]) -> None:
        """Replace results.csv by these rows, in one rename."""
        text = io.StringIO()
        if rows:
            writer = csv.DictWriter(text, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        write_text(self.results, text.getvalue())

    def read_results(self) -> list[Metrics]:
        """The rows of results.csv, numbers as numbers and empty cells as None."""
        if not self.results.exists():
            return []
        with self.results.open(newline="") as file:
            return [{k: _number(v) if v else None for k, v in row.items()} for row in csv.DictReader(file)]

    def read_summary(self) -> dict[str, Any]:
        """summary.json as the last session left it; empty where there is none."""
        try:
            summary: dict[str, Any] = json.loads((self.path / "summary.json").read_text())
        except (OSError, json.JSONDecodeError):
            return {}
        return summary

    def _columns(self) -> list[str]:
        if not self.results.exists():
            return []
        with self.results.open(newline="") as file:
            return next(csv.reader(file), [])


def make_folder(parent: Path, name: str) -> Path:
    """A new folder of this name; one that is taken gets the next free number. Raises OSError."""
    parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        path = parent / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir()
            return path
        except FileExistsError:
            number += 1


def _number(cell: str) -> int | float:
    return int(cell) if cell.removeprefix("-").isdecimal() else float(cell)  # also nan and inf
