"""Sweeps from the command line: Ctrl-C and a kill in the middle, resume, and what is left of it all."""

from __future__ import annotations

import csv
import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.shell import Finished, Shell, local_store, mlflow_history, mlflow_runs, summary
from tests.results import untimed_rows

EPOCHS, TRIALS = 3, 4
STEP_SECONDS = {"STEP_SECONDS": "0.3"}
"""With six steps to an epoch: slow enough to be met in the middle of one."""
SETTINGS: dict[str, Any] = {
    "model": "mymodels:slow",
    "epochs": EPOCHS,
    "name": "s",
    "tune": {
        "space": {"lr": {"loguniform": [1e-3, 1e-1]}, "optimizer": ["SGD", "AdamW"]},
        "searcher": "random",
        "scheduler": "none",
        "samples": TRIALS,
    },
}


def events(shell: Shell, kind: str) -> list[dict[str, Any]]:
    path = shell.storage / "digits" / "s" / "journal.jsonl"
    if not path.exists():
        return []
    lines = path.read_text().splitlines()
    found = [json.loads(line) for line in lines if line.endswith("}")]
    return [event for event in found if event["kind"] == kind]


def trials(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def trial_rows(folder: Path) -> list[Any]:
    return [(trial["lr"], trial["optimizer"], untimed_rows(folder / trial["folder"])) for trial in trials(folder)]


@pytest.fixture(scope="module")
def undisturbed(module_shell: Shell) -> Path:
    """A sweep that nobody disturbs."""
    done = module_shell.run("tune", module_shell.config(**SETTINGS), STEP_SECONDS="0")
    assert done.code == 0, done.err + done.out
    return module_shell.storage / "digits" / "s"


def check_whole(shell: Shell, undisturbed: Path) -> None:
    """No trial lost, none twice; every epoch once; the same numbers; one run of MLflow for each."""
    folder = shell.storage / "digits" / "s"
    assert summary(folder)["status"] == "finished"
    assert summary(folder)["trials"]["finished"] == TRIALS
    assert trial_rows(folder) == trial_rows(undisturbed)
    assert len(list((folder / "trials").iterdir())) == TRIALS
    runs = mlflow_runs(local_store(shell.storage))
    names = Counter(run.info.run_name for run in runs)
    assert names == {"s": 1} | {f"s-{number:04d}": 1 for number in range(TRIALS)}
    assert {run.info.status for run in runs} == {"FINISHED"}
    for run in runs:
        if run.info.run_name != "s":
            history = mlflow_history(local_store(shell.storage), run.info.run_id, "train_loss")
            assert sorted(history) == list(range(1, EPOCHS + 1))


def test_a_sweep_from_the_command_line(undisturbed: Path, module_shell: Shell) -> None:
    told = summary(undisturbed)
    assert told["status"] == "finished"
    assert told["metric"]["best"] > 0.3
    assert told["cache"]["tier"] == "disk"
    names = {path.name for path in undisturbed.iterdir()}
    assert names == {
        "sweep.yaml", "journal.jsonl", "trials.csv", "decisions.csv", "best.yaml", "summary.json", "environment.json",
        "report.html", "plots", "trials",
    }  # fmt: skip
    config = yaml.safe_load((undisturbed / "sweep.yaml").read_text())
    assert config["tune"]["samples"] == TRIALS
    again = module_shell.run("train", str(undisturbed / "best.yaml"), "--local", "name=again")
    assert again.code == 0, again.err
    best = summary(undisturbed.parent / "again")["metric"]["best"]
    assert best == pytest.approx(told["metric"]["best"], abs=0.05)


def test_a_killed_driver_loses_nothing(shell: Shell, undisturbed: Path) -> None:
    command = shell.start("tune", shell.config(**SETTINGS), **STEP_SECONDS)
    command.wait_until(lambda: len(events(shell, "epoch")) >= 5)
    os.kill(command.process.pid, signal.SIGKILL)
    command.process.wait()
    folder = shell.storage / "digits" / "s"
    known = len(events(shell, "epoch"))
    assert known < TRIALS * EPOCHS
    done = shell.run("resume", str(folder))
    assert done.code == 0, done.err + done.out
    check_whole(shell, undisturbed)
    assert len(events(shell, "session")) == 2
    assert len(events(shell, "epoch")) == TRIALS * EPOCHS


@pytest.fixture
def interrupted(shell: Shell) -> Finished:
    command = shell.start("tune", shell.config(**SETTINGS), **STEP_SECONDS)
    command.wait_until(lambda: len(events(shell, "epoch")) >= 3)
    command.press_ctrl_c()
    return command.wait()


@pytest.mark.slow
def test_ctrl_c_saves_and_names_the_command_that_goes_on(
    interrupted: Finished, shell: Shell, undisturbed: Path
) -> None:
    folder = shell.storage / "digits" / "s"
    assert interrupted.code == 130, interrupted.err + interrupted.out
    assert f"orchestrator resume {folder}" in interrupted.out
    assert "Traceback" not in interrupted.err + interrupted.out
    told = summary(folder)
    assert (told["status"], told["stopped_because"]) == ("interrupted", "user")
    assert told["trials"]["interrupted"] >= 1
    statuses = Counter(run.info.status for run in mlflow_runs(local_store(shell.storage)))
    assert statuses["RUNNING"] == 0
    assert statuses["KILLED"] >= 2
    done = shell.run("resume", str(folder))
    assert done.code == 0, done.err + done.out
    check_whole(shell, undisturbed)


@pytest.mark.slow
def test_a_running_sweep_has_one_driver(shell: Shell) -> None:
    command = shell.start("tune", shell.config(**SETTINGS), STEP_SECONDS="3")
    command.wait_until(lambda: events(shell, "session"))
    second = shell.run("resume", str(shell.storage / "digits" / "s"))
    assert second.code == 2
    assert "is being run by another process" in second.err
    command.press_ctrl_c()
    assert command.wait().code == 130


@pytest.mark.slow
def test_the_shipped_sweep(shell: Shell) -> None:
    """configs/sweep.yaml: 12 trials, the best at least as good as the defaults, most epochs saved."""
    config = Path(__file__).parents[2] / "configs" / "sweep.yaml"
    done = shell.run("tune", str(config), seconds=900)
    assert done.code == 0, done.err + done.out
    (folder,) = (shell.storage / "digits").glob("sweep-*")
    told, found = summary(folder), trials(folder)
    assert len(found) == 12
    assert told["trials"]["failed"] == 0
    assert told["metric"]["best"] >= float(found[0]["best_top1"])
    assert told["metric"]["best"] > 0.95
    assert told["epochs"]["spent"] < told["epochs"]["full"] / 2
