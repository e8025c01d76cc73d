"""What a run leaves in a local MLflow store, and what happens where there is none to write to."""

from __future__ import annotations

import json
import math
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pytest

from orchestrator import tracking
from orchestrator.tracking import Dataset, Tracker, default_tracking_uri, open_command, resolve_tracking_uri

pytestmark = pytest.mark.timeout(60)

DATASET = Dataset("digits", "f" * 64, "/data/digits")


def make_tracker(uri: str, run_folder: Path, warnings: list[str], **changes: Any) -> Tracker:
    arguments: dict[str, Any] = {
        "experiment": "digits",
        "run_name": "first",
        "run_folder": str(run_folder),
        "params": {"lr": 0.01},
        "tags": {"task": "classify"},
        "dataset": DATASET,
        "on_warning": warnings.append,
    }
    return Tracker(uri, **arguments | changes)


def wait_until(happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + 40
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of three epochs in a store of its own: MLflow's record, and the tracker that wrote it."""
    from mlflow import MlflowClient

    storage = tmp_path_factory.mktemp("a storage")
    folder = storage / "digits" / "first"
    for name in ("config.yaml", "plots/results.png", "checkpoints/best/model.safetensors", "checkpoints/last.json"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    uri, note = default_tracking_uri(str(storage))
    assert note is None
    warnings: list[str] = []
    params = {
        "lr": 0.01,
        "amp": True,
        "pretrained": None,
        "model": "resnet18",
        "scaling": {"workers": 2},
        "names": {0: "zero", 1: "one"},
        "long": "x" * 9000,
        "data": "https://user:password@host/data",
        **{f"more.{i}": i for i in range(150)},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracking, "SAMPLE_SECONDS", 0.1)
        patch.setattr(tracking.store, "SAMPLE_SECONDS", 0.1)
        tracker = make_tracker(uri, folder, warnings, params=params)
        before = time.time()
        tracker.start()
        assert time.time() - before < 0.5
        handed_in = []
        for epoch in range(1, 4):
            handed_in.append(time.time() * 1000)
            row = {"epoch": epoch, "train_loss": 1 / epoch, "map50(box)": math.nan, "note": "text", "absent": None}
            tracker.log_epoch(row | {"per_class": [1.0], "flag": True}, epoch)
            time.sleep(0.01)
        wait_until(lambda: tracker.info["run_id"])
        time.sleep(0.6)
        tracker.log_artifacts(folder)
        tracker.finish("FINISHED", {"best_accuracy": 0.9})
        tracker.finish("FAILED")
    assert warnings == []
    client = MlflowClient(tracking_uri=uri)
    return {"client": client, "tracker": tracker, "storage": storage, "folder": folder, "handed_in": handed_in}


@pytest.fixture(scope="module")
def run(recorded: Any) -> Any:
    [experiment] = [e for e in recorded["client"].search_experiments() if e.name != "Default"]
    assert experiment.name == "digits"
    [run] = recorded["client"].search_runs([experiment.experiment_id])
    return run


def test_run_is_recorded_once_and_ended(recorded: Any, run: Any) -> None:
    assert (run.info.status, run.info.run_name) == ("FINISHED", "first")
    assert run.info.start_time <= recorded["handed_in"][0] <= run.info.end_time
    assert recorded["tracker"].info == {
        "tracking_uri": f"sqlite:///{recorded['storage']}/mlflow.db",
        "experiment": "digits",
        "run_id": run.info.run_id,
    }


def test_metrics_have_the_steps_and_times_of_the_rows(recorded: Any, run: Any) -> None:
    history = recorded["client"].get_metric_history(run.info.run_id, "train_loss")
    assert [(m.step, m.value) for m in history] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    for metric, time_ms in zip(history, recorded["handed_in"], strict=True):
        assert abs(metric.timestamp - time_ms) < 100
    own = {name for name in run.data.metrics if not name.startswith("system/")}
    assert own == {"epoch", "train_loss", "map50_box_", "best_accuracy"}
    assert math.isnan(run.data.metrics["map50_box_"])


def test_load_of_the_machine_is_recorded_while_the_run_goes_on(recorded: Any, run: Any) -> None:
    history = recorded["client"].get_metric_history(run.info.run_id, "system/cpu_utilization_percentage")
    assert len(history) >= 3
    assert [m.step for m in history] == list(range(len(history)))
    assert 0 <= run.data.metrics["system/cpu_utilization_percentage"] <= 100
    assert run.data.metrics["system/system_memory_usage_megabytes"] > 0


def test_params_are_the_flat_config_without_secrets(run: Any) -> None:
    params = run.data.params
    assert len(params) == 158
    assert {k: v for k, v in params.items() if not k.startswith(("more.", "long"))} == {
        "lr": "0.01",
        "amp": "true",
        "pretrained": "null",
        "model": "resnet18",
        "scaling.workers": "2",
        "names": '{"0": "zero", "1": "one"}',
        "data": "https://***@host/data",
    }
    assert len(params["long"]) == 6000


def test_tags_and_dataset(recorded: Any, run: Any) -> None:
    tags = run.data.tags
    assert tags["task"] == "classify"
    assert tags["run_folder"] == str(recorded["folder"])
    assert (tags["dataset.name"], tags["dataset.fingerprint"]) == ("digits", "f" * 64)
    [entry] = run.inputs.dataset_inputs
    assert (entry.dataset.name, entry.dataset.digest) == ("digits", "f" * 36)
    assert json.loads(entry.dataset.source) == {"uri": "/data/digits"}


def test_files_are_stored_and_checkpoints_linked(recorded: Any, run: Any) -> None:
    root = Path(unquote(urlparse(run.info.artifact_uri).path))
    assert root.is_relative_to(recorded["storage"] / "mlartifacts")
    stored = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    assert stored == {"config.yaml", "plots/results.png", "checkpoints.json"}
    links = json.loads((root / "checkpoints.json").read_text())
    checkpoints = recorded["folder"] / "checkpoints"
    assert links == {"best": str(checkpoints / "best"), "last": str(checkpoints / "last")}


def test_a_refused_epoch_does_not_hold_up_the_others(recorded: Any) -> None:
    uri = recorded["tracker"].info["tracking_uri"]
    warnings: list[str] = []
    tracker = make_tracker(uri, recorded["folder"], warnings, experiment="refusing")
    tracker.log_epoch({"loss": 2.0}, 1)
    tracker.log_epoch({"/": 1.0}, 2)
    tracker.log_epoch({"loss": 1.0}, 3)
    tracker.finish("KILLED")
    run = recorded["client"].get_run(tracker.info["run_id"])
    assert run.info.status == "KILLED"
    assert [m.step for m in recorded["client"].get_metric_history(run.info.run_id, "loss")] == [1, 3]
    refused, lost = warnings
    assert "refused a part of this run" in refused
    assert "1 of 3 epochs" in lost


def test_a_store_that_takes_no_files_gets_the_rest(recorded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise PermissionError("/mlruns is not writable")

    monkeypatch.setattr(MlflowClient, "log_artifact", refuse)
    monkeypatch.setattr(tracking, "RETRY_SECONDS", 0.0)
    warnings: list[str] = []
    uri = recorded["tracker"].info["tracking_uri"]
    tracker = make_tracker(uri, recorded["folder"], warnings, experiment="no files")
    tracker.log_epoch({"loss": 2.0}, 1)
    tracker.log_artifacts(recorded["folder"])
    tracker.finish("FINISHED")
    run = recorded["client"].get_run(tracker.info["run_id"])
    assert (run.info.status, run.data.metrics["loss"]) == ("FINISHED", 2.0)
    [warning] = warnings
    assert "did not record the files" in warning
    assert "not writable" in warning


def test_an_answer_lost_on_the_way_does_not_make_a_second_run(recorded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    create, attempts = MlflowClient.create_run, []

    def create_and_fail(self: Any, *args: Any, **kwargs: Any) -> Any:
        attempts.append(create(self, *args, **kwargs))
        raise ConnectionError("the answer is lost")

    monkeypatch.setattr(MlflowClient, "create_run", create_and_fail)
    warnings: list[str] = []
    tracker = make_tracker(recorded["tracker"].info["tracking_uri"], recorded["folder"], warnings, experiment="lost")
    tracker.log_epoch({"loss": 2.0}, 1)
    tracker.finish("FINISHED")
    assert len(attempts) == 1
    assert warnings == []
    assert recorded["client"].get_run(tracker.info["run_id"]).data.metrics["loss"] == 2.0


def test_a_continued_run_stays_one_run(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    uri, _ = default_tracking_uri(str(tmp_path))
    warnings: list[str] = []
    first = make_tracker(uri, tmp_path, warnings)
    first.log_epoch({"top1": 0.5}, 1)
    first.finish("KILLED")
    second = make_tracker(uri, tmp_path, warnings, params={"lr": 0.01, "workers": 2}, run_id=first.info["run_id"])
    second.log_epoch({"top1": 0.7}, 2)
    second.finish("FINISHED")
    client = MlflowClient(uri)
    [run] = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert (run.info.run_id, run.info.status) == (first.info["run_id"], "FINISHED")
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "top1")] == [(1, 0.5), (2, 0.7)]
    assert run.data.params == {"lr": "0.01", "workers": "2"}
    assert warnings == []


def test_no_server_warns_and_raises_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "RETRY_SECONDS", 1.5)
    with socket.socket() as taken:  # bound, not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        warnings: list[str] = []
        tracker = make_tracker(f"http://user:password@127.0.0.1:{taken.getsockname()[1]}", tmp_path, warnings)
        for epoch in range(1, 6):
            tracker.log_epoch({"loss": 1.0}, epoch)
        wait_until(lambda: warnings)
        before = time.monotonic()
        tracker.finish("FINISHED")
        assert time.monotonic() - before < 5
    away, lost = warnings
    assert "does not record now" in away
    assert "Connection refused" in away
    assert "5 of 5 epochs" in lost
    assert str(tmp_path) in lost
    shown = f"{warnings} {tracker.info} {tracker.open_command}"
    assert "***@127.0.0.1" in shown
    assert "password" not in shown
    assert tracker.info["run_id"] is None


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n", "500"),
        (b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n", "401"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n<html></html>", "not in a valid JSON format"),
    ],
)
def test_a_server_that_refuses_warns(answer: bytes, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.connection.recv(65536)
            self.wfile.write(answer)

    monkeypatch.setattr(tracking, "RETRY_SECONDS", 0.0)
    warnings: list[str] = []
    with socketserver.TCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        tracker = make_tracker(f"http://127.0.0.1:{server.server_address[1]}", tmp_path, warnings)
        tracker.log_epoch({"loss": 1.0}, 1)
        tracker.finish("FINISHED")
        server.shutdown()
        thread.join()
    assert told in warnings[-1]
    assert "1 of 1 epochs" in warnings[-1]


def test_finish_does_not_wait_for_a_server_that_hangs(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        warnings: list[str] = []
        tracker = make_tracker(f"http://127.0.0.1:{silent.getsockname()[1]}", tmp_path, warnings)
        tracker.log_epoch({"loss": 1.0}, 1)
        before = time.monotonic()
        tracker.finish("FINISHED", timeout=1.0)
        assert time.monotonic() - before < 3
    [lost] = warnings
    assert "1 of 1 epochs" in lost


@pytest.mark.parametrize("uri", ["sqlite:////dev/null/mlflow.db", "nonsense://host", "file:///tmp/mlruns"])
def test_a_store_that_cannot_be_opened_warns(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "RETRY_SECONDS", 0.0)
    warnings: list[str] = []
    tracker = make_tracker(uri, tmp_path, warnings)
    tracker.finish("FAILED")
    [lost] = warnings
    assert "the end" in lost
    assert "\n" not in lost


def test_default_store_lies_in_a_local_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    assert resolve_tracking_uri(None, "runs") == (f"sqlite:///{tmp_path}/runs/mlflow.db", None)
    assert resolve_tracking_uri(None, f"file://{tmp_path}") == (f"sqlite:///{tmp_path}/mlflow.db", None)


@pytest.mark.parametrize("storage", ["s3://bucket/runs", "gs://bucket/runs"])
def test_default_store_of_an_object_store_is_told(
    storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    uri, note = default_tracking_uri(storage)
    assert uri == f"sqlite:///{tmp_path}/orchestrator/mlflow.db"
    assert note is not None
    assert str(tmp_path / "orchestrator" / "mlflow.db") in note
    assert "tracking.uri" in note


def test_config_comes_before_environment_before_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://from-environment")
    assert resolve_tracking_uri("http://from-config", "runs") == ("http://from-config", None)
    assert resolve_tracking_uri(None, "runs") == ("http://from-environment", None)
    monkeypatch.chdir(tmp_path)
    assert resolve_tracking_uri("sqlite:///mine.db", "runs") == (f"sqlite:///{tmp_path}/mine.db", None)


def test_open_command() -> None:
    assert open_command("http://host:5000/") == "http://host:5000"
    assert open_command("https://u:p@host", "7", "abc") == "https://***@host/#/experiments/7/runs/abc"
    command = open_command("sqlite:////my runs/mlflow.db")
    assert command.endswith("mlflow ui --workers 1 --backend-store-uri 'sqlite:////my runs/mlflow.db'")
    assert "MLFLOW_DISABLE_TELEMETRY=true" in command


def test_importing_the_module_does_not_import_mlflow() -> None:
    code = "import orchestrator.tracking, sys; sys.exit('mlflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
