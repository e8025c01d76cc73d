"""Runs with two Ray workers on this machine: a user's own model, its mistakes, the CPU threads."""

from __future__ import annotations

import pytest

from orchestrator.launch import cpu_count
from tests.e2e.shell import Shell, local_store, mlflow_runs, summary

pytestmark = pytest.mark.skipif(cpu_count() < 2, reason="two workers need two CPUs")

WORKERS = {"scaling": {"workers": 2}}


@pytest.mark.usefixtures("digits_cache")
def test_workers_find_the_users_model_and_share_the_machine(shell: Shell) -> None:
    """The model lies in the current folder. The workers together use every CPU once."""
    done = shell.run("train", shell.config(model="mymodels:tells", epochs=1, **WORKERS))
    assert done.code == 0, done.err
    told = [int(file.read_text()) for file in shell.folder.glob("threads-*.txt")]
    assert told == [cpu_count() // 2] * 2


@pytest.mark.usefixtures("digits_cache")
def test_a_users_mistake_in_workers(shell: Shell) -> None:
    done = shell.run("train", shell.config(model="mymodels:breaks", name="broken", **WORKERS))
    assert done.code == 1
    assert "LookupError: this model was never finished" in done.err
    assert f"{shell.folder / 'mymodels.py'}:" in done.err
    assert "Traceback" not in done.out + done.err
    assert len(done.err.strip().splitlines()) <= 3
    assert summary(shell.storage / "digits" / "broken")["status"] == "failed"
    [tracked] = mlflow_runs(local_store(shell.storage))
    assert tracked.info.status == "FAILED"
