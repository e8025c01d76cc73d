"""Metrics that are sums over the validation set, so that they are exact under any number of ranks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from trainables.collectives import World
from trainables.contracts import Batch, Metrics, Mode

CLASSIFICATION: dict[str, Mode] = {"top1": "max", "top5": "max", "mean_class_accuracy": "max", "val_loss": "min"}
"""What a classifier is measured by, and which way is better."""


class ClassificationMetric:
    """Top-1, top-5, mean per-class accuracy, cross-entropy (without label smoothing) and the confusion matrix."""

    def __init__(self, classes: tuple[str, ...], device: torch.device) -> None:
        self.classes = classes
        count = len(classes)
        self.confusion = torch.zeros(count * count, dtype=torch.int64, device=device)
        """Counts by true class (row) and predicted class (column), flattened."""
        self.sums = torch.zeros(2, dtype=torch.float64, device=device)
        """Samples whose class is among the five best guesses; sum of the losses."""

    def update(self, output: Tensor, batch: Batch) -> None:
        """Take logits (n, classes) for the batch's labels (n,)."""
        logits, labels, count = output.float(), batch.labels, len(self.classes)
        best = logits.topk(min(5, count), dim=1).indices
        cells = labels * count + best[:, 0]
        top5 = (best == labels[:, None]).any(1).sum()
        loss = functional.cross_entropy(logits, labels, reduction="none").double().sum()
        sums = torch.stack([top5.double(), loss])
        self._move(logits.device)
        self.confusion.index_add_(0, cells, torch.ones_like(cells))
        self.sums += sums

    def _move(self, device: torch.device) -> None:
        self.confusion, self.sums = self.confusion.to(device), self.sums.to(device)

    def reduce(self, world: World) -> None:
        self._move(world.device)
        world.sum_(self.confusion)
        world.sum_(self.sums)

    def compute(self) -> Metrics:
        matrix, total = self._matrix(), max(int(self.confusion.sum()), 1)
        top5, loss = self.sums.tolist()
        return {
            "val_loss": loss / total,
            "top1": int(matrix.diagonal().sum()) / total,
            "top5": top5 / total,
            "mean_class_accuracy": float(self._per_class().nanmean()),
        }

    def details(self) -> Metrics:
        """The confusion matrix (rows: true, columns: predicted) and the accuracy per class (null: no sample of it)."""
        accuracies = [None if a != a else a for a in self._per_class().tolist()]
        return {
            "confusion": self._matrix().tolist(),
            "class_accuracy": dict(zip(self.classes, accuracies, strict=True)),
        }

    def _matrix(self) -> Tensor:
        return self.confusion.reshape(len(self.classes), len(self.classes)).cpu()

    def _per_class(self) -> Tensor:
        matrix = self._matrix().double()
        return matrix.diagonal() / matrix.sum(1)
