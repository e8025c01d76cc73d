"""What a sweep costs beyond its training.

trial_overhead_s        wall-clock seconds of one more one-worker trial beyond its training and validation, one trial
                        at a time (at most 0.5)
function_trainable_s    the same of a bare Tune function trainable that imports torch, for comparison
driver_ms_per_trial     time of the thread that runs Tune, with all that the sweep does in it (search, journal, tables,
                        summaries), per trial of a sweep of empty trials (at most 10)
driver_cpu_ms_per_trial the same of the whole driver process, MLflow's thread included
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from benchmarks._own_ray import own_ray
from orchestrator.config import Config
from orchestrator.mailbox import Message


def config(folder: Path, name: str, epochs: int, **tune: Any) -> Config:
    return Config.model_validate(
        {
            "data": "digits",
            "model": "squeezenet1_1",
            "imgsz": 32,
            "epochs": epochs,
            "batch": 256,
            "fraction": 0.2,
            "name": name,
            "storage": str(folder / "runs"),
            "cache_dir": str(folder / "cache"),
            "tracking": {"experiment": "bench"},
            "tune": {"space": {"lr": {"loguniform": [0.001, 0.01]}}, "searcher": "random", "scheduler": "none"} | tune,
        }
    )


def sweep(made: Config) -> Path:
    from orchestrator.tune import tune

    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        return tune(made).folder


def trial_overhead(folder: Path, trials: int) -> float:
    """Between the end of the first trial and that of the last, without what they trained."""
    done = sweep(config(folder, "overhead", epochs=3, samples=trials + 1, concurrent=1))
    events = [json.loads(line) for line in (done / "journal.jsonl").read_text().splitlines()]
    ends = [event["time"] for event in events if event["kind"] == "end"]
    trained = sum(event["row"]["seconds"] for event in events if event["kind"] == "epoch" and event["trial"] > 0)
    seconds: float = (ends[-1] - ends[0] - trained) / trials
    return seconds


def function_trainable(folder: Path, trials: int) -> float:
    """Seconds per trial of a function that imports torch and reports once, one at a time."""
    from ray import tune

    def train(settings: dict[str, Any]) -> None:
        import torch

        tune.report({"value": float(torch.zeros(1))})

    def run(samples: int) -> float:
        started = time.perf_counter()
        tune.Tuner(
            train,
            tune_config=tune.TuneConfig(num_samples=samples, max_concurrent_trials=1),
            run_config=tune.RunConfig(storage_path=str(folder), name=f"bare{samples}", verbose=0),
        ).fit()
        return time.perf_counter() - started

    return (run(trials + 1) - run(1)) / trials


class EmptyProcess:
    """Stands in for a trial: one epoch, at once."""

    def __init__(self, shared: Any) -> None:
        self._messages: list[list[Message]] = []

    def begin(self, spec: Any) -> None:
        row = {"epoch": 1, "step": 1, "train_loss": 1.0, "lr": 0.1, "top1": 0.5, "seconds": 0.0}
        decided = Message({"decided": {"amp": False}, "table": []}, has_state=False)
        epoch = Message(row, has_state=True)
        self._messages = [[decided, epoch], [Message({"stopped_because": "epochs"}, has_state=False, outcome=True)]]

    def take(self) -> list[Message]:
        return self._messages.pop(0)

    def close(self) -> None:
        pass


def driver_time(folder: Path, trials: int) -> tuple[float, float]:
    """Seconds of Tune's thread, and of the whole process, per empty trial."""
    from orchestrator.sweeps import tuner

    class EmptyActor(tuner.TrialActor):
        def setup(self, config: dict[str, Any], shared: Any) -> None:  # type: ignore[override]
            self._process = EmptyProcess(shared)  # type: ignore[assignment]
            self._process.begin(config["spec"])

    seconds: list[float] = []
    before: Callable[..., None] = tuner.run

    def timed(*arguments: Any) -> None:
        began = time.thread_time()
        before(*arguments)
        seconds.append(time.thread_time() - began)

    tuner.TrialActor, tuner.run = EmptyActor, timed  # type: ignore[misc,assignment]
    began = time.process_time()
    sweep(config(folder, "empty", epochs=1, samples=trials))
    assert threading.active_count() < 50
    return seconds[0] / trials, (time.process_time() - began) / trials


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--empty", type=int, default=1000, help="trials of the sweep that does nothing")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name, own_ray():
        folder = Path(name)
        overhead = trial_overhead(folder, arguments.trials)
        bare = function_trainable(folder, 3)
        thread, process = driver_time(folder, arguments.empty)
    print(f"{arguments.trials} trials one after the other, {arguments.empty} empty ones")
    print(f"trial_overhead_s: {overhead:.2f}")
    print(f"function_trainable_s: {bare:.2f}")
    print(f"driver_ms_per_trial: {thread * 1e3:.1f}")
    print(f"driver_cpu_ms_per_trial: {process * 1e3:.1f}")


if __name__ == "__main__":
    main()
