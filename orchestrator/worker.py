"""The bridge between Ray Train and the training loop: what runs inside a worker, and how it talks to the driver.

Ray is imported inside the functions: a run in the driver's own process needs none of it.
"""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from orchestrator.data.cache import Cache
from orchestrator.data.loader import Loader, View
from orchestrator.launch import cpu_count
from trainables.checkpoint import Writer
from trainables.contracts import Batch, Data, DataInfo, Metrics, State
from trainables.loop import fit
from trainables.recipe import Recipe
from trainables.tasks import build_task

PULSE_SECONDS = 0.25
"""How often a worker's courier talks to the mailbox; also how late a stop request arrives."""


@dataclass(frozen=True)
class Job:
    """Everything that a worker needs, as plain values."""

    recipe: dict[str, Any]
    view: View
    cache: Path
    run_folder: Path
    restore: Path | None
    record_samples: bool


@dataclass(frozen=True)
class Message:
    """From rank 0 to the driver: a report of the loop, or (`outcome`) what `fit` returned."""

    metrics: Metrics
    has_state: bool
    outcome: bool = False


class WorkerError(RuntimeError):
    """What ended the loop in a worker, as text: its traceback, and some errors themselves, do not reach the driver."""


class Mailbox:
    """A tiny actor on the driver's node: reports go one way, the request to stop the other."""

    def __init__(self) -> None:
        self._messages: list[Message] = []
        self._stop = False

    def push(self, messages: list[Message]) -> bool:
        """Take a worker's messages; tells whether to stop."""
        self._messages += messages
        return self._stop

    def take(self) -> list[Message]:
        """Hand everything that has come to the driver."""
        messages, self._messages = self._messages, []
        return messages

    def stop(self) -> None:
        self._stop = True


class Courier:
    """A thread beside the loop that carries messages to the mailbox, so that the loop never waits for the network."""

    def __init__(self, mailbox: Any, stop: threading.Event) -> None:
        self._mailbox, self._stop = mailbox, stop
        self._waiting: list[Message] = []
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="courier", daemon=True)
        self._thread.start()

    def send(self, message: Message) -> None:
        with self._lock:
            self._waiting.append(message)
        self._wake.set()

    def close(self) -> None:
        """Deliver what is waiting, then end."""
        self._closed = True
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed:
            self._wake.wait(PULSE_SECONDS)
            self._wake.clear()
            self._deliver()
        self._deliver()

    def _deliver(self) -> None:
        with self._lock:
            messages, self._waiting = self._waiting, []
        import ray

        if ray.get(self._mailbox.push.remote(messages)):
            self._stop.set()


class TrainRuntime:
    """The Runtime of a Ray Train worker. Rank 0 writes checkpoints and tells the driver; every rank tells Ray."""

    def __init__(self, mailbox: Any, checkpoints: Path, restore_from: Path | None) -> None:
        import ray.train.torch

        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        self._restore_from = restore_from
        self._stop = threading.Event()
        self._courier = Courier(mailbox, self._stop) if self.rank == 0 else None
        self._checkpoints = checkpoints
        self._writer = Writer(checkpoints) if self.rank == 0 else None
        self._last_progress = 0.0

    def restore(self) -> Path | None:
        return self._restore_from

    def report(self, metrics: Metrics, state: State | None) -> None:
        if state is None:
            if self._courier and self._is_due(metrics):
                self._courier.send(Message(metrics, has_state=False))
            return
        if self._writer:
            self._writer.put(state)
        if self._courier:
            self._courier.send(Message(metrics, has_state=True))
        import ray.train

        scalars = {k: v for k, v in metrics.items() if isinstance(v, int | float | str)}
        scalars["checkpoint"] = str(self._checkpoints / "last")
        # Ray's default mode would block for one poll of its controller; this one only agrees over the ranks
        ray.train.report(scalars, checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC)

    def interrupted(self) -> bool:
        return self._stop.is_set()

    def close(self, outcome: Metrics | None) -> None:
        """Finish the checkpoint in flight, deliver the last message. Raises OSError where the last write failed."""
        try:
            if self._writer:
                self._writer.close()
        finally:
            if self._courier:
                if outcome is not None:
                    self._courier.send(Message(outcome, has_state=False, outcome=True))
                self._courier.close()

    def _is_due(self, metrics: Metrics) -> bool:
        """Progress is for the eye: at most a few times a second. Facts and first steps always pass."""
        now = time.monotonic()
        if metrics.get("step", 1) > 1 and now - self._last_progress < PULSE_SECONDS:
            return False
        self._last_progress = now
        return True


