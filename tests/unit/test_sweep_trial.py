"""A trial's thread: what Tune gets of it and when, what is saved, and how it ends."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.launch import Placement
from orchestrator.mailbox import Message
from orchestrator.sweeps import trial as module
from orchestrator.sweeps.trial import Shared, Spec, TrialThread, TuneRuntime
from trainables.contracts import State

SHARED = Shared({}, Placement(1, False, in_process=True), 1, 1)


def spec(folder: Path, measured: bool = True) -> Spec:
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    return Spec(0, {"batch": 8, "micro_batch": None}, folder, "", measured, 0)


def row(epoch: int) -> dict[str, Any]:
    return {"epoch": epoch, "train_loss": 1.0, "top1": 0.5}


def state() -> State:
    return State({"w": torch.zeros(1)}, {}, {"epoch": 1})


class Scripted(TrialThread):
    """A trial whose training is a list of epochs."""

    def __init__(self, folder: Path, epochs: int, measured: bool = True) -> None:
        self.epochs, self.reported = epochs, list[int]()
        super().__init__(spec(folder, measured), SHARED, None)

    def _train(self) -> str:
        job: Any = type("Job", (), {"run_folder": self._spec.folder, "restore": None})
        with TuneRuntime(self, job) as runtime:
            runtime.report({"decided": {}, "table": []}, None)
            for epoch in range(1, self.epochs + 1):
                runtime.report({"epoch": epoch, "step": 1, "steps": 2}, None)
                runtime.report({"epoch": epoch, "step": 2, "steps": 2}, None)
                runtime.report(row(epoch), state())
                self.reported.append(epoch)
                if runtime.interrupted():
                    runtime.report({"epoch": epoch}, state())
                    return "interruption"
        return "epochs"


def epochs_of(messages: list[Message]) -> list[int]:
    return [m.metrics["epoch"] for m in messages if m.has_state and "train_loss" in m.metrics]


def test_tune_gets_each_epoch_and_the_end(tmp_path: Path) -> None:
    trial = Scripted(tmp_path, 3)
    taken: list[Message] = []
    while not taken or not taken[-1].outcome:
        taken += trial.take()
    assert epochs_of(taken) == [1, 2, 3]
    assert taken[-1].metrics == {"stopped_because": "epochs"}
    progress = [m for m in taken if "steps" in m.metrics]
    assert all(m.metrics["step"] == 2 for m in progress), "the newest progress tells all"


def test_it_trains_one_epoch_ahead_of_the_verdict_and_no_further(tmp_path: Path) -> None:
    trial = Scripted(tmp_path, 9)
    while not epochs_of(trial.take()):
        pass
    time.sleep(0.3)
    assert trial.reported == [1], "the second waits until the first was judged"
    trial.take()
    time.sleep(0.3)
    assert trial.reported == [1, 2]
    trial.end(drop=True)


def test_what_is_dropped_leaves_the_checkpoint_of_its_last_judged_epoch(tmp_path: Path) -> None:
    from trainables.checkpoint import load

    trial = Scripted(tmp_path, 9)
    while not epochs_of(trial.take()):
        pass
    manifest = tmp_path / "checkpoints" / "last" / "manifest.json"
    deadline = time.monotonic() + 5
    while not manifest.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    before = manifest.stat().st_ino
    trial.end(drop=True)
    assert manifest.stat().st_ino == before, "nothing was saved after the verdict"
    assert load(manifest.parent).progress["epoch"] == 1


def test_an_interrupted_trial_saves_where_it_is(tmp_path: Path) -> None:
    trial = Scripted(tmp_path, 9)
    while not epochs_of(trial.take()):
        pass
    trial.end(drop=False)
    assert trial.reported[-1] <= 3
    assert (tmp_path / "checkpoints" / "last" / "manifest.json").exists()


def test_who_measures_for_others_is_heard_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PULSE_SECONDS", 20)
    waits = threading.Event()

    class Waits(Scripted):
        def _train(self) -> str:
            self._put(Message({"decided": {"amp": False}, "table": []}, has_state=False))
            waits.wait(20)
            return "epochs"

    began = time.monotonic()
    trial = Waits(tmp_path, 1, measured=False)
    [message] = trial.take()
    assert message.metrics["decided"] == {"amp": False}
    assert time.monotonic() - began < 10
    waits.set()


class Failing(TrialThread):
    def __init__(self, folder: Path, errors: list[Exception]) -> None:
        self.errors, self.attempts = errors, list[int]()
        super().__init__(spec(folder), SHARED, None)

    def _attempt(self, halvings: int) -> str:
        self.attempts.append(halvings)
        if self.errors:
            raise self.errors.pop(0)
        return "epochs"


def outcome(trial: TrialThread) -> list[Message]:
    taken: list[Message] = []
    while not taken or not taken[-1].outcome:
        taken += trial.take()
    return taken


def test_memory_that_runs_out_halves_the_micro_batch(tmp_path: Path) -> None:
    trial = Failing(tmp_path, [torch.OutOfMemoryError("CUDA out of memory")] * 2)
    *told, end = outcome(trial)
    assert trial.attempts == [0, 1, 2]
    assert [m.metrics["event"] for m in told] == ["memory", "memory"]
    assert end.metrics == {"stopped_because": "epochs"}


def test_memory_that_is_never_enough_is_the_reason_of_the_failure(tmp_path: Path) -> None:
    trial = Failing(tmp_path, [torch.OutOfMemoryError("CUDA out of memory")] * 9)
    assert "out of memory" in outcome(trial)[-1].metrics["failed"]
    assert trial.attempts == [0, 1, 2]


def test_a_mistake_is_not_tried_again(tmp_path: Path) -> None:
    trial = Failing(tmp_path, [KeyError("x")])
    assert outcome(trial)[-1].metrics["failed"].startswith("KeyError: 'x'")
    assert trial.attempts == [0]
    assert "KeyError" in (tmp_path / "logs" / "trial.log").read_text()


def test_a_lost_worker_is_for_tune_to_know(tmp_path: Path) -> None:
    import ray

    trial = Failing(tmp_path, [ray.exceptions.ActorDiedError()])
    with pytest.raises(ray.exceptions.ActorDiedError):
        outcome(trial)
