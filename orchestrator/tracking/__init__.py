"""The driver's one way to MLflow.

Everything slow or fallible (the import, opening the store, each request) happens in one thread, fed by a queue.
What cannot be written waits in memory and is tried again: an error of MLflow warns, and never reaches training.
"""

from __future__ import annotations

import json
import math
import numbers
import os
import queue
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from orchestrator.config import redact
from orchestrator.tracking.store import SAMPLE_SECONDS, Dataset, Description, End, Row, Store, now_ms
from orchestrator.tracking.uri import default_tracking_uri, open_command, resolve_tracking_uri

__all__ = ["Dataset", "Tracker", "default_tracking_uri", "open_command", "resolve_tracking_uri"]

RETRY_SECONDS = 10.0
"""How long `finish` goes on trying a store that fails."""

LONGEST_PARAM, LONGEST_TAG = 6000, 5000
"""MLflow's limits, in characters."""

ENVIRONMENT = {
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # The queue tries again. MLflow's own retries take minutes, and can create a run twice.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
"""What MLflow reads from the environment alone. The user's own values win."""


class Tracker:
    """One MLflow run. Its methods may be called from any thread; none blocks but `finish`, for a bounded time.

    `run_folder` is where the run's files lie (path or URI): a tag, and the base of the links to its checkpoints.
    `run_id` continues a run, where the store knows it; `key` too, a text that no other run has.
    `parent` makes this run a child of another one (a trial of a sweep), opened after it.
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
        run_id: str | None = None,
        key: str | None = None,
        parent: Tracker | None = None,
    ) -> None:
        self._uri = redact(uri)
        self._experiment = experiment
        self._run_folder = redact(run_folder)
        self._on_warning = on_warning
        self._store: Store = Store(uri, experiment, run_name, run_id, key, parent._store if parent else None)
        self._thread = threading.Thread(target=self._work, name="mlflow-tracker", daemon=True)
        self._start_lock = threading.Lock()
        self._queue: queue.SimpleQueue[Row | End] = queue.SimpleQueue()
        self._folders: deque[Path] = deque()
        self._rows = 0
        self._last_step = 0
        self._finishing = self._finished = False
        self._give_up_at = math.inf

        # From here on the thread's own.
        facts = {"run_folder": run_folder, "dataset.name": dataset.name, "dataset.fingerprint": dataset.fingerprint}
        self._description = description = Description(
            params=_params(params),
            tags={_name(key): redact(value)[:LONGEST_TAG] for key, value in {**facts, **tags}.items()},
            dataset=dataset,
        )
        self._waiting: deque[Description | Row | End] = deque([description])
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

    def describe(self, params: Mapping[str, Any]) -> None:
        """Params that take the place of those given before, for what is decided late. Before `start` only."""
        self._description.params.update(_params(params))

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
        self._queue.put(Row(_numbers(row), step, now_ms()))

    def log_artifacts(self, folder: Path) -> None:
        """Name a run folder whose files are stored once the run has ended. Checkpoints are linked, not copied."""
        self._folders.append(folder)

    def end(self, status: str, metrics: Mapping[str, Any] | None = None) -> None:
        """Let the run end as FINISHED, FAILED or KILLED once all is written. Later calls do nothing."""
        if self._finishing:
            return
        self._finishing = True
        self.start()
        self._queue.put(End(status, Row(_numbers(metrics or {}), self._last_step, now_ms())))

    def hurry(self, timeout: float = RETRY_SECONDS) -> None:
        """From so many seconds on, give up a store that fails."""
        self._give_up_at = min(self._give_up_at, time.monotonic() + timeout)

    def finish(self, status: str, metrics: Mapping[str, Any] | None = None, timeout: float = 60.0) -> None:
        """Write what is left and `end` the run, in at most `timeout` seconds.

        A store that fails is given up after RETRY_SECONDS. Warns of what was not recorded.
        """
        if self._finished:
            return
        self._finished = True
        self.end(status, metrics)
        self.hurry(min(timeout, RETRY_SECONDS))
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
            if (self._ended and not self._folders) or (self._failing and time.monotonic() >= self._give_up_at):
                return
            with suppress(queue.Empty):
                self._waiting.append(self._queue.get(timeout=1.0 if self._failing else SAMPLE_SECONDS))

    def _write_waiting(self) -> None:
        """Write everything that waits, in its order. What raises is the first to be tried next time."""
        while self._waiting:
            item = self._waiting[0]
            try:
                self._store.write(item)
            except Exception as error:
                if isinstance(item, End) or not self._store.refuses(error):
                    raise
                # Dropped: it would hold up all that follows.
                self._last_error = _sentence(error)
                self._warn("refused a part of this run", "The rest is recorded.")
            else:
                self._rows_written += isinstance(item, Row)
                self._ended |= isinstance(item, End)
            self._waiting.popleft()
        if not self._ended:
            self._store.write_load()
        # The files come last: a store that takes none must still get the numbers and the end.
        while self._ended and self._folders:
            self._store.write_files(self._folders[0], self._run_folder)
            self._folders.popleft()

    def _warn(self, what: str, then: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            self._on_warning(f"MLflow at {self._uri} {what} ({self._last_error}). {then}")


def _params(values: Mapping[str, Any]) -> dict[str, str]:
    return {_name(key): redact(_text(value))[:LONGEST_PARAM] for key, value in _flat(values)}


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
