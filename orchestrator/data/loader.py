"""The loader: batches gathered from the mapped shards into a ring of reused buffers, in background threads."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from orchestrator.data.cache import Cache
from orchestrator.data.manifest import split_positions
from trainables.augment import DRAWS, center_view, train_view
from trainables.contracts import Batch, DataInfo
from trainables.order import Draws, Positions, draws, order, share

RING = 3
"""Buffers in flight: one with the model, one ready, one being filled."""


@dataclass(frozen=True)
class View:
    """What the loader must know of the config to make batches."""

    name: str
    fingerprint: str
    classes: tuple[str, ...]
    imgsz: int
    batch: int
    seed: int
    scale: float
    fliplr: float
    val_fraction: float


@dataclass
class _Slot:
    """One buffer of the ring."""

    images: torch.Tensor
    """(n, imgsz, imgsz, 3) uint8, pinned on a GPU machine."""
    copied: torch.cuda.Event | None = None
    """Recorded when the consumer is done with it: the copies to the device may still be on their way."""

    def wait(self) -> None:
        if self.copied is not None:
            self.copied.synchronize()


@dataclass(frozen=True)
class _Job:
    """One batch to be made: positions in the cache, and their draws where they are training samples."""

    positions: Positions
    global_size: int
    draws: Draws | None


class Loader:
    """The Data contract over a cache, for one rank."""

    def __init__(self, cache: Cache, view: View, rank: int = 0, world_size: int = 1, threads: int = 1) -> None:
        self._cache, self._view, self._rank, self._world_size = cache, view, rank, world_size
        self.threads = threads
        self._train, self._val = split_positions(cache.splits, cache.keys, cache.labels, view.val_fraction, view.seed)
        self._train_keys = cache.keys[self._train]
        self.info = DataInfo(
            view.name,
            view.fingerprint,
            view.classes,
            len(self._train),
            len(self._val),
            len(cache.issues),
            view.imgsz,
        )
        self.steps = -(-len(self._train) // view.batch)

    def train(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        return self._produce(self._train_jobs(epoch, first_step))

    def validation(self) -> Iterator[Batch]:
        return self._produce(self._val_jobs())

    def first_batch(self) -> Batch:
        """The first training batch as a copy of its own, for pictures."""
        for batch in self.train(0):
            return Batch(batch.images.clone(), batch.labels, batch.samples, batch.global_size)
        raise ValueError("there are no training samples")

    def id_of(self, sample: int) -> str:
        name: str = self._cache.ids[sample].as_py()
        return name

    def _train_jobs(self, epoch: int, first_step: int) -> Iterator[_Job]:
        view = self._view
        sequence = order(view.seed, epoch, self._train_keys)
        for step in range(first_step, self.steps):
            members = sequence[step * view.batch : (step + 1) * view.batch]
            mine = members[share(len(members), self._rank, self._world_size)]
            numbers = draws(view.seed, epoch, self._train_keys[mine], DRAWS)
            yield _Job(self._train[mine], len(members), numbers)

    def _val_jobs(self) -> Iterator[_Job]:
        size = self._largest_share()
        mine = self._val[share(len(self._val), self._rank, self._world_size)]
        for start in range(0, len(mine), size):
            part = mine[start : start + size]
            yield _Job(part, len(part), None)

    def _largest_share(self) -> int:
        return -(-self._view.batch // self._world_size)

    def _produce(self, jobs: Iterator[_Job]) -> Iterator[Batch]:
        """Run the jobs ahead of the consumer, at most RING - 1 batches; an error in a thread is raised here."""
        free: queue.Queue[_Slot | None] = queue.Queue()
        ready: queue.Queue[tuple[_Slot, Batch] | BaseException | None] = queue.Queue()
        size, imgsz = self._largest_share(), self._view.imgsz
        cuda = torch.cuda.is_available()
        for _ in range(RING):
            free.put(_Slot(torch.empty(size, imgsz, imgsz, 3, dtype=torch.uint8, pin_memory=cuda)))

        def run() -> None:
            try:
                with ThreadPoolExecutor(self.threads, thread_name_prefix="loader") as pool:
                    for job in jobs:
                        slot = free.get()
                        if slot is None:
                            return
                        slot.wait()
                        ready.put((slot, self._fill(slot, job, pool)))
                ready.put(None)
            except BaseException as error:  # handed to the consumer, who raises it
                ready.put(error)

        thread = threading.Thread(target=run, name="loader", daemon=True)
        thread.start()
        try:
            while (item := ready.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                slot, batch = item
                yield batch
                if cuda:
                    slot.copied = torch.cuda.Event()
                    slot.copied.record()
                free.put(slot)
        finally:
            free.put(None)
            thread.join()

    def _fill(self, slot: _Slot, job: _Job, pool: ThreadPoolExecutor) -> Batch:
        count = len(job.positions)
        out = slot.images.numpy()[:count]
        parts = [range(count)[i :: self.threads] for i in range(min(self.threads, count))]
        for future in [pool.submit(self._fill_part, out, job, part) for part in parts]:
            future.result()
        return Batch(
            slot.images[:count].permute(0, 3, 1, 2),
            torch.from_numpy(self._cache.labels[job.positions]),
            job.positions,
            job.global_size,
        )

    def _fill_part(self, out: np.ndarray[Any, Any], job: _Job, part: range) -> None:
        for i in part:
            image = self._cache.image(int(job.positions[i]))
            if job.draws is None:
                center_view(image, out[i])
            else:
                train_view(image, out[i], self._view.scale, self._view.fliplr, job.draws[i])
