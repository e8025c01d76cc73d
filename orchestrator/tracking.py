"""The driver's one way to MLflow, and the only module that imports it.

Everything slow or fallible (the import, opening the store, each request) happens in one thread, fed by a queue.
What cannot be written waits in memory and is tried again: an error of MLflow warns, and never reaches training.
"""

from __future__ import annotations

import fcntl
import getpass
import json
import math
import numbers
import os
import queue
import re
import shlex
import shutil
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.config import redact

if TYPE_CHECKING:
    from mlflow import MlflowClient

SAMPLE_SECONDS = 5.0
"""Between two readings of the machine's load."""

RETRY_SECONDS = 10.0
"""How long `finish` goes on trying a store that fails."""

REFUSED = ("BAD_REQUEST", "INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "ENDPOINT_NOT_FOUND")
"""MLflow's error codes of what would be refused again."""

LONGEST_PARAM, LONGEST_TAG, PARAMS_AT_ONCE = 6000, 5000, 100
"""MLflow's limits."""

ENVIRONMENT = {
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # The queue tries again. MLflow's own retries take minutes, and can create a run twice.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
"""What MLflow reads from the environment alone. The user's own values win."""


def default_tracking_uri(storage: str) -> tuple[str, str | None]:
    """The SQLite store used when no server is named, and a sentence for the user where it is not in `storage`.

    A database cannot live on an object store, so runs that go there are tracked in the user's state folder.
    """
    local = storage.removeprefix("file://")
    if "://" not in local:
        return f"sqlite:///{Path(local).expanduser().absolute() / 'mlflow.db'}", None
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    store = state.absolute() / "orchestrator" / "mlflow.db"
    note = (
        f"MLflow records in {store} on this machine, because an object store cannot hold its database; "
        "set tracking.uri (or MLFLOW_TRACKING_URI) to a server to share it."
    )
    return f"sqlite:///{store}", note


def resolve_tracking_uri(configured: str | None, storage: str) -> tuple[str, str | None]:
    """`tracking.uri`, else MLFLOW_TRACKING_URI, else the default; a relative SQLite path is made absolute."""
    uri = configured or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return default_tracking_uri(storage)
    path = _sqlite_path(uri)
    return (f"sqlite:///{path.absolute()}" if path else uri), None


def open_command(tracking_uri: str, experiment_id: str | None = None, run_id: str | None = None) -> str:
    """How to see a run: its address on a server, else the shell command that serves the store's page."""
    shown = redact(tracking_uri)
    if shown.startswith(("http://", "https://")):
        page = f"/#/experiments/{experiment_id}/runs/{run_id}" if experiment_id and run_id else ""
        return shown.rstrip("/") + page
    beside = Path(sys.executable).parent / "mlflow"
    program = [str(beside)] if beside.exists() else [sys.executable, "-m", "mlflow"]
    if shutil.which("mlflow") == str(beside):
        program = ["mlflow"]
    # One worker and no job runner: a quarter of the memory, and the page needs neither.
    environment = "MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false"
    return f"{environment} {shlex.join([*program, 'ui', '--workers', '1', '--backend-store-uri', shown])}"


@dataclass(frozen=True)
class Dataset:
    """What was trained on. MLflow keeps 36 characters of the fingerprint as its digest; a tag has all of it."""

    name: str
    fingerprint: str
    location: str = ""


@dataclass(frozen=True)
class _Description:
    params: dict[str, str]
    tags: dict[str, str]
    dataset: Dataset


@dataclass(frozen=True)
class _Row:
    metrics: dict[str, float]
    step: int
    time_ms: int


@dataclass(frozen=True)
class _End:
    status: str
    last: _Row


class Tracker:
    """One MLflow run. Its methods may be called from any thread; none blocks but `finish`, for a bounded time.

    `run_folder` is where the run's files lie (path or URI): a tag, and the base of the links to its checkpoints.
    `on_warning` gets sentences without secrets, mostly from the tracker's thread.
    """

    def __init__(
        self,
        uri: str,
        *,
        experiment: str,
        run_name: str,
        run_folder: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        dataset: Dataset,
        on_warning: Callable[[str], None],
    ) -> None:
        self._uri = redact(uri)
        self._experiment = experiment
        self._run_folder = redact(run_folder)
        self._on_warning = on_warning
        self._store = _Store(uri, experiment, run_name, _now_ms())
        self._thread = threading.Thread(target=self._work, name="mlflow-tracker", daemon=True)
        self._start_lock = threading.Lock()
        self._queue: queue.SimpleQueue[_Row | _End] = queue.SimpleQueue()
        self._folders: deque[Path] = deque()
        self._rows = 0
        self._last_step = 0
        self._finishing = False
        self._give_up_at = math.inf

        # From here on the thread's own.
        facts = {"run_folder": run_folder, "dataset.name": dataset.name, "dataset.fingerprint": dataset.fingerprint}
        description = _Description(
            params={_name(key): redact(_text(value))[:LONGEST_PARAM] for key, value in _flat(params)},
            tags={_name(key): redact(value)[:LONGEST_TAG] for key, value in {**facts, **tags}.items()},
            dataset=dataset,
        )
        self._waiting: deque[_Description | _Row | _End] = deque([description])
        self._rows_written = 0
        self._ended = False
        self._failing = False
        self._last_error = "no answer in time"
        self._warned: set[str] = set()

    @property
    def info(self) -> dict[str, str | None]:
        """`tracking_uri` (redacted), `experiment`, and `run_id`: None until the store has been opened."""
        return {"tracking_uri": self._uri, "experiment": self._experiment, "run_id": self._store.run_id}

    @property
    def open_command(self) -> str:
        """How to see this run; its exact address on a server once the store has been opened."""
        return open_command(self._uri, self._store.experiment_id, self._store.run_id)

    def start(self) -> None:
        """Begin to open the store, in the background. The first `log_epoch`, and `finish`, do so too."""
        with self._start_lock:
            if self._thread.ident is None:
                os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
                for name, value in ENVIRONMENT.items():
                    os.environ.setdefault(name, value)
                self._thread.start()

    def log_epoch(self, row: Mapping[str, Any], step: int) -> None:
        """Hand in one epoch. Its numbers become metrics; what else the row has (None, text, lists) is left out."""
        self.start()
        self._rows += 1
        self._last_step = step
        self._queue.put(_Row(_numbers(row), step, _now_ms()))

    def log_artifacts(self, folder: Path) -> None:
        """Name a run folder whose files are stored once the run has ended. Checkpoints are linked, not copied."""
        self._folders.append(folder)

    def finish(self, status: str, metrics: Mapping[str, Any] | None = None, timeout: float = 60.0) -> None:
        """Write what is left and end the run as FINISHED, FAILED or KILLED, in at most `timeout` seconds.

        A store that fails is given up after RETRY_SECONDS. Warns of what was not recorded. Later calls do nothing.
        """
        if self._finishing:
            return
        self._finishing = True
        self.start()
        self._queue.put(_End(status, _Row(_numbers(metrics or {}), self._last_step, _now_ms())))
        self._give_up_at = time.monotonic() + min(timeout, RETRY_SECONDS)
        self._thread.join(timeout)
        lost = self._rows - self._rows_written
        missing = {f"{lost} of {self._rows} epochs": lost, "the end": not self._ended, "the files": self._folders}
        if any(missing.values()):
            what = " and ".join(k for k, v in missing.items() if v)
            self._warn(f"did not record {what} of this run", f"The run folder has everything: {self._run_folder}")

    def _work(self) -> None:
        while True:
            try:
                self._store.open()
                self._write_waiting()
                self._failing = False
            except Exception as error:  # whatever MLflow and the layers below it raise
                self._last_error = _sentence(error)
                # A blip passes unnoticed: the second failure in a row is worth a warning. `finish` gives its own.
                if self._failing and not self._finishing:
                    self._warn("does not record now", "Training goes on; what is missing is kept and tried again.")
                self._failing = True
            if (self._ended and not self._folders) or time.monotonic() >= self._give_up_at:
                return
            with suppress(queue.Empty):
                self._waiting.append(self._queue.get(timeout=1.0 if self._failing else SAMPLE_SECONDS))

    def _write_waiting(self) -> None:
        """Write everything that waits, in its order. What raises is the first to be tried next time."""
        from mlflow.exceptions import MlflowException

        while self._waiting:
            item = self._waiting[0]
            try:
                self._store.write(item)
            except MlflowException as error:
                if error.error_code not in REFUSED:
                    raise
                # Dropped: it would hold up all that follows.
                self._last_error = _sentence(error)
                self._warn("refused a part of this run", "The rest is recorded.")
            else:
                self._rows_written += isinstance(item, _Row)
                self._ended = isinstance(item, _End)
            self._waiting.popleft()
        self._store.write_load()
        # The files come last: a store that takes none must still get the numbers and the end.
        while self._ended and self._folders:
            self._store.write_files(self._folders[0], self._run_folder)
            self._folders.popleft()

    def _warn(self, what: str, then: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            self._on_warning(f"MLflow at {self._uri} {what} ({self._last_error}). {then}")


class _Store:
    """The run in MLflow: every call of its client, made in the tracker's thread. Raises what MLflow raises.

    A write may be repeated: MLflow keeps one of equal params, tags, inputs and points of a metric.
    """

    _client: MlflowClient
    _load: _Load

    def __init__(self, uri: str, experiment: str, run_name: str, began_ms: int) -> None:
        self._uri, self._experiment, self._run_name, self._began_ms = uri, experiment, run_name, began_ms
        # Finds the run again when the answer to its creation was lost on the way.
        self._key = uuid.uuid4().hex
        self.experiment_id: str | None = None
        self.run_id: str | None = None

    def open(self) -> None:
        """Make the store, the experiment and the run, where that has not been done."""
        if self.run_id is not None:
            return
        from mlflow import MlflowClient

        path = _sqlite_path(self._uri)
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
        runs = self._client.search_runs([experiment_id], f"tags.`orchestrator.key` = '{self._key}'")
        tags = {"orchestrator.key": self._key, "mlflow.source.name": "orchestrator", **_user()}
        [run] = runs or [self._client.create_run(experiment_id, self._began_ms, tags, self._run_name)]
        self._load = _Load(self._uri)
        self.experiment_id, self.run_id = experiment_id, run.info.run_id

    def write(self, item: _Description | _Row | _End) -> None:
        assert self.run_id is not None
        match item:
            case _Description():
                self._describe(self.run_id, item)
            case _Row():
                self._write_row(self.run_id, item)
            case _End():
                self._write_row(self.run_id, item.last)
                self.write_load(at_once=True)
                self._client.set_terminated(self.run_id, item.status, item.last.time_ms)

    def _describe(self, run_id: str, what: _Description) -> None:
        from mlflow.entities import Dataset as Source
        from mlflow.entities import DatasetInput, Param, RunTag

        self._client.log_batch(run_id, tags=[RunTag(key, value) for key, value in what.tags.items()])
        params = [Param(key, value) for key, value in what.params.items()]
        for start in range(0, len(params), PARAMS_AT_ONCE):
            self._client.log_batch(run_id, params=params[start : start + PARAMS_AT_ONCE])
        location = redact(what.dataset.location)
        kind = location.partition("://")[0] if "://" in location else "local"
        source = Source(what.dataset.name, what.dataset.fingerprint[:36], kind, json.dumps({"uri": location}))
        self._client.log_inputs(run_id, [DatasetInput(source)])

    def _write_row(self, run_id: str, row: _Row) -> None:
        from mlflow.entities import Metric

        if row.metrics:
            metrics = [Metric(name, value, row.time_ms, row.step) for name, value in row.metrics.items()]
            self._client.log_batch(run_id, metrics, synchronous=True)

    def write_load(self, at_once: bool = False) -> None:
        """Read the machine's load; where that is due, write its mean since the last time."""
        assert self.run_id is not None
        if row := self._load.read(at_once):
            self._write_row(self.run_id, row)
            self._load.clear()

    def write_files(self, folder: Path, run_folder: str) -> None:
        """Store the files of a run folder, and where its checkpoints are."""
        assert self.run_id is not None
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            *parents, _ = parts = path.relative_to(folder).parts
            if parts[0] != "checkpoints":
                self._client.log_artifact(self.run_id, str(path), "/".join(parents) or None)
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

    def read(self, at_once: bool) -> _Row | None:
        """Add a reading where SAMPLE_SECONDS have passed. A row where one is due: ever rarer, once a minute at last."""
        now = time.monotonic()
        if now - self._read < SAMPLE_SECONDS and not at_once:
            return None
        self._read = now
        try:
            for monitor in self._monitors:
                monitor.collect_metrics()
        except Exception:
            self._monitors = []
        if now - self._written < min((now - self._began) / 60, 60) and not at_once:
            return None
        load = {f"system/{k}": float(v) for m in self._monitors for k, v in m.aggregate_metrics().items()}
        return _Row(load, self._step, _now_ms())

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


def _sqlite_path(uri: str) -> Path | None:
    scheme, separator, path = uri.partition(":///")
    return Path(path.partition("?")[0]) if separator and scheme.startswith("sqlite") and path else None


def _user() -> dict[str, str]:
    try:
        return {"mlflow.user": getpass.getuser()}
    except (KeyError, OSError):  # a container's user may have no name
        return {}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves with dotted keys. A mapping from anything but names (class ids, say) is a leaf."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value and all(isinstance(k, str) for k in value):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    numeric = {k: v for k, v in row.items() if isinstance(v, numbers.Real) and not isinstance(v, bool)}
    return {_name(key): float(value) for key, value in numeric.items()}


def _name(key: str) -> str:
    """A key as MLflow takes it: `map50(box)` becomes `map50_box_`."""
    return re.sub(r"[^\w/.\- :]", "_", key)[:250]


def _sentence(error: Exception) -> str:
    """What went wrong, without secrets, short enough for a screen. urllib3 puts the cause last."""
    text = redact(" ".join(str(error).split())) or type(error).__name__
    cause = re.search(r"Caused by \w+\(['\"]?(.*?)['\"]?\)+$", text)
    return (cause[1] if cause else text)[:300].rstrip(".")


def _now_ms() -> int:
    return int(time.time() * 1000)
