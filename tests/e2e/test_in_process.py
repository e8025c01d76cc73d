"""A laptop user's runs: one process, no Ray where the cache is ready."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.e2e.shell import Finished, Shell, local_store, mlflow_runs, summary
from tests.results import rows, untimed_rows

RECORD_MODULES = """
import atexit, os, sys
atexit.register(lambda: open(os.environ["MODULES_FILE"], "w").write("\\n".join(sys.modules)))
"""
"""Python runs `sitecustomize` at its start."""


def run_recording_modules(shell: Shell, *arguments: str) -> tuple[Finished, set[str]]:
    """A command, and the modules that its process had imported when it ended."""
    hook = shell.folder / "hook"
    hook.mkdir(exist_ok=True)
    (hook / "sitecustomize.py").write_text(RECORD_MODULES)
    done = shell.run(*arguments, PYTHONPATH=str(hook), MODULES_FILE=str(hook / "modules.txt"))
    return done, set((hook / "modules.txt").read_text().split())


# ------------------------------------------------------------------------------------------ two equal runs


@pytest.fixture(scope="module")
def first(module_shell: Shell, digits_cache: Path) -> tuple[Finished, set[str]]:
    """`scaling.workers: auto`, the default: on a machine with at most one GPU it needs no Ray."""
    return run_recording_modules(module_shell, "train", module_shell.config(name="mine"))


@pytest.fixture(scope="module")
def first_files(first: tuple[Finished, set[str]], module_shell: Shell) -> dict[Path, str]:
    """The files of the first run and their digests, before the second."""
    return _digests(module_shell.storage / "digits" / "mine")


@pytest.fixture(scope="module")
def second(first_files: dict[Path, str], module_shell: Shell) -> tuple[Finished, set[str]]:
    """The same again, with `--local`."""
    return run_recording_modules(module_shell, "train", "--local", "config.yaml")


def _digests(folder: Path) -> dict[Path, str]:
    return {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


def test_auto_runs_in_process_without_ray(first: tuple[Finished, set[str]], module_shell: Shell) -> None:
    done, modules = first
    assert done.code == 0, done.err
    assert "in this process" in done.out
    assert "found on disk" in done.out
    assert {"torch", "orchestrator.train"} <= modules
    assert "ray" not in modules
    values = summary(module_shell.storage / "digits" / "mine")
    assert (values["status"], values["workers"]) == ("finished", [1])
    assert values["cache"]["reused"] is True


def test_local_runs_in_process_without_ray(second: tuple[Finished, set[str]]) -> None:
    done, modules = second
    assert done.code == 0, done.err
    assert "in this process" in done.out
    assert "ray" not in modules


def test_a_taken_name_gets_a_number(
    second: tuple[Finished, set[str]], first_files: dict[Path, str], module_shell: Shell
) -> None:
    experiment = module_shell.storage / "digits"
    assert sorted(path.name for path in experiment.iterdir()) == ["mine", "mine-2"]
    assert _digests(experiment / "mine") == first_files
    assert str(experiment / "mine-2") in second[0].out
    tracked = mlflow_runs(local_store(module_shell.storage))
    assert {run.info.run_name: run.info.run_id for run in tracked} == {
        name: summary(experiment / name)["mlflow"]["run_id"] for name in ("mine", "mine-2")
    }
    assert {run.info.status for run in tracked} == {"FINISHED"}


def test_the_same_config_gives_the_same_run(second: tuple[Finished, set[str]], module_shell: Shell) -> None:
    experiment = module_shell.storage / "digits"
    assert untimed_rows(experiment / "mine") == untimed_rows(experiment / "mine-2")


# --------------------------------------------------------------------------------------------- other things


def test_overrides_win_over_file_and_base(shell: Shell, digits_cache: Path) -> None:
    shell.config(epochs=7, seed=5)
    shell.write("mine.yaml", "base: config.yaml\nepochs: 3\nname: based\n")
    done = shell.run("train", "mine.yaml", "epochs=1", "tracking.experiment=trials", "storage=elsewhere")
    assert done.code == 0, done.err
    run = shell.folder / "elsewhere" / "trials" / "based"
    assert len(rows(run)) == 1
    assert "seed: 5" in (run / "config.yaml").read_text()
    [tracked] = mlflow_runs(local_store(shell.folder / "elsewhere"))
    assert tracked.data.params["epochs"] == "1"
    assert not shell.storage.exists()


def test_patience_ends_a_run_well(shell: Shell, digits_cache: Path) -> None:
    """A learning rate of almost nothing never improves on the first epoch."""
    done = shell.run("train", shell.config(epochs=50, patience=2, lr=1e-12, name="patient"))
    assert done.code == 0, done.err
    values = summary(shell.storage / "digits" / "patient")
    assert (values["status"], values["stopped_because"]) == ("stopped", "patience")
    assert values["epochs_completed"] == values["metric"]["best_epoch"] + 2 < 50
    [tracked] = mlflow_runs(local_store(shell.storage))
    assert tracked.info.status == "FINISHED"


def test_a_users_mistake_in_process(shell: Shell, digits_cache: Path) -> None:
    done = shell.run("train", shell.config(model="mymodels:breaks", name="broken"))
    assert done.code == 1
    assert "LookupError: this model was never finished" in done.err
    assert "mymodels.py:" in done.err
    assert "Traceback" not in done.out + done.err
    assert summary(shell.storage / "digits" / "broken")["status"] == "failed"
    [tracked] = mlflow_runs(local_store(shell.storage))
    assert tracked.info.status == "FAILED"


@pytest.mark.slow
def test_verbose_shows_the_traceback(shell: Shell, digits_cache: Path) -> None:
    done = shell.run("train", "-v", shell.config(model="mymodels:breaks"))
    assert done.code == 1
    assert "Traceback" in done.err
    assert "this model was never finished" in done.err
