"""Ctrl-C and SIGTERM in the middle of an epoch, and the command that continues the run."""

from __future__ import annotations

import json
import shlex
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.launch import cpu_count
from tests.e2e.shell import Finished, Running, Shell, local_store, mlflow_history, mlflow_runs, summary
from tests.results import checkpoint, rows, untimed_rows

EPOCHS, STEPS, TRAIN = 4, 12, 1438
SETTINGS: dict[str, Any] = {"model": "mymodels:slow", "epochs": EPOCHS, "batch": 128}
STEP_SECONDS = {"STEP_SECONDS": "0.5"}
"""So long that the request comes in the middle of the second epoch."""


@dataclass(frozen=True)
class Case:
    """How a run is stopped, and what its summary calls that."""

    workers: int | str
    stop: Callable[[Running], None]
    stopped_because: str


CASES = {
    "ctrl-c in process": Case("auto", Running.press_ctrl_c, "user"),
    "sigterm in process": Case("auto", Running.terminate, "interruption"),
    "ctrl-c with two workers": Case(2, Running.press_ctrl_c, "user"),
    "sigterm with two workers": Case(2, Running.terminate, "interruption"),
}


@dataclass(frozen=True)
class Interrupted:
    """A run that was stopped in its second epoch."""

    case: Case
    shell: Shell
    done: Finished

    @property
    def run(self) -> Path:
        return self.shell.storage / "digits" / "stopped"

    @property
    def store(self) -> str:
        return local_store(self.shell.storage)

    @property
    def resume(self) -> str:
        """The command that the screen names."""
        return self.done.out.strip().splitlines()[-1]


Interrupt = Callable[[str], Interrupted]


@pytest.fixture(scope="module")
def interrupt(
    tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str], digits_cache: Path
) -> Iterator[Interrupt]:
    """Makes the run of a case, once."""
    shells: list[Shell] = []

    @cache
    def make(name: str) -> Interrupted:
        case = CASES[name]
        if case.workers == 2 and cpu_count() < 2:
            pytest.skip("two workers need two CPUs")
        shell = Shell(tmp_path_factory.mktemp("shell"), environment)
        shells.append(shell)
        config = shell.config(**SETTINGS, scaling={"workers": case.workers}, name="stopped")
        command = shell.start("train", config, **STEP_SECONDS)
        command.wait_until((shell.storage / "digits" / "stopped" / "results.csv").exists)
        case.stop(command)
        return Interrupted(case, shell, command.wait())

    yield make
    for shell in shells:
        shell.close()


SLOW = ("ctrl-c with two workers", "sigterm in process")
"""Cases whose promise the other two keep too, for what is run at every change."""


@pytest.fixture(scope="module", params=[pytest.param(c, marks=pytest.mark.slow) if c in SLOW else c for c in CASES])
def interrupted(request: pytest.FixtureRequest, interrupt: Interrupt) -> Interrupted:
    return interrupt(request.param)


def test_it_ends_with_130_and_no_traceback(interrupted: Interrupted) -> None:
    assert interrupted.done.code == 130
    assert "Traceback" not in interrupted.done.out + interrupted.done.err
    assert interrupted.done.err == ""


def test_it_says_how_to_go_on(interrupted: Interrupted) -> None:
    assert shlex.split(interrupted.resume) == ["orchestrator", "resume", str(interrupted.run)]


def test_the_checkpoint_is_in_the_middle_of_the_epoch(interrupted: Interrupted) -> None:
    progress = checkpoint(interrupted.run).progress
    assert progress["epoch"] == 1
    assert 0 < progress["samples"] < TRAIN
    assert progress["samples"] % SETTINGS["batch"] == 0


def test_results_hold_the_finished_epoch(interrupted: Interrupted) -> None:
    assert [row["epoch"] for row in rows(interrupted.run)] == ["1"]


def test_the_summary_tells_why(interrupted: Interrupted) -> None:
    values = summary(interrupted.run)
    assert (values["status"], values["stopped_because"]) == ("interrupted", interrupted.case.stopped_because)
    assert values["epochs_completed"] == 1
    assert (interrupted.run / "plots" / "results.png").exists()


