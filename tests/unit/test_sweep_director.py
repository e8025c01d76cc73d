"""What the director of a sweep does when trials are lost, without Ray."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from orchestrator.launch import Placement
from orchestrator.sweeps import tuner
from orchestrator.sweeps.journal import Journal, read_journal
from orchestrator.sweeps.state import State
from orchestrator.sweeps.sweep import Sweep
from orchestrator.sweeps.trial import Spec
from tests.unit.test_sweep_state import plan

LOW = "Task was killed due to the node running low on memory.\nMemory on the node was 7 GB"


@pytest.fixture
def sweep(tmp_path: Path) -> Iterator[Any]:
    """Two trials that train, of a sweep whose Tune is not there."""
    with closing(Journal(tmp_path / "journal.jsonl")) as journal:
        journal.append("sweep", format_version=1)
        made: Any = object.__new__(Sweep)
        made.state = State(plan(), journal)
        made.capacity = SimpleNamespace(placement=Placement(2, False))
        made.config = SimpleNamespace(tune=SimpleNamespace(retries=1))
        made.progress, made._specs, made._micro = {}, {}, {}
        made._lock, made._measuring, made.warned = threading.RLock(), 0, []
        made.screen = SimpleNamespace(warn=made.warned.append)
        for number in range(2):
            assert made.state.next(str)
            made.progress[number] = (1, 0, 0)
            recipe = {"batch": 64, "micro_batch": None}
            made._specs[number] = Spec(number, recipe, tmp_path, "", True, 0)
        yield made


def test_a_lost_trial_goes_on_as_it_was(sweep: Any) -> None:
    spec = sweep.lost(sweep._specs[1], "The actor died: its node was lost", final=False)
    assert spec is sweep._specs[1]
    assert spec.recipe["micro_batch"] is None
    assert sweep.state.trials[1].retries == 1
    assert "trial 1 was lost and goes on" in sweep.warned[0]


def test_a_trial_that_a_machine_had_no_memory_for_goes_on_with_less(sweep: Any) -> None:
    spec = sweep.lost(sweep._specs[0], LOW, final=False)
    assert spec.recipe["micro_batch"] == 16, "half of the 32 images that each of two workers has"
    assert sweep.lost(sweep._specs[0], LOW, final=False).recipe["micro_batch"] == 8
    assert "at most 16 images" in sweep.warned[0]


def test_after_an_end_of_tune_all_that_trained_goes_on(sweep: Any, tmp_path: Path) -> None:
    """Ray ends an actor for memory with an error that Tune does not expect: Tune ends, the sweep does not."""
    error = RuntimeError("Caught unexpected exception")
    error.__cause__ = ray.exceptions.OutOfMemoryError(LOW)
    assert tuner.was_lost(error)
    assert not tuner.was_lost(RuntimeError("a mistake"))
    sweep._begin_again(str(error.__cause__))
    assert list(sweep.state.waiting) == [0, 1]
    assert sweep._micro == {0: 16, 1: 16}
    assert sweep._measuring is None
    kinds = [event["kind"] for event in read_journal(tmp_path / "journal.jsonl")]
    assert kinds == ["sweep", "trial", "trial", "retry", "retry"]
