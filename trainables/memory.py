"""A data set in memory: the Data contract without files, for tests, benchmarks and notebooks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from trainables.contracts import Batch, DataInfo, Targets, Truth
from trainables.order import order, sample_keys, share
from trainables.run_lengths import encode


class MemoryData:
    """Images (n, size, size, 3) uint8 and labels (n,); the first `train` train, the rest validate. No augmentation.

    objects: of each image, in its pixels; None where the images have labels instead.
    """

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
        objects: Sequence[Targets] | None = None,
    ) -> None:
        self.objects = objects
        self.images, self.labels, self.batch, self.seed = images, labels, batch, seed
        self.rank, self.world_size = rank, world_size
        self.keys = sample_keys(self.id_of(i) for i in range(train))
        size = int(images.shape[1])
        most = max((len(targets.labels) for targets in objects[:train]), default=0) if objects else 0
        masks = objects is not None and any(targets.masks is not None for targets in objects)
        self.info = DataInfo(
            "memory", "", tuple(classes), train, len(images) - train, 0, size, largest=size, objects=most, masks=masks
        )
        self.steps = -(-train // batch)

    def train(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        sequence = order(self.seed, epoch, self.keys)
        for step in range(first_step, self.steps):
            batch = self._batch(sequence[step * self.batch : (step + 1) * self.batch])
            yield replace(batch, targets=[self.objects[i] for i in batch.samples]) if self.objects else batch

    def validation(self) -> Iterator[Batch]:
        positions = np.arange(self.info.train, len(self.images))
        for start in range(0, len(positions), self.batch):
            batch = self._batch(positions[start : start + self.batch])
            if len(batch):
                yield replace(batch, truths=[self._truth(i) for i in batch.samples]) if self.objects else batch

    def id_of(self, sample: int) -> str:
        return str(sample)

    def _batch(self, positions: np.ndarray[Any, np.dtype[np.int64]]) -> Batch:
        mine = positions[share(len(positions), self.rank, self.world_size)]
        images = torch.from_numpy(self.images[mine]).permute(0, 3, 1, 2)
        return Batch(images, torch.from_numpy(self.labels[mine]), mine, len(positions))

    def _truth(self, sample: int) -> Truth:
        assert self.objects is not None
        targets, size = self.objects[sample], (self.images.shape[1], self.images.shape[2])
        masks = None if targets.masks is None else [encode(mask, 0, 0, size) for mask in targets.masks.numpy()]
        return Truth(size, targets.boxes, targets.labels, targets.crowd, masks, 0.0, 0.0, 1.0)
