"""`orchestrator val` as a user types it."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.shell import Shell, local_store, mlflow_runs
from tests.results import rows

SLOW = """

class slow_to_look(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.body = conv(num_classes)

    def forward(self, images):
        if not self.training and "SLOW" in os.environ and images.device.type != "meta":
            Path("looking").touch()
            time.sleep(0.5)
        return self.body(images)
"""


@pytest.fixture(scope="module")
def run(module_shell: Shell, digits_cache: Path) -> Path:
    """A finished run of two epochs."""
    config = module_shell.config(name="mine", model="mymodels:slow_to_look", batch=64)
    module_shell.write("mymodels.py", (module_shell.folder / "mymodels.py").read_text() + SLOW)
    done = module_shell.run("train", config)
    assert done.code == 0, done.err
    return module_shell.storage / "digits" / "mine"


def metrics(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return values


def digests(folder: Path) -> dict[str, str]:
    files = (p for p in folder.rglob("*") if p.is_file() and "val" not in p.relative_to(folder).parts)
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def best(run: Path) -> dict[str, float]:
    row = max(rows(run), key=lambda row: (float(row["top1"]), -int(row["epoch"])))
    return {name: float(row[name]) for name in ("val_loss", "top1", "top5", "mean_class_accuracy")}


def test_the_best_checkpoint_gives_the_numbers_of_results_csv(run: Path, module_shell: Shell) -> None:
    before = digests(run)
    done = module_shell.run("val", str(run))
    assert done.code == 0, done.err
    assert metrics(run / "val" / "val-digits")["metrics"] == best(run)
    assert f"{best(run)['top1']:.4f}" in done.out
    assert "starting Ray" not in done.out
    assert done.err == ""
    assert digests(run) == before
    assert len(mlflow_runs(local_store(module_shell.storage))) == 1
    with (run / "val" / "val-digits" / "per_class.csv").open() as file:
        assert sum(int(line["samples"]) for line in csv.DictReader(file)) == 359


@pytest.mark.slow
def test_two_workers_give_the_same_numbers(run: Path, module_shell: Shell) -> None:
    done = module_shell.run("val", str(run), "scaling.workers=2", "batch=64")
    assert done.code == 0, done.err
    assert "2 workers" in done.out
    [folder] = [path for path in (run / "val").iterdir() if metrics(path)["workers"] == 2]
    found = metrics(folder)["metrics"]
    assert found == pytest.approx(best(run), rel=1e-6)
    assert {name: found[name] for name in ("top1", "top5")} == {name: best(run)[name] for name in ("top1", "top5")}


@pytest.mark.slow
def test_the_training_part_and_a_checkpoint_by_name(run: Path, module_shell: Shell) -> None:
    done = module_shell.run("val", str(run / "checkpoints" / "last"), "split=train")
    assert done.code == 0, done.err
    found = metrics(run / "val" / "train-digits")
    assert (found["checkpoint"], found["epoch"], found["dataset"]["images"]) == ("last", 2, 1438)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "there is no such folder"),
        (["RUN", "split=test"], "it has no test images"),
        (["RUN", "weights=ema"], "without a moving average"),
        (["RUN", "epochs=5"], "epochs: val takes"),
        (["RUN", "scaling.workers=1000"], "set scaling.workers to"),
    ],
)
def test_wrong_input_is_told_in_one_message(run: Path, module_shell: Shell, arguments: list[str], message: str) -> None:
    done = module_shell.run("val", *(str(run) if word == "RUN" else word for word in arguments))
    assert done.code == 2
    assert message in done.err
    assert "Traceback" not in done.err


def test_ctrl_c_leaves_nothing_behind(run: Path, module_shell: Shell) -> None:
    before = sorted((run / "val").iterdir()) if (run / "val").exists() else []
    command = module_shell.start("val", str(run), "batch=8", SLOW="1")
    command.wait_until((module_shell.folder / "looking").exists)
    command.press_ctrl_c()
    done = command.wait()
    assert done.code == 130
    assert "interrupted" in done.err
    assert sorted((run / "val").iterdir()) == before
