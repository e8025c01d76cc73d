"""Runs that get more epochs, and what is measured before a run, as a user types it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from orchestrator.launch import cpu_count
from tests.e2e.shell import Shell, local_store, mlflow_history, mlflow_runs, summary
from tests.results import rows, untimed_rows
from trainables import checkpoint

STEADY = {"schedule": "constant", "warmup_epochs": 0}


@pytest.fixture(scope="module")
def extended(module_shell: Shell, digits_cache: Path) -> Shell:
    """`whole`: four epochs; `parts`: two, then `extend` to four at a rate that is held."""
    for name, epochs in (("whole", 4), ("parts", 2)):
        done = module_shell.run("train", module_shell.config(name=name, epochs=epochs, **STEADY), "--local")
        assert done.code == 0, done.err
    done = module_shell.run("extend", "runs/digits/parts", "epochs=4", "extend_lr=hold", "--local")
    assert done.code == 0, done.err
    assert "epochs 2 -> 4; extend_lr restart -> hold; learning rate of the added epochs: hold" in done.out
    return module_shell


def test_two_epochs_and_two_more_are_a_run_of_four(extended: Shell) -> None:
    whole, parts = extended.storage / "digits/whole", extended.storage / "digits/parts"
    ours, theirs = (checkpoint.load(run / "checkpoints/last").model for run in (parts, whole))
    assert all(bool((ours[name] == theirs[name]).all()) for name in theirs), "to the bit"
    assert untimed_rows(parts) == untimed_rows(whole)


def test_an_extended_run_is_one_run_everywhere(extended: Shell) -> None:
    parts = extended.storage / "digits/parts"
    told = summary(parts)
    assert (told["status"], told["epochs_completed"]) == ("finished", 4)
    assert yaml.safe_load((parts / "config.yaml").read_text())["epochs"] == 4
    runs = [r for r in mlflow_runs(local_store(extended.storage)) if r.info.run_name == "parts"]
    assert len(runs) == 1
    assert runs[0].info.status == "FINISHED"
    assert "epochs 2 -> 4" in runs[0].data.tags["extended"]
    history = mlflow_history(local_store(extended.storage), runs[0].info.run_id, "train_loss")
    assert sorted(history) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["epochs=3"], "has done 4 already; set epochs to more"),
        (["patience=9"], "has done 4 already; set epochs to more"),
        (["epochs=8", "lr=0.1"], "lr: extend can change epochs, time, patience"),
        (["epochs=8", "extend_lr=keep"], "extend_lr"),
    ],
)
def test_an_extension_that_gives_nothing_to_do_is_refused(extended: Shell, arguments: list[str], told: str) -> None:
    before = (extended.storage / "digits/parts/config.yaml").read_text()
    done = extended.run("extend", "runs/digits/parts", *arguments)
    assert done.code == 2
    assert told in done.err
    assert (extended.storage / "digits/parts/config.yaml").read_text() == before


@pytest.mark.slow
def test_a_run_that_patience_stopped_is_told_why_and_can_have_more(extended: Shell) -> None:
    config = extended.config(name="early", epochs=50, patience=2, min_delta=0.9)
    done = extended.run("train", config, "--local")
    assert done.code == 0
    assert "has not improved for 2 epochs, since" in done.out
    early = extended.storage / "digits/early"
    assert (summary(early)["status"], summary(early)["epochs_completed"]) == ("stopped", 3)
    done = extended.run("extend", str(early), "patience=4", "--local")
    assert done.code == 0, done.err
    assert summary(early)["epochs_completed"] == 5
    done = extended.run("extend", str(early), "epochs=60", "--local")
    assert done.code == 0, done.err
    assert summary(early)["epochs_completed"] == 9, "patience counts anew"


def test_a_batch_that_is_measured_is_decided_once(extended: Shell) -> None:
    arguments = [f"scaling.workers={min(2, cpu_count())}"]
    done = extended.run("train", extended.config(name="found", batch=-1, amp=True, epochs=1), *arguments)
    assert done.code == 0, done.err
    run = extended.storage / "digits/found"
    stored, told = yaml.safe_load((run / "config.yaml").read_text()), summary(run)
    assert stored["batch"] == told["batch"]["global"] > 0
    assert told["batch"]["chosen_by"] == "probe"
    assert stored["amp"] in ("bf16", False)
    assert isinstance(stored["channels_last"], bool)
    sizes = [row["images"] for row in told["measured"] if "batch" in row]
    assert sizes[:3] == [1, 2, 4]
    assert told["batch"]["per_worker"] in sizes
    assert "measured: images at a time, seconds per step, images/s, memory" in done.out
    params = next(r for r in mlflow_runs(local_store(extended.storage)) if r.info.run_name == "found").data.params
    assert params["batch"] == str(stored["batch"])
    done = extended.run("extend", str(run), "epochs=2", *arguments)
    assert done.code == 0, done.err
    assert "measured:" not in done.out
    after = summary(run)
    assert (after["batch"], after["measured"]) == (told["batch"], told["measured"])
    assert len(rows(run)) == 2
