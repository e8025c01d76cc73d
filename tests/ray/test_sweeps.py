"""Sweeps on real Ray: Tune runs the trials, with one worker and with several, and what is told of them is true."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.errors import RunError
from orchestrator.run import Result
from orchestrator.sweeps.journal import read_journal
from orchestrator.train import train
from orchestrator.tune import extend_sweep, resume_sweep, tune
from tests.ray import models
from tests.ray.conftest import MakeConfig
from tests.results import rows, untimed_rows

BAD = 1e-9
SPACE = {"lr": {"choice": [0.05, 0.02, 0.1]}, "batch": [5, 10]}


def table(result: Result, name: str) -> list[dict[str, str]]:
    with (result.folder / name).open(newline="") as file:
        return list(csv.DictReader(file))


def mlflow_runs(result: Result) -> list[Any]:
    from mlflow import MlflowClient

    told = result.summary["mlflow"]
    client = MlflowClient(tracking_uri=told["tracking_uri"])
    parent = client.get_run(told["run_id"])
    children = client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{told['run_id']}'", max_results=1000
    )
    return [parent, *sorted(children, key=lambda run: int(run.data.tags["trial"]))]


def trial_folder(result: Result, number: int) -> Path:
    return result.folder / table(result, "trials.csv")[number]["folder"]


# --------------------------------------------------------------------------------------------------- one worker


@pytest.fixture(scope="module")
def planted(make_config: MakeConfig) -> Result:
    """Trials one after the other: the defaults, two like them, and a bad one."""
    return tune(
        make_config(
            1,
            name="planted",
            epochs=8,
            tune={
                "space": {"lr": {"grid": [0.05, 0.1, 0.08, BAD]}},
                "searcher": "grid",
                "reduction": 2,
                "grace": 2,
                "concurrent": 1,
            },
        )
    )


def test_a_planted_bad_trial_is_stopped_at_its_first_rung_and_it_is_told_why(planted: Result) -> None:
    trials = table(planted, "trials.csv")
    assert len(trials) == 4
    bad = next(trial for trial in trials if float(trial["lr"]) == BAD)
    assert (bad["status"], bad["because"], bad["epochs"]) == ("stopped", "asha", "2")
    [decision] = [d for d in table(planted, "decisions.csv") if d["trial"] == bad["trial"]]
    assert (decision["epoch"], decision["rung"], decision["decision"]) == ("2", "2", "stop")
    assert float(decision["value"]) < float(decision["cutoff"])
    assert int(decision["peers"]) >= 2
    assert len(rows(trial_folder(planted, int(bad["trial"])))) == 2


def test_the_best_trial_is_one_that_was_not_planted(planted: Result) -> None:
    trials = table(planted, "trials.csv")
    best = planted.summary["metric"]
    assert best["best"] == max(float(trial["best_top1"]) for trial in trials)
    assert planted.summary["best"]["params"]["lr"] != BAD
    assert planted.summary["status"] == "finished"
    assert planted.summary["stopped_because"] == "samples"
    spent = sum(int(trial["epochs"]) for trial in trials)
    assert planted.summary["epochs"]["spent"] == spent
    assert planted.summary["epochs"]["saved"] == 8 * len(trials) - spent > 0


def test_best_yaml_trains_the_winner_again(planted: Result, make_config: MakeConfig) -> None:
    from orchestrator.reading import load_config

    config = load_config(planted.folder / "best.yaml")
    assert config.lr == planted.summary["best"]["params"]["lr"]
    assert config.epochs == 8
    again = train(config)
    before = rows(planted.folder / planted.summary["best"]["folder"])
    for mine, theirs in zip(before, rows(again.folder), strict=True):
        assert float(mine["train_loss"]) == pytest.approx(float(theirs["train_loss"]), rel=1e-4)
    assert again.summary["cache"]["reused"]


def test_each_trial_is_a_run_of_its_own(planted: Result) -> None:
    for number, trial in enumerate(table(planted, "trials.csv")):
        folder = planted.folder / trial["folder"]
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["status"] == trial["status"]
        assert summary["epochs_completed"] == int(trial["epochs"])
        config = yaml.safe_load((folder / "config.yaml").read_text())
        assert config["lr"] == float(trial["lr"])
        assert config["epochs"] == 8
        assert (folder / "checkpoints" / "last" / "manifest.json").exists()
        assert (folder / "checkpoints" / "best" / "manifest.json").exists(), number


def test_a_report_with_pictures(planted: Result) -> None:
    page = (planted.folder / "report.html").read_text()
    assert page.count("data:image/png") >= 4
    assert "orchestrator train" in page
    assert {path.name for path in (planted.folder / "plots").glob("*.png")} >= {"curves.png", "saving.png", "lr.png"}
    winner = planted.folder / planted.summary["best"]["folder"] / "plots"
    assert (winner / "results.png").exists()
    assert (winner / "confusion_matrix.png").exists()
    assert not (planted.folder / ".ray").exists(), "nothing of Ray Tune is left"


def test_mlflow_has_a_parent_and_a_child_per_trial(planted: Result) -> None:
    parent, *children = mlflow_runs(planted)
    trials = table(planted, "trials.csv")
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["best_top1"] == planted.summary["metric"]["best"]
    assert [run.data.tags["trial"] for run in children] == [trial["trial"] for trial in trials]
    for run, trial in zip(children, trials, strict=True):
        assert run.info.status == "FINISHED"
        assert float(run.data.params["lr"]) == float(trial["lr"])
        assert run.data.metrics["top1"] == float(rows(planted.folder / trial["folder"])[-1]["top1"])


def test_losses_are_those_of_the_loop_in_this_process(planted: Result, make_config: MakeConfig) -> None:
    """LocalRuntime, TrainRuntime and TuneRuntime give the same: to the bit with as many threads."""
    import torch

    threads = torch.get_num_threads()
    alone = train(make_config("auto", epochs=8, lr=0.05, scaling={"workers": 1}), local=True)
    torch.set_num_threads(threads)
    same = [t for t in table(planted, "trials.csv") if float(t["lr"]) == 0.05]
    mine = untimed_rows(planted.folder / same[0]["folder"])
    for row, other in zip(mine, untimed_rows(alone.folder), strict=True):
        assert {k: float(v) for k, v in row.items() if v} == pytest.approx(
            {k: float(v) for k, v in other.items() if v}, rel=1e-5
        )


def test_trials_follow_each_other_in_the_same_processes(make_config: MakeConfig) -> None:
    shutil.rmtree(models.PROCESSES, ignore_errors=True)
    result = tune(
        make_config(
            1,
            model="tests.ray.models:NotesItsProcess",
            name="reused",
            tune={"space": SPACE, "searcher": "random", "samples": 6, "concurrent": 2, "scheduler": "none"},
        )
    )
    assert result.summary["trials"] == {"total": 6, "finished": 6, "stopped": 0, "failed": 0, "interrupted": 0}
    assert result.summary["concurrent"] == 2
    processes = {path.name for path in models.PROCESSES.iterdir()} - {str(os.getpid())}
    shutil.rmtree(models.PROCESSES)
    assert 1 <= len(processes) <= 2


# ----------------------------------------------------------------------------------------------- several workers


def test_trials_with_two_workers(make_config: MakeConfig) -> None:
    result = tune(
        make_config(
            2, name="two", epochs=3, tune={"space": {"lr": [0.05, BAD]}, "searcher": "grid", "reduction": 2, "grace": 1}
        )
    )
    assert result.summary["trials"]["total"] == 2
    assert result.summary["trials"]["failed"] == 0
    assert result.summary["concurrent"] == 2, "four CPUs"
    for number in range(2):
        summary = json.loads((trial_folder(result, number) / "summary.json").read_text())
        assert summary["workers"] == [2]
    assert result.summary["best"]["params"]["lr"] == 0.05
    one = tune(make_config(1, name="one", epochs=3, tune={"space": {"lr": [0.05]}, "searcher": "grid"}))
    mine = [r for t in table(result, "trials.csv") if t["lr"] == "0.05" for r in rows(result.folder / t["folder"])]
    for row, other in zip(mine, rows(trial_folder(one, 0)), strict=True):
        assert float(row["train_loss"]) == pytest.approx(float(other["train_loss"]), rel=1e-5)


# --------------------------------------------------------------------------------------------------- what fails


def test_the_same_mistake_in_the_first_three_trials_ends_the_sweep(make_config: MakeConfig) -> None:
    with pytest.raises(RunError, match="these weights are not for you") as failure:
        tune(
            make_config(
                1,
                name="mistake",
                model="tests.ray.models:Raises",
                tune={"space": SPACE, "searcher": "random", "samples": 20},
            )
        )
    assert "models.py:" in str(failure.value)
    folder = Path(make_config(1).storage) / "colours" / "mistake"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert 3 <= summary["trials"]["failed"] <= summary["trials"]["total"] < 12


def test_a_trial_that_fails_is_counted_with_its_reason_and_the_sweep_goes_on(make_config: MakeConfig) -> None:
    result = tune(
        make_config(
            1,
            name="exploded",
            epochs=4,
            tune={"space": {"lr": [0.05, 1e30, 0.1]}, "searcher": "grid", "concurrent": 1, "scheduler": "none"},
            warmup_epochs=0,
        )
    )
    trials = table(result, "trials.csv")
    failed = next(trial for trial in trials if float(trial["lr"]) == 1e30)
    assert failed["status"] == "failed"
    assert "not finite" in failed["because"] or "the loss is" in failed["because"]
    assert result.summary["trials"] == {"total": 3, "finished": 2, "stopped": 0, "failed": 1, "interrupted": 0}
    statuses = [run.info.status for run in mlflow_runs(result)]
    assert sorted(statuses) == ["FAILED", "FINISHED", "FINISHED", "FINISHED"]


@pytest.mark.parametrize("workers", [pytest.param(1), pytest.param(2, marks=pytest.mark.slow)])
def test_a_trial_whose_process_is_killed_goes_on_from_its_checkpoint(make_config: MakeConfig, workers: int) -> None:
    def sweep(name: str, model: str) -> Result:
        space = {"space": {"lr": [0.05, 0.02]}, "searcher": "grid", "scheduler": "none", "concurrent": 1}
        return tune(
            make_config(workers, name=f"{name}-{workers}", epochs=6, model=f"tests.ray.models:{model}", tune=space)
        )

    shutil.rmtree(models.PROCESSES, ignore_errors=True)
    result, undisturbed = sweep("killed", "DiesOnce"), sweep("calm", "Counting")
    shutil.rmtree(models.PROCESSES)
    assert [trial["retries"] for trial in table(result, "trials.csv")] == ["1", "0"]
    assert result.summary["trials"]["finished"] == 2
    for number in range(2):
        assert untimed_rows(trial_folder(result, number)) == untimed_rows(trial_folder(undisturbed, number))
    assert len(mlflow_runs(result)) == 3


# ------------------------------------------------------------------------------------------------------ budgets


@pytest.mark.slow
def test_a_budget_of_epochs_ends_the_sweep_with_the_best_so_far(make_config: MakeConfig) -> None:
    result = tune(
        make_config(
            1,
            name="budget",
            epochs=6,
            tune={"space": SPACE, "searcher": "random", "samples": 50, "epochs": 15, "scheduler": "none"},
        )
    )
    assert (result.summary["status"], result.summary["stopped_because"]) == ("stopped", "budget")
    assert 15 <= result.summary["epochs"]["spent"] <= 15 + 4
    assert (result.folder / "best.yaml").exists()
    more = extend_sweep(result.folder, ["total_epochs=+12"])
    assert 27 <= more.summary["epochs"]["spent"] <= 27 + 4
    assert more.folder == result.folder


# --------------------------------------------------------------------------------------------- resume and extend


@pytest.mark.parametrize("change", [pytest.param("samples=+3", marks=pytest.mark.slow), "epochs=2x"])
def test_a_finished_sweep_is_extended(make_config: MakeConfig, change: str) -> None:
    config = make_config(
        1,
        name=f"extended-{change[0]}",
        epochs=3,
        tune={"space": SPACE, "searcher": "random", "samples": 3, "grace": 1, "reduction": 2},
    )
    first = tune(config)
    before = {t["trial"]: t for t in table(first, "trials.csv")}
    result = extend_sweep(first.folder, [change])
    after = {t["trial"]: t for t in table(result, "trials.csv")}
    assert result.summary["metric"]["best"] >= first.summary["metric"]["best"]
    if change == "samples=+3":
        assert len(after) == 6
        assert {k: after[k] for k in before} == before
    else:
        assert len(after) == 3
        longest = max(int(trial["epochs"]) for trial in after.values())
        assert longest == 6
    runs = mlflow_runs(result)
    assert len(runs) == 1 + len(after)
    for trial in after.values():
        epochs = [int(row["epoch"]) for row in rows(result.folder / trial["folder"])]
        assert epochs == list(range(1, int(trial["epochs"]) + 1))
    kinds = [event["kind"] for event in read_journal(result.folder / "journal.jsonl")]
    assert kinds.count("extended") == 1
    assert kinds.count("session") == 2


def test_a_finished_sweep_has_nothing_to_resume(planted: Result) -> None:
    from orchestrator.config import ConfigError

    before = {path: path.stat().st_mtime_ns for path in planted.folder.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=r"is finished.*extend"):
        resume_sweep(planted.folder)
    after = {path: path.stat().st_mtime_ns for path in planted.folder.rglob("*") if path.is_file()}
    changed = {path.name for path in after if after[path] != before.get(path)}
    assert changed <= {"journal.jsonl", "sweep.yaml"}


@pytest.mark.slow
def test_the_winner_is_trained_on(make_config: MakeConfig) -> None:
    result = tune(
        make_config(
            1,
            name="continued",
            epochs=5,
            tune={
                "space": {"lr": [0.05, 0.02]},
                "searcher": "grid",
                "max_epochs": 2,
                "scheduler": "none",
                "continue_best": True,
            },
        )
    )
    epochs = [len(rows(trial_folder(result, number))) for number in range(2)]
    assert sorted(epochs) == [2, 5]
    best = result.folder / result.summary["best"]["folder"]
    assert len(rows(best)) == 5
    assert not math.isnan(float(rows(best)[-1]["train_loss"]))