class RecordedData:
    """Data that writes the ids of every batch it hands out to a file: what this rank really received."""

    def __init__(self, data: Data, path: Path) -> None:
        self._data, self._path = data, path

    @property
    def info(self) -> DataInfo:
        return self._data.info

    @property
    def steps(self) -> int:
        return self._data.steps

    def train(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        for step, batch in enumerate(self._data.train(epoch, first_step), first_step):
            self._record({"epoch": epoch, "step": step}, batch.samples)
            yield batch

    def validation(self) -> Iterator[Batch]:
        for batch in self._data.validation():
            self._record({"validation": True}, batch.samples)
            yield batch

    def id_of(self, sample: int) -> str:
        return self._data.id_of(sample)

    def _record(self, place: dict[str, Any], samples: np.ndarray[Any, Any]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(place | {"samples": [self.id_of(int(s)) for s in samples]}) + "\n")


def record(data: Data, run_folder: Path, rank: int) -> Data:
    """The data with every batch recorded under the run folder's logs."""
    return RecordedData(data, run_folder / "logs" / f"samples-{rank}.jsonl")


def build_data(job: Job, rank: int, world_size: int, threads: int) -> Data:
    """Open the cache on this node and make this rank's loader. Raises FileNotFoundError where the node has no cache."""
    try:
        cache = Cache(job.cache)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"the cache {job.cache} is not on node {socket.gethostname()}: "
            "with several nodes, set cache_dir to a folder that every node sees"
        ) from error
    loader = Loader(cache, job.view, rank, world_size, threads)
    return record(loader, job.run_folder, rank) if job.record_samples else loader


def set_threads(local_workers: int, gpu: bool) -> int:
    """Divide the machine's CPUs among its workers: torch takes the share on a CPU, the loader on a GPU machine.

    Returns the loader's threads.
    """
    threads = max(1, cpu_count() // local_workers)
    torch.set_num_threads(threads)
    return threads if gpu else 1


def train_worker(settings: dict[str, Any]) -> None:
    """The body of every Ray Train worker."""
    import ray.train

    job: Job = settings["job"]
    context = ray.train.get_context()
    _log_to(job.run_folder / "logs" / f"rank-{context.get_world_rank()}.log")
    runtime = TrainRuntime(settings["mailbox"], job.run_folder / "checkpoints", job.restore)
    outcome: Metrics | None = None
    try:
        threads = set_threads(context.get_local_world_size(), runtime.device.type == "cuda")
        recipe = Recipe.model_validate(job.recipe)
        data = build_data(job, runtime.rank, runtime.world_size, threads)
        progress = fit(recipe, build_task(recipe), data, runtime)
        outcome = {"stopped_because": progress.stopped_because}
    except Exception as error:
        logging.getLogger(__name__).exception("rank %d failed", runtime.rank)
        raise WorkerError(describe(error)) from error
    finally:
        runtime.close(outcome)


def describe(error: Exception) -> str:
    """An error in one line, with the last place in its traceback that is not in an installed package."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "site-packages" not in f.filename]
    where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"


def run_workers(job: Job, mailbox: Any, workers: int, gpu: bool, scratch: Path) -> None:
    """Run Ray Train in the driver until the workers are done (blocks). Raises what the user's code raised, or Ray's.

    Ray's own retries are off: the driver decides what happens after a failure.
    """
    import ray.train

    from orchestrator.trainer import Trainer

    trainer = Trainer(
        train_worker,
        train_loop_config={"job": job, "mailbox": mailbox},
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers,
            use_gpu=gpu,
            resources_per_worker={"CPU": 1, "GPU": 1} if gpu else {"CPU": 1},
            placement_strategy="PACK" if gpu else "SPREAD",
        ),
        run_config=ray.train.RunConfig(
            storage_path=str(scratch), failure_config=ray.train.FailureConfig(max_failures=0)
        ),
    )
    try:
        trainer.fit()
    except ray.train.WorkerGroupError as error:
        failures = error.worker_failures
        raise failures[min(failures)] from error


def start_mailbox() -> Any:
    """The mailbox actor, on the driver's node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    node = ray.get_runtime_context().get_node_id()
    pinned: Any = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=pinned)(Mailbox).remote()


def _log_to(path: Path) -> None:
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
