"""The loader: batches gathered from the mapped shards into a ring of reused buffers, in background threads."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from orchestrator.data.cache import Cache
from orchestrator.data.images import Image
from orchestrator.data.labels import Labels
from orchestrator.data.shards import CACHE_LINE
from orchestrator.data.stream import DecodedImages
from trainables.augment import Augmentation, Fit, Window, center_view, train_view
from trainables.contracts import Batch, DataInfo
from trainables.order import Draws, Keys, Positions, batch_size, batch_sizes, draws, order, share

RING = 3
"""Buffers in flight: one with the model, one ready, one being filled."""


@dataclass(frozen=True)
class View:
    """What the loader must know of the run to make batches."""

    name: str
    fingerprint: str
    classes: tuple[str, ...]
    imgsz: int
    batch: int
    seed: int
    train: Keys
    """Of the training samples; those that the cache left out are passed over."""
    val: Keys
    augmentation: Augmentation = field(default_factory=Augmentation)
    fit: Fit = "short"
    multi_scale: float = 0.0
    masks: bool = False
    """Whether the objects come with their masks; those with a box only then have that as their mask."""


def ring_memory(size: int) -> torch.Tensor:
    """(size,) uint8: pinned on a GPU machine, else in huge pages on a cache line, where copying takes a third less."""
    if torch.cuda.is_available():
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)
    memory = np.empty(size + CACHE_LINE, np.uint8)  # NumPy asks for huge pages, torch does not
    start = -memory.ctypes.data % CACHE_LINE
    return torch.from_numpy(memory[start : start + size])


@dataclass
class _Slot:
    """One buffer of the ring."""

    memory: torch.Tensor
    """uint8, large enough for the largest batch; pinned on a GPU machine."""
    copied: torch.cuda.Event | None = None
    """Recorded when the consumer is done with it: the copies to the device may still be on their way."""

    def wait(self) -> None:
        if self.copied is not None:
            self.copied.synchronize()

    def images(self, count: int, size: int) -> torch.Tensor:
        """(count, size, size, 3) of the memory."""
        return self.memory[: count * size * size * 3].view(count, size, size, 3)


@dataclass(frozen=True)
class _Job:
    """One batch to be made: positions in the cache, and their draws where they are training samples."""

    positions: Positions
    global_size: int
    size: int
    """Height and width of the batch's images."""
    draws: Draws | None


