"""A data set in memory: the Data contract without files, for tests, benchmarks and notebooks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from trainables.contracts import Batch, DataInfo
from trainables.order import order, sample_keys, share


class MemoryData:
    """Images (n, size, size, 3) uint8 and labels (n,); the first `train` train, the rest validate. No augmentation."""

    def __init__(
        self,
        images: np.ndarray[Any, np.dtype[np.uint8]],
        labels: np.ndarray[Any, np.dtype[np.int64]],
        classes: Sequence[str],
        train: int,
        batch: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.images, self.labels, self.batch, self.seed = images, labels, batch, seed
        self.rank, self.world_size = rank, world_size
        self.keys = sample_keys(self.id_of(i) for i in range(train))
        size = int(images.shape[1])
        self.info = DataInfo("memory", "", tuple(classes), train, len(images) - train, 0, size)
        self.steps = -(-train // batch)

    def train(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        sequence = order(self.seed, epoch, self.keys)
        for step in range(first_step, self.steps):
            yield self._batch(sequence[step * self.batch : (step + 1) * self.batch])

    def validation(self) -> Iterator[Batch]:
        positions = np.arange(self.info.train, len(self.images))
        for start in range(0, len(positions), self.batch):
            batch = self._batch(positions[start : start + self.batch])
            if len(batch):
                yield batch

    def id_of(self, sample: int) -> str:
        return str(sample)

    def _batch(self, positions: np.ndarray[Any, np.dtype[np.int64]]) -> Batch:
        mine = positions[share(len(positions), self.rank, self.world_size)]
        images = torch.from_numpy(self.images[mine]).permute(0, 3, 1, 2)
        return Batch(images, torch.from_numpy(self.labels[mine]), mine, len(positions))
