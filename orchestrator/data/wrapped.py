"""Data around other data: what wraps it says only what it changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from trainables.contracts import Batch, Data, DataInfo

if TYPE_CHECKING:
    from torch import Tensor


class WrappedData:
    """Data that hands out what other data give."""

    def __init__(self, data: Data) -> None:
        self.data = data

    @property
    def info(self) -> DataInfo:
        return self.data.info

    @property
    def steps(self) -> int:
        return self.data.steps

    def train(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        return self.data.train(epoch, first_step)

    def validation(self) -> Iterator[Batch]:
        return self.data.validation()

    def id_of(self, sample: int) -> str:
        return self.data.id_of(sample)


class WatchedData(WrappedData):
    """Tells after each validation batch how many samples have been seen."""

    def __init__(self, data: Data, on_samples: Callable[[int], None]) -> None:
        super().__init__(data)
        self._on_samples = on_samples

    def validation(self) -> Iterator[Batch]:
        seen = 0
        for batch in self.data.validation():
            yield batch
            seen += len(batch)
            self._on_samples(seen)


class RelabelledData(WrappedData):
    """Validation batches whose class indices are replaced: those of one list of classes by those of another."""

    def __init__(self, data: Data, indices: Sequence[int]) -> None:
        """indices: the new index of each old one."""
        super().__init__(data)
        self._indices = torch.tensor([*indices, -1])  # the last one: -1, no class, stays so

    def validation(self) -> Iterator[Batch]:
        for batch in self.data.validation():
            truths = batch.truths and [replace(truth, labels=self._new(truth.labels)) for truth in batch.truths]
            yield replace(batch, labels=self._new(batch.labels), truths=truths)

    def _new(self, labels: Tensor) -> Tensor:
        return self._indices[labels]