class Loader:
    """The Data contract over a cache, for one rank."""

    def __init__(self, cache: Cache, view: View, rank: int = 0, world_size: int = 1, threads: int = 1) -> None:
        self._cache, self._view, self._rank, self._world_size = cache, view, rank, world_size
        self.threads = threads
        self.decoders = 1
        """Tasks that decode at once, where the cache has no pixels."""
        self._train, self._val = cache.positions(view.train), np.sort(cache.positions(view.val))
        self._train_keys = cache.keys[self._train]
        self._labels = Labels(cache, view.masks)
        counts = len(self._train), len(self._val), cache.skipped
        objects = int(cache.object_counts[self._train].max(initial=0)) if cache.has_objects else 0
        largest = batch_sizes(view.imgsz, view.multi_scale)[-1]
        self.info = DataInfo(
            view.name, view.fingerprint, view.classes, *counts, view.imgsz, largest, objects, view.masks
        )
        self.steps = -(-len(self._train) // view.batch)
        self._ring: list[_Slot] = []

    def train(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        return self._train_steps(epoch, range(first_step, self.steps))

    def validation(self) -> Iterator[Batch]:
        size = self._largest_share()
        mine = self._val[share(len(self._val), self._rank, self._world_size)]
        parts = [mine[start : start + size] for start in range(0, len(mine), size)]
        return self._produce(parts, (_Job(part, len(part), self._view.imgsz, None) for part in parts))

    def first_batch(self) -> Batch:
        """The first training batch as a copy of its own, for pictures."""
        for batch in self._train_steps(0, range(1)):
            return replace(batch, images=batch.images.clone())
        raise ValueError("there are no training samples")

    def id_of(self, sample: int) -> str:
        name: str = self._cache.ids[sample].as_py()
        return name

    def _train_steps(self, epoch: int, steps: range) -> Iterator[Batch]:
        view = self._view
        sequence = order(view.seed, epoch, self._train_keys)
        batches = [sequence[step * view.batch : (step + 1) * view.batch] for step in steps]
        shares = [members[share(len(members), self._rank, self._world_size)] for members in batches]

        def job(step: int, members: Positions, mine: Positions) -> _Job:
            size = batch_size(view.seed, epoch, step, view.imgsz, view.multi_scale)
            numbers = draws(view.seed, epoch, self._train_keys[mine], view.augmentation.draws)
            return _Job(self._train[mine], len(members), size, numbers)

        return self._produce([self._train[mine] for mine in shares], map(job, steps, batches, shares))

    def _largest_share(self) -> int:
        return -(-self._view.batch // self._world_size)

    def _produce(self, positions: Sequence[Positions], jobs: Iterator[_Job]) -> Iterator[Batch]:
        """Run the jobs, which are for these positions, ahead of the consumer, at most RING - 1 batches.

        An error in a thread is raised here.
        """
        free: queue.Queue[_Slot | None] = queue.Queue()
        ready: queue.Queue[tuple[_Slot, Batch] | BaseException | None] = queue.Queue()
        largest = (
            max(map(len, positions), default=0) * batch_sizes(self._view.imgsz, self._view.multi_scale)[-1] ** 2 * 3
        )
        cuda = torch.cuda.is_available()
        ring = self._take_ring(largest)
        for slot in ring:
            free.put(slot)

        def run() -> None:
            try:
                with (
                    ThreadPoolExecutor(self.threads, thread_name_prefix="loader") as pool,
                    self._images(positions) as images,
                ):
                    for job in jobs:
                        slot = free.get()
                        if slot is None:
                            return
                        slot.wait()
                        ready.put((slot, self._fill(slot, job, images(job.positions), pool)))
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
            self._ring = ring  # nobody uses it any more
        finally:
            free.put(None)
            thread.join()

    def _take_ring(self, size: int) -> list[_Slot]:
        """Buffers of at least so many bytes: those of the last epoch, whose pages are in place, where they are free."""
        ring, self._ring = self._ring, []
        if not ring or len(ring[0].memory) < size:
            ring = [_Slot(ring_memory(size)) for _ in range(RING)]
        return ring

    @contextmanager
    def _images(self, positions: Sequence[Positions]) -> Iterator[Callable[[Positions], Sequence[Image]]]:
        """A function that gives the stored images of one batch after the other, which are at these positions."""
        image = self._cache.image
        if self._cache.stored.pixels or not positions:
            yield lambda part: [image(position) for position in part.tolist()]
            return
        stream = DecodedImages(self._cache, np.concatenate(positions), self.decoders)
        try:
            yield stream.take
        finally:
            stream.close()

    def _fill(self, slot: _Slot, job: _Job, images: Sequence[Image], pool: ThreadPoolExecutor) -> Batch:
        count = len(job.positions)
        memory = slot.images(count, job.size)
        out, windows = memory.numpy(), [Window(0, 0, 1)] * count
        if self.threads == 1:
            self._fill_part(out, windows, images, job, range(count))
        else:
            parts = [range(count)[i :: self.threads] for i in range(min(self.threads, count))]
            for future in [pool.submit(self._fill_part, out, windows, images, job, part) for part in parts]:
                future.result()
        batch = Batch(
            memory.permute(0, 3, 1, 2),
            torch.from_numpy(self._cache.labels[job.positions]),
            job.positions,
            job.global_size,
        )
        if self._cache.has_objects:
            shown = zip(job.positions.tolist(), images, windows, strict=True)
            if job.draws is None:
                batch.truths = [self._labels.truth(*of_image, job.size) for of_image in shown]
            else:
                batch.targets = [self._labels.targets(*of_image, job.size) for of_image in shown]
        return batch

    def _fill_part(
        self, out: np.ndarray[Any, Any], windows: list[Window], images: Sequence[Image], job: _Job, part: range
    ) -> None:
        how, fit = self._view.augmentation, self._view.fit
        still, whole = job.draws is None or how.is_still, Window(0, 0, job.size)
        for i in part:
            image = images[i]
            if still and image.shape == out.shape[1:]:
                out[i] = image
                windows[i] = whole
            elif job.draws is None:
                windows[i] = center_view(image, out[i], fit)
            else:
                windows[i] = train_view(image, out[i], how, job.draws[i], fit)
