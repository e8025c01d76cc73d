from __future__ import annotations

from typing import cast

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics
from torch import Tensor

from trainables.collectives import World
from trainables.contracts import Batch
from trainables.metrics import CLASSIFICATION, ClassificationMetric

CPU = torch.device("cpu")
CLASSES = tuple("abcdefg")


def batch(labels: Tensor) -> Batch:
    return Batch(torch.empty(0), labels, np.arange(len(labels)), len(labels))


def measured(logits: Tensor, labels: Tensor, classes: tuple[str, ...] = CLASSES, size: int = 5) -> ClassificationMetric:
    metric = ClassificationMetric(classes, CPU)
    for some, their in zip(logits.split(size), labels.split(size), strict=True):
        metric.update(some, batch(their))
    return metric


def predictions(count: int = 64, labels_below: int = len(CLASSES)) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(count, len(CLASSES)), torch.randint(labels_below, (count,))


def test_the_figures_equal_scikit_learns() -> None:
    logits, labels = predictions()
    scores, guesses = logits.softmax(1).double().numpy(), logits.argmax(1)
    expected = {
        "val_loss": sklearn_metrics.log_loss(labels, scores / scores.sum(1, keepdims=True), labels=range(7)),
        "top1": sklearn_metrics.accuracy_score(labels, guesses),
        "top5": sklearn_metrics.top_k_accuracy_score(labels, scores, k=5, labels=range(7)),
        "mean_class_accuracy": sklearn_metrics.balanced_accuracy_score(labels, guesses),
    }
    metric = measured(logits, labels)
    assert metric.compute() == pytest.approx(expected, rel=1e-6)
    assert metric.details()["confusion"] == sklearn_metrics.confusion_matrix(labels, guesses).tolist()


def test_the_figures_by_hand() -> None:
    logits = torch.tensor([[2.0, 1.0], [0.0, 3.0], [5.0, 1.0], [0.0, 1.0]])
    metric = measured(logits, torch.tensor([0, 0, 0, 1]), ("cat", "dog"))
    assert metric.details() == {"confusion": [[2, 1], [0, 1]], "class_accuracy": {"cat": 2 / 3, "dog": 1.0}}
    got = metric.compute()
    assert (got["top1"], got["top5"], got["mean_class_accuracy"]) == (0.75, 1.0, pytest.approx(5 / 6))


def test_classes_without_samples_do_not_count() -> None:
    logits, labels = predictions(labels_below=3)
    metric = measured(logits, labels)
    accuracies = metric.details()["class_accuracy"]
    assert list(accuracies) == list(CLASSES)
    assert [name for name, value in accuracies.items() if value is None] == list("defg")
    assert metric.compute()["mean_class_accuracy"] == pytest.approx(np.mean([accuracies[c] for c in "abc"]))


def test_the_metrics_of_the_table_are_produced() -> None:
    assert set(measured(*predictions()).compute()) == set(CLASSIFICATION)


def test_half_precision_logits_are_measured_in_full() -> None:
    logits, labels = predictions()
    exact, half = measured(logits.bfloat16().float(), labels), measured(logits.bfloat16(), labels)
    assert half.compute() == exact.compute()


class OtherRanks:
    """A World in which another rank has the state of a given metric."""

    device = CPU

    def __init__(self, other: ClassificationMetric) -> None:
        self.tensors = iter([other.confusion, other.sums])

    def sum_(self, tensor: Tensor) -> None:
        tensor += next(self.tensors)


@pytest.mark.parametrize("mine", [0, 1, 20, 64])
def test_reducing_over_ranks_gives_the_figures_of_the_whole_set(mine: int) -> None:
    logits, labels = predictions()
    whole = measured(logits, labels)
    part, rest = (
        measured(logits[s], labels[s]) if len(labels[s]) else ClassificationMetric(CLASSES, CPU)
        for s in (slice(mine), slice(mine, None))
    )
    part.reduce(cast(World, OtherRanks(rest)))
    assert part.details() == whole.details()
    assert part.compute() == pytest.approx(whole.compute(), rel=1e-6)
