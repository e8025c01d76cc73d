"""One run in MLflow: the calls of its client. The only module that imports MLflow, and only when it is used."""

from __future__ import annotations

import fcntl
import getpass
import json
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.config import redact
from orchestrator.tracking.uri import sqlite_path

if TYPE_CHECKING:
    from mlflow import MlflowClient

SAMPLE_SECONDS = 5.0
"""Between two readings of the machine's load."""

REFUSED = ("BAD_REQUEST", "INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "ENDPOINT_NOT_FOUND")
"""MLflow's error codes of what would be refused again."""

LEFT_OUT = ("checkpoints", "trials", ".ray")
"""Folders of a run, and of a sweep, whose files MLflow gets no copy of."""

MARK = "train_loss"
"""A metric that every epoch has: where it is, the epoch was written."""

PARAMS_AT_ONCE = 100
"""MLflow's limit."""


@dataclass(frozen=True)
class Dataset:
    """What was trained on. MLflow keeps 36 characters of the fingerprint as its digest; a tag has all of it."""

    name: str
    fingerprint: str
    location: str = ""


@dataclass(frozen=True)
class Description:
    """What a run is called and was made with."""

    params: dict[str, str]
    tags: dict[str, str]
    dataset: Dataset


@dataclass(frozen=True)
class Row:
    """Metrics of one step, at the time they were handed in."""

    metrics: dict[str, float]
    step: int
    time_ms: int


@dataclass(frozen=True)
class End:
    """The status that a run ends with, and its last metrics."""

    status: str
    last: Row


class Store:
    """The run in MLflow: every call of its client, made in the tracker's thread. Raises what MLflow raises.

    A write may be repeated: MLflow keeps one of equal params, tags, inputs and points of a metric.
    """

    _client: MlflowClient
    _load: _Load
    _known: dict[str, str]
    _written: set[int]

    def __init__(
        self,
        uri: str,
        experiment: str,
        run_name: str,
        run_id: str | None,
        key: str | None = None,
        parent: Store | None = None,
    ) -> None:
        self._uri, self._experiment, self._run_name, self._continued = uri, experiment, run_name, run_id
        self._parent = parent
        self._opening = threading.Lock()
        self._began_ms = now_ms()
        # Finds the run again when the answer to its creation was lost on the way.
        self._key = key or uuid.uuid4().hex
        self.experiment_id: str | None = None
        self.run_id: str | None = None

    def open(self) -> None:
        """Make the store, the experiment and the run (the parent's before it), where that has not been done."""
        if self._parent:
            self._parent.open()
        with self._opening:
            if self.run_id is None:
                self._open()

    def _open(self) -> None:
        from mlflow import MlflowClient

        path = sqlite_path(self._uri)
        with _alone(path):
            if path and not path.exists():
                _create(path)
            self._client = MlflowClient(tracking_uri=self._uri)
            if known := self._client.get_experiment_by_name(self._experiment):
                experiment_id = str(known.experiment_id)
            else:
                # Without a server, MLflow would put the files into the working folder.
                files = (path.parent / "mlartifacts").as_uri() if path else None
                experiment_id = self._client.create_experiment(self._experiment, files)
        filters = f"tags.`orchestrator.key` = '{self._key}'"
        if self._continued:
            filters = f"attributes.run_id = '{self._continued}'"
        runs = self._client.search_runs([experiment_id], filters)
        tags = {"orchestrator.key": self._key, "mlflow.source.name": "orchestrator", **_user()}
        if self._parent:
            tags["mlflow.parentRunId"] = str(self._parent.run_id)
        [run] = runs or [self._client.create_run(experiment_id, self._began_ms, tags, self._run_name)]
        if run.info.status != "RUNNING":
            self._client.update_run(run.info.run_id, "RUNNING")
        self._known = run.data.params
        # an earlier session may have been killed before it had written all of its epochs
        self._written = (
            {point.step for point in self._client.get_metric_history(run.info.run_id, MARK)} if runs else set()
        )
        if self._parent is None:
            self._load = _Load(self._uri)
        self.experiment_id, self.run_id = experiment_id, run.info.run_id

    def refuses(self, error: Exception) -> bool:
        """Whether the same write would be refused again."""
        from mlflow.exceptions import MlflowException

        return isinstance(error, MlflowException) and error.error_code in REFUSED

    def write(self, item: Description | Row | End) -> None:
        assert self.run_id is not None
        match item:
            case Description():
                self._describe(self.run_id, item)
            case Row():
                if not (item.step in self._written and MARK in item.metrics):
                    self._write_row(self.run_id, item)
            case End():
                self._write_row(self.run_id, item.last)
                self.write_load(at_once=True)
                self._client.set_terminated(self.run_id, item.status, item.last.time_ms)

    def _describe(self, run_id: str, what: Description) -> None:
        from mlflow.entities import Dataset as Source
        from mlflow.entities import DatasetInput, Param, RunTag

        self._client.log_batch(run_id, tags=[RunTag(key, value) for key, value in what.tags.items()], synchronous=True)
        # a continued run keeps its params: MLflow refuses to change them
        params = [Param(key, value) for key, value in what.params.items() if key not in self._known]
        for start in range(0, len(params), PARAMS_AT_ONCE):
            self._client.log_batch(run_id, params=params[start : start + PARAMS_AT_ONCE], synchronous=True)
        location = redact(what.dataset.location)
        kind = location.partition("://")[0] if "://" in location else "local"
        source = Source(what.dataset.name, what.dataset.fingerprint[:36], kind, json.dumps({"uri": location}))
        self._client.log_inputs(run_id, [DatasetInput(source)])

    def _write_row(self, run_id: str, row: Row) -> None:
        from mlflow.entities import Metric

        if row.metrics:
            metrics = [Metric(name, value, row.time_ms, row.step) for name, value in row.metrics.items()]
            self._client.log_batch(run_id, metrics, synchronous=True)

    def write_load(self, at_once: bool = False) -> None:
        """Read the machine's load; where that is due, write its mean since the last time."""
        assert self.run_id is not None
        if self._parent:  # the parent's is the same machine's
            return
        if row := self._load.read(at_once):
            self._write_row(self.run_id, row)
            self._load.clear()

    def write_files(self, folder: Path, run_folder: str) -> None:
        """Store the files of a run folder, and where its checkpoints are."""
        assert self.run_id is not None
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            *parents, _ = parts = path.relative_to(folder).parts
            if parts[0] not in LEFT_OUT:
                self._client.log_artifact(self.run_id, str(path), "/".join(parents) or None)
        if (folder / "checkpoints").exists():
            links = {name: f"{run_folder}/checkpoints/{name}" for name in ("best", "last")}
            self._client.log_dict(self.run_id, links, "checkpoints.json")


class _Load:
    """The load of the driver's machine (processor, memory, disk, network, GPUs), read by MLflow's own monitors.

    Their own thread is not used: it ends for good at the first request that fails.
    """

    def __init__(self, uri: str) -> None:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self._monitors: list[Any] = []
        self._began = self._read = self._written = time.monotonic()
        self._step = -1
        with suppress(Exception):  # a container may hide what psutil reads
            self._monitors = SystemMetricsMonitor("", tracking_uri=uri).monitors  # type: ignore[no-untyped-call]
        self.read(at_once=True)  # the first reading of the processor is always 0
        self.clear()

    def read(self, at_once: bool) -> Row | None:
        """Add a reading where SAMPLE_SECONDS have passed. A row where one is due: ever rarer, once a minute at last."""
        now = time.monotonic()
        if now - self._read < SAMPLE_SECONDS and not at_once:
            return None
        self._read = now
        try:
            for monitor in self._monitors:
                monitor.collect_metrics()
        except Exception:  # a device that went away: the load is worth no more tries, and no warning
            self._monitors = []
        if now - self._written < min((now - self._began) / 60, 60) and not at_once:
            return None
        load = {f"system/{k}": float(v) for m in self._monitors for k, v in m.aggregate_metrics().items()}
        return Row(load, self._step, now_ms())

    def clear(self) -> None:
        self._written = time.monotonic()
        self._step += 1
        for monitor in self._monitors:
            monitor.clear_metrics()


@contextmanager
def _alone(path: Path | None) -> Iterator[None]:
    """Keep other processes from creating the same SQLite store, or experiment, at the same time."""
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with (path.parent / f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _create(path: Path) -> None:
    """Make an SQLite store aside and publish it whole: MLflow cannot open one whose making was cut short."""
    from mlflow import MlflowClient

    for left_over in path.parent.glob(f".{path.name}.*.new"):
        left_over.unlink()
    draft = path.parent / f".{path.name}.{uuid.uuid4().hex}.new"
    MlflowClient(tracking_uri=f"sqlite:///{draft}")
    draft.rename(path)


def _user() -> dict[str, str]:
    try:
        return {"mlflow.user": getpass.getuser()}
    except (KeyError, OSError):  # a container's user may have no name
        return {}


def now_ms() -> int:
    """Unix time in milliseconds, as MLflow counts."""
    return int(time.time() * 1000)
