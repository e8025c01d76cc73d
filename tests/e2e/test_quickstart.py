"""The first thing that a user does: the shipped quickstart, with two Ray workers, on a machine that has no cache."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import cv2
import pytest
import yaml

from orchestrator.config import Config
from tests.conftest import ROOT
from tests.e2e.shell import Finished, Shell, local_store, mlflow_history, mlflow_runs, summary
from tests.results import checkpoint, rows

QUICKSTART = ROOT / "configs" / "quickstart.yaml"
GIVEN: dict[str, Any] = yaml.safe_load(QUICKSTART.read_text())
EPOCHS, BATCH, LR = GIVEN["epochs"], GIVEN["batch"], GIVEN["lr"]
STEPS = math.ceil(1438 / BATCH)

SUMMARY: dict[str, Any] = {
    "status": "finished",
    "stopped_because": "epochs",
    "task": "classify",
    "model": GIVEN["model"],
    "dataset": {"name": "digits", "fingerprint": str, "classes": list("0123456789")}
    | {"train": 1438, "val": 359, "skipped": 0},
    "metric": {"name": "top1", "mode": "max", "best": float, "best_epoch": int, "last": float},
    "epochs_completed": EPOCHS,
    "batch": {"global": BATCH, "per_worker": BATCH // 2, "micro": BATCH // 2, "accumulation": 1, "chosen_by": "config"},
    "measured": list,
    "events": list,
    "precision": str,
    "optimizer": {"name": "AdamW", "lr": LR, "momentum": 0.9, "chosen_by": "auto"},
    "throughput": {"images_per_second": float, "data_wait_fraction": float}
    | {"gpu_utilization": object, "gpu_memory_peak_bytes": object},
    "cache": {"tier": "disk", "bytes": int, "build_seconds": float, "reused": False},
    "workers": [2],
    "restarts": 0,
    "seconds": {"total": float, "to_first_step": float},
    "mlflow": {"tracking_uri": str, "experiment": "digits", "run_id": str},
}
"""The keys of summary.json, each with its value or its type."""


@pytest.fixture(scope="module")
def finished(module_shell: Shell) -> Finished:
    """The command, on a copy of the real file."""
    shutil.copy(QUICKSTART, module_shell.folder)
    return module_shell.run("train", "quickstart.yaml", ORCHESTRATOR_CACHE=str(module_shell.folder / "cache"))


@pytest.fixture(scope="module")
def run(module_shell: Shell, finished: Finished) -> Path:
    """The run folder."""
    assert finished.code == 0, finished.err
    [folder] = (module_shell.storage / "digits").iterdir()
    return folder


def test_it_learns(run: Path) -> None:
    metric = summary(run)["metric"]
    assert metric["best"] >= 0.97
    assert metric["best"] >= metric["last"]
    losses = [float(row["train_loss"]) for row in rows(run)]
    assert losses[-1] < losses[0] / 4


def test_run_folder_has_the_files_that_others_build_on(run: Path) -> None:
    names = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    assert names >= {
        "config.yaml",
        "environment.json",
        "results.csv",
        "summary.json",
        "data_issues.csv",
        "plots/results.png",
        "plots/confusion_matrix.png",
        "plots/train_batch.png",
        "logs/rank-0.log",
        "logs/rank-1.log",
    }
    assert not [name for name in names if "tmp" in name or "previous" in name]


def _matches(value: Any, expected: Any, key: str = "") -> None:
    if isinstance(expected, dict):
        assert list(value) == list(expected), key
        for name, inner in expected.items():
            _matches(value[name], inner, f"{key}.{name}")
    elif isinstance(expected, type):
        assert isinstance(value, expected), key
    else:
        assert value == expected, key


def test_summary_has_the_documented_keys(run: Path) -> None:
    values = summary(run)
    _matches(values, SUMMARY)
    assert re.fullmatch("[0-9a-f]{64}", values["dataset"]["fingerprint"])
    assert 0 < values["seconds"]["to_first_step"] < values["seconds"]["total"]
    assert 0 <= values["throughput"]["data_wait_fraction"] <= 1


def test_results_have_a_row_per_epoch(run: Path) -> None:
    table = rows(run)
    assert [int(row["epoch"]) for row in table] == list(range(1, EPOCHS + 1))
    assert [int(row["step"]) for row in table] == [STEPS * epoch for epoch in range(1, EPOCHS + 1)]
    assert float(table[-1]["lr"]) == pytest.approx(LR * 0.01)
    best = max(table, key=lambda row: (float(row["top1"]), -int(row["epoch"])))
    metric = summary(run)["metric"]
    assert (metric["best"], metric["best_epoch"]) == (float(best["top1"]), int(best["epoch"]))
    assert metric["last"] == float(table[-1]["top1"])


def test_checkpoints_are_those_of_the_best_and_the_last_epoch(run: Path) -> None:
    assert checkpoint(run, "last").progress["epoch"] == EPOCHS
    assert checkpoint(run, "best").progress["epoch"] == summary(run)["metric"]["best_epoch"]


def test_stored_config_is_complete_and_can_be_read(run: Path, module_shell: Shell) -> None:
    stored = yaml.safe_load((run / "config.yaml").read_text())
    assert stored.pop("format_version") == 1
    assert stored.keys() == Config.model_fields.keys() - {"tune"}, "which says nothing of a run"
    assert stored["scaling"].items() >= GIVEN["scaling"].items()
    assert {**stored, "scaling": GIVEN["scaling"]}.items() >= GIVEN.items()
    assert stored["name"] == run.name
    assert stored["storage"] == str(module_shell.storage)  # it holds from any folder
    Config.model_validate(stored)


def test_environment_tells_what_is_needed_to_repeat_it(run: Path) -> None:
    environment = json.loads((run / "environment.json").read_text())
    assert {"python", "versions", "cpus", "gpus", "git"} <= environment.keys()
    assert {"torch", "ray", "mlflow", "orchestrator"} <= environment["versions"].keys()


@pytest.mark.parametrize("name", ["results", "confusion_matrix", "train_batch"])
def test_plots_are_pictures(run: Path, name: str) -> None:
    picture = cv2.imread(str(run / "plots" / f"{name}.png"))
    assert picture is not None
    height, width = picture.shape[:2]
    assert 200 <= height <= 4000
    assert 200 <= width <= 4000
    assert picture.std() > 5


# ----------------------------------------------------------------------------------------------- the screen


def test_the_screen_tells_what_was_decided(run: Path, finished: Finished, module_shell: Shell) -> None:
    told = dict(line.split(maxsplit=1) for line in finished.out.splitlines() if len(line.split()) > 1)
    assert "1,438 training and 359 validation images, 10 classes" in told["data"]
    assert told["cache"].startswith("built on disk")
    assert str(module_shell.folder / "cache") in told["cache"]
    assert "2 workers with a CPU each" in told["devices"]
    assert told["batch"] == f"{BATCH} = 2 x {BATCH // 2}"
    assert told["precision"] == f"{summary(run)['precision']}, NHWC"
    assert GIVEN["model"] in told["model"]
    assert "AdamW" in told["optimizer"]
    assert told["run"] == str(run)


def test_the_screen_has_a_line_per_epoch_and_the_result(run: Path, finished: Finished) -> None:
    lines = finished.out.splitlines()
    for row in rows(run):
        [line] = [line for line in lines if line.split()[:1] == [f"{row['epoch']}/{EPOCHS}"]]
        assert f"{float(row['top1']):.4f}" in line
    metric = summary(run)["metric"]
    assert f"top1 {metric['best']:.4f} at epoch {metric['best_epoch']}" in finished.out


def test_the_screen_ends_with_the_command_that_opens_mlflow(finished: Finished, module_shell: Shell) -> None:
    command = finished.out.strip().splitlines()[-1]
    assert "mlflow" in command
    assert local_store(module_shell.storage) in command


CHATTER = [
    *("(raylet", "(TrainController", "(RayTrainWorker", "(pid=", "placement group", "token", "dashboard"),
    *("INFO", "WARN", "ERROR", "Traceback", "Deprecat", "alembic"),
]
"""Of Ray, MLflow, Python and their like, in any case."""


def test_no_escape_codes_where_the_output_is_no_terminal(finished: Finished) -> None:
    assert "\x1b" not in finished.out + finished.err
    assert "\r" not in finished.out + finished.err


@pytest.mark.parametrize("chatter", CHATTER)
def test_nobody_elses_chatter(finished: Finished, chatter: str) -> None:
    assert chatter.lower() not in (finished.out + finished.err).lower()


def test_nothing_on_stderr(run: Path, finished: Finished) -> None:
    assert finished.err == ""


# -------------------------------------------------------------------------------------------------- MLflow


@pytest.fixture(scope="module")
def tracked(run: Path, module_shell: Shell) -> Any:
    """The one run in the store below the storage."""
    [tracked] = mlflow_runs(local_store(module_shell.storage))
    return tracked


def test_mlflow_holds_one_finished_run(tracked: Any, run: Path) -> None:
    assert tracked.info.status == "FINISHED"
    assert tracked.info.run_name == run.name
    assert tracked.info.run_id == summary(run)["mlflow"]["run_id"]
    assert tracked.info.start_time < tracked.info.end_time


def test_mlflow_has_the_numbers_of_results_csv(tracked: Any, run: Path, module_shell: Shell) -> None:
    table = rows(run)
    columns = [name for name, value in table[0].items() if value and name != "epoch"]
    assert {"train_loss", "val_loss", "top1", "lr", "images_per_second", "data_wait_fraction"} <= set(columns)
    for name in columns:
        history = mlflow_history(local_store(module_shell.storage), tracked.info.run_id, name)
        assert history == {int(row["epoch"]): float(row[name]) for row in table}, name
    assert all(math.isfinite(value) for value in tracked.data.metrics.values())


def test_mlflow_has_config_dataset_and_system_metrics(tracked: Any, run: Path) -> None:
    params = tracked.data.params
    assert (params["model"], params["batch"], params["lr"]) == (GIVEN["model"], str(BATCH), str(LR))
    assert params["scaling.workers"] == "2"
    [dataset] = [used.dataset for used in tracked.inputs.dataset_inputs]
    assert dataset.name == "digits"
    assert summary(run)["dataset"]["fingerprint"].startswith(dataset.digest)
    assert len(dataset.digest) == 36
    assert "system/cpu_utilization_percentage" in tracked.data.metrics


def test_mlflow_has_the_files_but_no_copy_of_the_checkpoints(tracked: Any, run: Path, module_shell: Shell) -> None:
    artifacts = Path(tracked.info.artifact_uri.removeprefix("file://"))
    assert module_shell.storage in artifacts.parents
    stored = {path.relative_to(artifacts).as_posix() for path in artifacts.rglob("*") if path.is_file()}
    ours = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    assert {name for name in ours if not name.startswith("checkpoints/")} <= stored
    assert not [name for name in stored if name.endswith(".safetensors")]
    assert str(run / "checkpoints" / "best") in (artifacts / "checkpoints.json").read_text()
    assert (artifacts / "results.csv").read_text() == (run / "results.csv").read_text()
