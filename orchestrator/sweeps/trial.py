"""A trial in its process: the body of a run in a thread, whose reports wait until Tune asks for them.

One worker trains right here, in the actor of Ray Tune that the next trial uses again. Several workers are a Ray Train
run of their own, started from here.
"""

from __future__ import annotations

import gc
import logging
import os
import threading
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from orchestrator.data.cache import Cache
from orchestrator.data.loader import View
from orchestrator.data.nodes import Place
from orchestrator.errors import describe
from orchestrator.launch import QUIET, Placement
from orchestrator.mailbox import Message
from orchestrator.stop import Stop
from orchestrator.supervisor import supervise
from orchestrator.worker import Job, is_lost, set_threads
from trainables.augment import Augmentation
from trainables.checkpoint import find
from trainables.contracts import Metrics, State
from trainables.headroom import is_out_of_memory, release_memory
from trainables.local import LocalRuntime
from trainables.recipe import Recipe

PULSE_SECONDS = 1.0
"""How long Tune waits for a trial's reports at most: so late come progress, and a request to stop."""
HALVINGS = 2
"""How often a trial begins again with half the micro-batch after memory ran out outside of a step."""
LEFT_BYTES = 64 * 2**20
"""GPU memory that a trial may leave behind; with more, the next one begins in a new process."""


@dataclass(frozen=True)
class Shared:
    """What all trials of a sweep have in common; in Ray's object store, once."""

    variants: Mapping[str, tuple[View, Place]]
    """The data as they are cached, by what of the config changes that."""
    placement: Placement
    """Of each trial."""
    cpus: int
    """Of the whole cluster."""
    neighbours: int
    """Workers that share a machine's memory with this one, itself included."""


@dataclass(frozen=True)
class Spec:
    """One trial, as it is sent to its process."""

    number: int
    recipe: dict[str, Any]
    folder: Path
    variant: str
    measured: bool
    largest_batch: int

    def __str__(self) -> str:
        return str(self.number)

    def job(self, shared: Shared) -> Job:
        view, place = shared.variants[self.variant]
        recipe = Recipe.model_validate(self.recipe)
        return Job(
            recipe=recipe.model_dump(),
            view=replace(view, batch=max(recipe.batch, 1), seed=recipe.seed, augmentation=Augmentation.of(recipe)),
            cache=place,
            run_folder=self.folder,
            restore=find(self.folder / "checkpoints"),
            record_samples=False,
            profile=False,
            cpus=shared.cpus,
            measured=self.measured,
            largest_batch=self.largest_batch,
            threads=shared.placement.cpus,
            neighbours=shared.neighbours,
            gpu_share=shared.placement.gpus,
        )


class TuneRuntime(LocalRuntime):
    """The Runtime of a trial with one worker. It trains one epoch ahead of the scheduler's verdict at most."""

    def __init__(self, trial: TrialThread, job: Job, device: torch.device | None = None) -> None:
        super().__init__(job.run_folder / "checkpoints", trial.put_report, job.restore, device, trial.stop.event)
        self._trial = trial

    def report(self, metrics: Metrics, state: State | None) -> None:
        if state is not None and not self._trial.awaits_verdict(metrics):
            return
        super().report(metrics, state)


