"""The tracker against real MLflow servers, real processes that share a store, and real kills."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from orchestrator.tracking import Dataset, Tracker

pytestmark = pytest.mark.timeout(180)

# A run of two epochs in a store. What it prints fails the test.
RUN = """
import sys
from orchestrator.tracking import Dataset, Tracker
uri, name = sys.argv[1:]
tracker = Tracker(
    uri, experiment="shared", run_name=name, run_folder="/runs/" + name, params={"lr": 0.1}, tags={},
    dataset=Dataset("digits", "abc"), on_warning=print,
)
for epoch in (1, 2):
    tracker.log_epoch({"loss": 1 / epoch}, epoch)
tracker.finish("FINISHED", timeout=120)
from mlflow.telemetry import get_telemetry_client
assert get_telemetry_client() is None
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def wait_until(happened: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


@contextmanager
def serving(command: str, url: str, folder: Path) -> Iterator[None]:
    """Run a shell command that serves `url`, with all its children, while the block runs."""
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(command, shell=True, cwd=folder, stdout=log, stderr=log, start_new_session=True)  # noqa: S602
    try:
        wait_until(lambda: process.poll() is not None or answers(url))
        assert process.poll() is None, (folder / "server.log").read_text()
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
        wait_until(lambda: not answers(url), 10)


@contextmanager
def server(folder: Path, port: int) -> Iterator[None]:
    command = (
        f"MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true {sys.executable} -m mlflow server "
        f"--workers 1 --host 127.0.0.1 --port {port} --backend-store-uri sqlite:///{folder}/server.db "
        f"--artifacts-destination {folder}/artifacts"
    )
    with serving(command, f"http://127.0.0.1:{port}", folder):
        yield


@pytest.fixture(scope="module")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port = free_port()
    with server(tmp_path_factory.mktemp("server"), port):
        yield f"http://127.0.0.1:{port}"


def make_tracker(uri: str, run_folder: Path, warnings: list[str]) -> Tracker:
    return Tracker(
        uri,
        experiment="digits",
        run_name="first",
        run_folder=str(run_folder),
        params={f"setting.{i}": i for i in range(120)},
        tags={"task": "classify"},
        dataset=Dataset("digits", "f" * 64, "s3://bucket/digits"),
        on_warning=warnings.append,
    )


def run_folder(parent: Path) -> Path:
    folder = parent / "digits" / "first"
    for name in ("config.yaml", "plots/results.png", "checkpoints/best/model.safetensors"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"content of {name}")
    return folder


def steps(client: Any, run_id: str, metric: str) -> list[int]:
    return [m.step for m in client.get_metric_history(run_id, metric)]


def test_run_is_recorded_by_a_server(server_url: str, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    warnings: list[str] = []
    folder = run_folder(tmp_path)
    tracker = make_tracker(server_url, folder, warnings)
    for epoch in (1, 2, 3):
        tracker.log_epoch({"loss": 1 / epoch, "unknown": math.nan}, epoch)
    tracker.log_artifacts(folder)
    tracker.finish("FINISHED")
    assert warnings == []
    client = MlflowClient(tracking_uri=server_url)
    experiment = client.get_experiment_by_name("digits")
    assert experiment is not None
    [run] = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.info.run_id) == ("FINISHED", tracker.info["run_id"])
    assert steps(client, run.info.run_id, "loss") == [1, 2, 3]
    assert math.isnan(run.data.metrics["unknown"])
    assert "system/cpu_utilization_percentage" in run.data.metrics
    assert len(run.data.params) == 120
    assert run.inputs is not None
    assert run.inputs.dataset_inputs[0].dataset.digest == "f" * 36
    top = {f.path for f in client.list_artifacts(run.info.run_id)}
    assert top == {"config.yaml", "plots", "checkpoints.json"}
    stored = Path(client.download_artifacts(run.info.run_id, "plots/results.png", str(tmp_path)))
    assert stored.read_text() == "content of plots/results.png"
    assert tracker.open_command == f"{server_url}/#/experiments/{experiment.experiment_id}/runs/{run.info.run_id}"


def test_server_that_comes_late_and_goes_away(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    port = free_port()
    warnings: list[str] = []
    folder = run_folder(tmp_path)
    tracker = make_tracker(f"http://127.0.0.1:{port}", folder, warnings)
    tracker.log_epoch({"loss": 1.0}, 1)
    wait_until(lambda: warnings)
    with server(tmp_path, port):
        tracker.log_epoch({"loss": 0.9}, 2)
        wait_until(lambda: tracker.info["run_id"])
    tracker.log_epoch({"loss": 0.8}, 3)
    time.sleep(3)
    with server(tmp_path, port):
        tracker.log_epoch({"loss": 0.7}, 4)
        tracker.log_artifacts(folder)
        tracker.finish("FINISHED")
        client = MlflowClient(tracking_uri=f"http://127.0.0.1:{port}")
        experiment = client.get_experiment_by_name("digits")
        assert experiment is not None
        [run] = client.search_runs([experiment.experiment_id])
        assert run.info.status == "FINISHED"
        assert steps(client, run.info.run_id, "loss") == [1, 2, 3, 4]
        assert len(run.data.params) == 120
        assert len(client.list_artifacts(run.info.run_id)) == 3
    [away] = warnings
    assert "does not record now" in away


def test_open_command_shows_runs_and_files_of_a_local_store(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    warnings: list[str] = []
    folder = run_folder(tmp_path)
    tracker = make_tracker(uri, folder, warnings)
    tracker.log_epoch({"loss": 1.0}, 1)
    tracker.log_artifacts(folder)
    tracker.finish("FINISHED")
    assert warnings == []
    run_id, port, elsewhere = tracker.info["run_id"], free_port(), tmp_path / "elsewhere"
    elsewhere.mkdir()
    url = f"http://127.0.0.1:{port}"
    with serving(f"{tracker.open_command} --port {port}", url, elsewhere):
        with urllib.request.urlopen(f"{url}/get-artifact?run_id={run_id}&path=config.yaml") as response:
            assert response.read() == b"content of config.yaml"
        with urllib.request.urlopen(f"{url}/api/2.0/mlflow/runs/get?run_id={run_id}") as response:
            assert json.load(response)["run"]["info"]["status"] == "FINISHED"
        with urllib.request.urlopen(url) as response:
            assert b"<html" in response.read()
    assert [path.name for path in elsewhere.iterdir()] == ["server.log"]


def start_run(uri: str, name: str, environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", RUN, uri, name],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


@pytest.fixture
def plain_environment(tmp_path: Path) -> dict[str, str]:
    """As on a user's machine: neither CI nor pytest, which switch MLflow's telemetry off, and here without git."""
    kept = {k: v for k, v in os.environ.items() if k not in ("CI", "PYTEST_CURRENT_TEST", "GITHUB_ACTIONS")}
    kept = {k: v for k, v in kept.items() if not k.startswith("MLFLOW_")}
    return kept | {"PATH": str(tmp_path / "no-programs"), "PYTHONPATH": str(Path(__file__).parents[2])}


def test_a_run_on_a_server_prints_nothing(server_url: str, plain_environment: dict[str, str]) -> None:
    process = start_run(server_url, "quiet", plain_environment)
    output, _ = process.communicate(timeout=120)
    assert (output, process.returncode) == ("", 0)


def test_runs_that_start_together_on_a_fresh_store(tmp_path: Path, plain_environment: dict[str, str]) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    processes = [start_run(uri, name, plain_environment) for name in ("first", "second")]
    for process in processes:
        output, _ = process.communicate(timeout=120)
        assert (output, process.returncode) == ("", 0)
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("shared")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.info.run_name for run in runs) == ["first", "second"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert {tuple(steps(client, run.info.run_id, "loss")) for run in runs} == {(1, 2)}


def test_store_whose_making_was_killed_is_made_again(tmp_path: Path, plain_environment: dict[str, str]) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    killed = start_run(uri, "killed", plain_environment)

    def half_made() -> bool:
        return any(path.stat().st_size > 200_000 for path in tmp_path.glob(".mlflow.db.*.new"))

    try:
        wait_until(half_made)
    finally:
        killed.kill()
        killed.communicate()
    assert not (tmp_path / "mlflow.db").exists()
    again = start_run(uri, "again", plain_environment)
    output, _ = again.communicate(timeout=120)
    assert (output, again.returncode) == ("", 0)
    assert [path.name for path in tmp_path.glob("*.db")] == ["mlflow.db"]
    assert not list(tmp_path.glob(".*.new"))
