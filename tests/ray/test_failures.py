"""Runs in workers that end early: by a mistake in a user's model, by a loss that is not finite, on request."""

from __future__ import annotations

import inspect
import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.errors import RunError
from orchestrator.train import train
from tests.colours import TRAIN, ids
from tests.ray import models
from tests.ray.conftest import MakeConfig
from tests.results import checkpoint, rows


def _line_of(text: str) -> int:
    lines = inspect.getsource(models).splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


def _summary(run: Path) -> dict:
    summary: dict = json.loads((run / "summary.json").read_text())
    return summary


def _mlflow_status(run: Path) -> str:
    from mlflow import MlflowClient

    told = _summary(run)["mlflow"]
    return str(MlflowClient(tracking_uri=told["tracking_uri"]).get_run(told["run_id"]).info.status)


def _run_folder(error: RunError) -> Path:
    """The folder that a message names."""
    found = re.search(r"the run: (\S+)", str(error))
    assert found, error
    return Path(found[1])


def test_a_users_mistake_is_told_with_its_place(make_config: MakeConfig) -> None:
    with pytest.raises(RunError) as failure:
        train(make_config(2, model="tests.ray.models:Raises"))
    message = str(failure.value)
    assert f"OwnError: {models.MESSAGE}" in message
    assert f"{models.__file__}:{_line_of('raise OwnError')}" in message
    assert "Traceback" not in message
    run = _run_folder(failure.value)
    assert _summary(run)["status"] == "failed"
    assert _summary(run)["epochs_completed"] == 0
    assert _mlflow_status(run) == "FAILED"
    assert models.MESSAGE in (run / "logs" / "driver.log").read_text()
    assert "Traceback" in (run / "logs" / "rank-0.log").read_text()


def test_a_loss_that_is_not_finite_names_step_and_samples(make_config: MakeConfig, colours: Path) -> None:
    with pytest.raises(RunError) as failure:
        train(make_config(2, model="tests.ray.models:Explodes", batch=7, epochs=3))
    message = str(failure.value)
    assert "the loss is nan at epoch 2, step 2, also in float32; 3 steps were skipped already" in message
    assert "lower lr" in message
    named = [name for name in ids(colours, "train") if re.search(rf"\b{re.escape(name)}\b", message)]
    assert len(named) == 7
    summary = _summary(_run_folder(failure.value))
    assert summary["status"] == "failed"
    skipped = [(event["epoch"], event["step"], len(event["samples"])) for event in summary["events"]]
    assert skipped == [(1, 3, 7), (1, 4, 1), (2, 1, 7)]


@pytest.mark.slow
def test_a_learning_rate_that_is_too_high(make_config: MakeConfig) -> None:
    told = r"(the loss is (nan|inf)|not finite) at epoch \d+, step \d+, .*lower lr"
    with pytest.raises(RunError, match=told) as failure:
        train(make_config(2, lr=1e18, warmup_epochs=0, epochs=20))
    assert _summary(_run_folder(failure.value))["status"] == "failed"


@pytest.fixture
def late_signals() -> Iterator[None]:
    """A signal that comes after the run fails the test, not the whole session."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    yield
    signal.signal(signal.SIGTERM, before)


def _terminate_after_epochs(run: Path, epochs: int) -> threading.Thread:
    """Send this process SIGTERM once a run has so many epochs."""

    def wait() -> None:
        while not (run / "results.csv").exists() or len(rows(run)) < epochs:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


@pytest.mark.usefixtures("late_signals")
def test_a_request_to_stop_reaches_the_workers(make_config: MakeConfig) -> None:
    config = make_config(2, model="tests.ray.models:Slow", epochs=500, patience=0, batch=2, name="stopped")
    run = Path(config.storage) / "colours" / "stopped"
    asking = _terminate_after_epochs(run, 1)
    result = train(config)
    asking.join()
    assert result.folder == run
    assert result.interrupted
    assert (result.summary["status"], result.summary["stopped_because"]) == ("interrupted", "interruption")
    finished = len(rows(run))
    assert 1 <= finished == result.summary["epochs_completed"] < 500
    progress = checkpoint(run).progress
    assert progress["epoch"] == finished
    assert 0 <= progress["samples"] < sum(TRAIN)
    assert _mlflow_status(run) == "KILLED"
    assert (run / "plots" / "results.png").exists()