def test_mlflow_has_a_killed_run(interrupted: Interrupted) -> None:
    [tracked] = mlflow_runs(interrupted.store)
    assert tracked.info.status == "KILLED"
    assert tracked.info.run_id == summary(interrupted.run)["mlflow"]["run_id"]


# -------------------------------------------------------------------------------------------------- resuming


@pytest.fixture(scope="module", params=["ctrl-c in process", pytest.param(SLOW[0], marks=pytest.mark.slow)])
def resumed(request: pytest.FixtureRequest, interrupt: Interrupt) -> Interrupted:
    """A run of above, after the command that its screen named."""
    before = interrupt(request.param)
    return replace(before, done=before.shell.run(*shlex.split(before.resume)[1:]))


def test_a_resumed_run_ends_as_any_other(resumed: Interrupted) -> None:
    assert resumed.done.code == 0, resumed.done.err
    values = summary(resumed.run)
    assert (values["status"], values["stopped_because"]) == ("finished", "epochs")
    assert values["epochs_completed"] == EPOCHS
    assert [path.name for path in resumed.run.parent.iterdir()] == ["stopped"]


def test_a_resumed_run_has_every_epoch_once(resumed: Interrupted) -> None:
    table = rows(resumed.run)
    assert [int(row["epoch"]) for row in table] == list(range(1, EPOCHS + 1))
    [tracked] = mlflow_runs(resumed.store)
    assert tracked.info.status == "FINISHED"
    for name in ("train_loss", "top1"):
        history = mlflow_history(resumed.store, tracked.info.run_id, name)
        assert history == {int(row["epoch"]): float(row[name]) for row in table}


def test_a_resumed_run_equals_one_that_was_never_stopped(resumed: Interrupted) -> None:
    """To the bit, in its rows and in its weights."""
    done = resumed.shell.run("train", "config.yaml", "name=whole")
    assert done.code == 0, done.err
    whole = resumed.run.with_name("whole")
    assert untimed_rows(resumed.run) == untimed_rows(whole)
    ours, theirs = checkpoint(resumed.run), checkpoint(whole)
    timed = {"seconds": 0, "recent": []}
    assert ours.progress | timed == theirs.progress | timed
    for expected, tensors in ((theirs.model, ours.model), (theirs.optimizer, ours.optimizer)):
        assert expected.keys() == tensors.keys()
        assert all(torch.equal(expected[key], tensors[key]) for key in expected)


# ------------------------------------------------------------------------------------------------ impatience


@pytest.mark.parametrize("step", ["checking the config", "building the cache: 0 of"])
def test_before_the_training_nothing_half_written_is_kept(shell: Shell, step: str) -> None:
    """Neither a run without a checkpoint nor half a shard; finished shards stay for the next run."""
    caches = shell.folder / "cache"
    command = shell.start("train", shell.config(), ORCHESTRATOR_CACHE=str(caches))
    command.wait_until(lambda: step in command.output)
    command.press_ctrl_c()
    done = command.wait()
    assert done.code in (130, -signal.SIGINT)
    assert "Traceback" not in done.out + done.err
    assert not shell.storage.exists()
    assert not list(caches.glob("*/index.json"))
    for shard in caches.glob("*/shard-*.json"):
        assert json.loads(shard.read_text())["bytes"] == shard.with_suffix(".arrow").stat().st_size


@pytest.mark.skipif(cpu_count() < 2, reason="two workers need two CPUs")
@pytest.mark.usefixtures("digits_cache")
def test_a_second_ctrl_c_ends_at_once(shell: Shell) -> None:
    """Without waiting for the step, and with nothing left behind (`Shell` looks after that)."""
    command = shell.start("train", shell.config(**SETTINGS, scaling={"workers": 2}, name="killed"), STEP_SECONDS="3600")
    run = shell.storage / "digits" / "killed"
    command.wait_until((run / "logs" / "rank-1.log").exists)
    command.press_ctrl_c()
    time.sleep(1)  # two signals at once would be one
    command.press_ctrl_c()
    done = command.wait(60)
    assert done.code == 130
    assert "Traceback" not in done.out + done.err