class TrialThread:
    """A trial that trains in a thread; its reports are taken by Tune."""

    def __init__(self, spec: Spec, shared: Shared, cache: Cache | None) -> None:
        """cache: open in this process, where the trial trains here."""
        self.stop = Stop()
        self._spec, self._shared, self._cache = spec, shared, cache
        self._dropped = False
        self._messages: list[Message] = []
        self._changed = threading.Condition()
        self._reported = self._taken = self._judged = 0
        """Epochs that the loop has reported, that Tune was given, and that it has judged."""
        self._lost: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"trial-{spec.number}", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------------------------- called by the actor

    def take(self) -> list[Message]:
        """What the trial has reported since the last time; waits for the end of an epoch, PULSE_SECONDS at most.

        Raises what says that a worker or its machine was lost.
        """
        until = time.monotonic() + PULSE_SECONDS
        with self._changed:
            self._judged = self._taken  # asking for more, Tune lets the trial go on
            self._changed.notify_all()
            while not any(map(self._is_urgent, self._messages)) and (left := until - time.monotonic()) > 0:
                self._changed.wait(left)
            messages, self._messages = self._messages, []
            self._taken += sum(map(_is_epoch, messages))
        if self._lost and messages and messages[-1].outcome:
            raise self._lost
        return messages

    def end(self, drop: bool) -> None:
        """Stop at the next step and give the memory back. `drop`: the steps since the last epoch are not saved."""
        self._dropped = drop
        with self._changed:
            self.stop.event.set()
            self._changed.notify_all()
        self._thread.join()

    # ------------------------------------------------------------------------------------ called by the thread

    def put_report(self, metrics: Metrics, state: State | None) -> None:
        self._put(Message(metrics, state is not None))

    def awaits_verdict(self, metrics: Metrics) -> bool:
        """Wait until the epoch before this one was judged; whether the state is to be saved."""
        with self._changed:
            while self._judged < self._reported and not self.stop.event.is_set():
                self._changed.wait()
        return not (self._dropped and self.stop.event.is_set())

    def _put(self, message: Message) -> None:
        with self._changed:
            if self._messages and _is_progress(message) and _is_progress(self._messages[-1]):
                self._messages.pop()  # the newest tells all
            self._messages.append(message)
            self._reported += _is_epoch(message)
            self._changed.notify_all()

    def _is_urgent(self, message: Message) -> bool:
        """Whether somebody waits for it: the scheduler for an epoch, other trials for what is measured, the end."""
        decided = "decided" in message.metrics and not self._spec.measured
        return message.has_state or message.outcome or decided

    def _run(self) -> None:
        try:
            outcome: Metrics = {"stopped_because": self._train()}
        except BaseException as error:  # also an exit in a model of the user's own: Tune waits for an answer
            with suppress(OSError):  # the disk may be full
                (self._spec.folder / "logs" / "trial.log").write_text(traceback.format_exc())
            self._lost = error if is_lost(error) else None
            outcome = {"failed": describe(error)}
        self._put(Message(outcome, has_state=False, outcome=True))

    def _train(self) -> str:
        halvings = 0
        while True:
            try:
                return self._attempt(halvings)
            except RuntimeError as error:
                if not is_out_of_memory(error) or halvings == HALVINGS:
                    raise
                text = f"out of memory: trying again with half the micro-batch ({describe(error)})"
            halvings += 1
            release_memory()
            self._put(Message({"event": "memory", "text": text, "epoch": 0}, has_state=False))

    def _attempt(self, halvings: int) -> str:
        placement = self._shared.placement
        job = self._spec.job(self._shared)
        if halvings:
            share = -(-job.recipe["batch"] // placement.workers)
            micro = max(min(share, job.recipe["micro_batch"] or share) >> halvings, 1)
            job = replace(job, recipe=job.recipe | {"micro_batch": micro})
        if self._cache is None:
            return supervise(job, placement, None, lambda m, s: self._put(Message(m, s)), self.stop)
        threads = set_threads(1, placement.gpu, job.threads)
        device = None if placement.gpu else torch.device("cpu")
        with TuneRuntime(self, job, device) as runtime:
            return job.run(self._cache, runtime, threads).stopped_because


class TrialProcess:
    """What lives in the actor from trial to trial: the open caches."""

    def __init__(self, shared: Shared) -> None:
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        self._shared = shared
        self._caches: dict[str, Cache] = {}
        self._trial: TrialThread | None = None

    def begin(self, spec: Spec) -> None:
        """Start a trial in place of the one before, which is stopped and gives its memory back first."""
        self.drop()
        here = self._shared.placement.workers == 1
        if here and spec.variant not in self._caches:
            self._caches[spec.variant] = self._shared.variants[spec.variant][1].open()
        self._trial = TrialThread(spec, self._shared, self._caches[spec.variant] if here else None)

    def take(self) -> list[Message]:
        assert self._trial is not None
        return self._trial.take()

    def drop(self) -> None:
        """End the trial whose fate is decided. Ends the process where it leaves GPU memory behind."""
        if self._trial is None:
            return
        self._trial.end(drop=True)
        self._trial = None
        gc.collect()
        release_memory()
        if _spoils_the_gpu():
            os._exit(1)  # Tune begins the next trial in a new one

    def close(self) -> None:
        """Stop the trial with a checkpoint, where it is still training, and let go of the caches."""
        if self._trial:
            self._trial.end(drop=False)
            self._trial = None
        for variant, cache in self._caches.items():
            cache.close()
            self._shared.variants[variant][1].leave()
        self._caches.clear()


def _spoils_the_gpu() -> bool:
    """Whether a trial that has ended left memory on the GPU, or an error that would meet the next one."""
    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
        left = torch.cuda.memory_allocated()
    except RuntimeError as error:
        logging.getLogger(__name__).warning("the GPU is no longer usable here, its process ends: %s", error)
        return True
    if left > LEFT_BYTES:
        logging.getLogger(__name__).warning("a trial left %d bytes on the GPU: its process ends", left)
    return left > LEFT_BYTES


def _is_progress(message: Message) -> bool:
    return "steps" in message.metrics


def _is_epoch(message: Message) -> bool:
    return message.has_state and "train_loss" in message.metrics
