"""What an epoch's throughput is measured by."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from trainables.collectives import World
from trainables.contracts import Batch, Metrics


@dataclass
class Meter:
    """The clock of one epoch, the images seen, the seconds spent waiting for data, readings of the GPU's use."""

    started: float = field(default_factory=time.perf_counter)
    images: int = 0
    waited: float = 0.0
    gpu_use: list[float] = field(default_factory=list)
    next_reading: float = 0.0

    def batches(self, source: Iterator[Batch]) -> Iterator[Batch]:
        """The batches, with the time that each `next` took added to `waited`."""
        while True:
            asked = time.perf_counter()
            batch = next(source, None)
            self.waited += time.perf_counter() - asked
            if batch is None:
                return
            self.images += batch.global_size
            yield batch

    def read_gpu(self, device: torch.device) -> None:
        """Take a reading of the share of time that the GPU is busy, once a second; nothing where none can be had."""
        now = time.perf_counter()
        if device.type != "cuda" or now < self.next_reading:
            return
        self.next_reading = now + 1
        try:
            self.gpu_use.append(torch.cuda.utilization(device) / 100)
        except Exception:  # parts of a GPU (MIG, vGPU) do not tell, each in its own way
            self.next_reading = math.inf

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started

    @property
    def images_per_second(self) -> float:
        """Of all ranks together."""
        return self.images / max(self.seconds, 1e-9)

    def row(self, world: World) -> Metrics:
        """The throughput up to now, over all ranks (collective). GPU figures are None on a CPU."""
        cuda = world.device.type == "cuda"
        waited, use = world.sum([self.waited, sum(self.gpu_use) / max(len(self.gpu_use), 1)])
        peaks = world.gather(torch.cuda.max_memory_allocated(world.device) if cuda else 0)
        return {
            "images_per_second": self.images_per_second,
            "data_wait_fraction": waited / world.size / max(self.seconds, 1e-9),
            "gpu_utilization": use / world.size if cuda else None,
            "gpu_memory_peak_bytes": max(peaks) if cuda else None,
        }
