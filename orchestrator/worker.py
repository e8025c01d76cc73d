"""The bridge between Ray Train and the training loop: what runs inside a worker, and how it talks to the driver.

Ray is imported inside the functions: a run in the driver's own process needs none of it.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from orchestrator.data.cache import Cache
from orchestrator.data.loader import Loader, View
from orchestrator.data.nodes import Place
from orchestrator.data.recorded import record
from orchestrator.errors import WorkerError, describe
from orchestrator.launch import Placement, cpu_count
from orchestrator.mailbox import PULSE_SECONDS, Courier, Message
from orchestrator.profiling import profiled
from trainables.batching import decide
from trainables.checkpoint import Writer
from trainables.contracts import Data, Metrics, Runtime, State
from trainables.headroom import memory_limit
from trainables.loop import Progress, fit
from trainables.recipe import Recipe
from trainables.tasks import build_task


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that a worker needs, as plain values."""

    recipe: dict[str, Any]
    view: View
    cache: Place
    run_folder: Path
    restore: Path | None
    record_samples: bool
    profile: bool
    cpus: int
    """Of the whole cluster; they decode what no cache holds."""
    measured: bool = False
    """Whether what can be measured has been decided already: trials of a sweep share it."""
    largest_batch: int = 0
    """The largest batch that what is measured must hold for; 0: that of the recipe."""
    threads: int = 0
    """Of each worker; 0: its share of the machine."""
    neighbours: int = 0
    """Workers of other trials, and this one's, that share a machine's memory; 0: it is this run's alone."""
    gpu_share: float = 1.0
    """Of a GPU that a worker may use."""

    def run(self, cache: Cache, runtime: Runtime, threads: int) -> Progress:
        """What every rank does."""
        return run_loop(self, cache, runtime, threads)


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
        """Progress is for the eye: at most a few times a second. Facts, events and first steps always pass."""
        now = time.monotonic()
        if metrics.get("step", 1) > 1 and "event" not in metrics and now - self._last_progress < PULSE_SECONDS:
            return False
        self._last_progress = now
        return True


def run_loop(job: Job, cache: Cache, runtime: Runtime, threads: int) -> Progress:
    """Decide what is to be measured, then train: what every rank does, in a worker or in the driver's process."""
    recipe = Recipe.model_validate(job.recipe)
    if job.neighbours and recipe.memory is None:
        share = min(job.gpu_share, 1.0) if runtime.device.type == "cuda" else 1.0
        limit = int(memory_limit(recipe, runtime.device, job.neighbours) * share)
        recipe = recipe.model_copy(update={"memory": limit})
    info = Loader(cache, job.view, runtime.rank, runtime.world_size).info
    decision = decide(recipe, build_task(recipe), info, runtime, job.measured, job.largest_batch)
    runtime.report({"decided": decision.decided, "table": decision.table}, None)
    return fit(decision.recipe, build_task(recipe), build_data(job, cache, decision.recipe, runtime, threads), runtime)


def build_data(job: Job, cache: Cache, recipe: Recipe, runtime: Runtime, threads: int) -> Data:
    """This rank's loader."""
    loader = Loader(cache, replace(job.view, batch=recipe.batch), runtime.rank, runtime.world_size, threads)
    loader.decoders = max(1, job.cpus // runtime.world_size)
    data: Data = record(loader, job.run_folder, runtime.rank) if job.record_samples else loader
    return profiled(data, job.run_folder / "logs") if job.profile and runtime.rank == 0 else data


def set_threads(local_workers: int, gpu: bool, threads: int = 0) -> int:
    """Divide the machine's CPUs among its workers: torch takes the share on a CPU, the loader on a GPU machine.

    `threads`: of a worker, where that is settled. Returns the loader's threads.
    """
    threads = threads or max(1, cpu_count() // local_workers)
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
        threads = set_threads(context.get_local_world_size(), runtime.device.type == "cuda", job.threads)
        try:
            with closing(job.cache.open()) as cache:
                progress = job.run(cache, runtime, threads)
        finally:
            job.cache.leave()
        outcome = {"stopped_because": progress.stopped_because}
    except Exception as error:
        logging.getLogger(__name__).exception("rank %d failed", runtime.rank)
        raise WorkerError(describe(error)) from error
    finally:
        runtime.close(outcome)


def run_workers(job: Job, mailbox: Any, placement: Placement, scratch: Path) -> None:
    """Run Ray Train in the driver until the workers are done (blocks). Raises what the user's code raised, or Ray's.

    Ray's own retries are off: the driver decides what happens after a failure.
    """
    import ray.train

    from orchestrator.trainer import Trainer

    trainer = Trainer(
        train_worker,
        train_loop_config={"job": job, "mailbox": mailbox},
        scaling_config=ray.train.ScalingConfig(
            num_workers=placement.workers,
            use_gpu=placement.gpu,
            resources_per_worker=placement.resources,
            placement_strategy="PACK" if placement.gpu else "SPREAD",
        ),
        run_config=ray.train.RunConfig(
            storage_path=str(scratch), failure_config=ray.train.FailureConfig(max_failures=0)
        ),
    )
    try:
        trainer.fit()
    except ray.train.WorkerGroupError as error:
        failures = error.worker_failures
        lost = [rank for rank, failure in failures.items() if is_lost(failure)]  # why others failed too
        raise failures[min(lost or failures)] from error


def is_lost(error: BaseException) -> bool:
    """Whether an error says that a process or its machine was lost, and nothing of what ran in it."""
    import ray

    lost = (
        ray.exceptions.RayActorError,
        ray.exceptions.NodeDiedError,
        ray.exceptions.OutOfMemoryError,
        ray.exceptions.WorkerCrashedError,
        ray.exceptions.LocalRayletDiedError,
        ray.exceptions.ObjectLostError,
    )
    return isinstance(error, lost)


def _log_to(path: Path) -> None:
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
