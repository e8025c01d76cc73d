from __future__ import annotations

from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.tiny import CLASSES, recipe, toy
from trainables.contracts import Batch, Task
from trainables.tasks import build_task
from trainables.tasks.classify import Classify

CPU = torch.device("cpu")


def batch(count: int = 4, height: int = 6, width: int = 5, seed: int = 0) -> Batch:
    random = np.random.default_rng(seed)
    images = torch.from_numpy(random.integers(0, 256, (count, height, width, 3), np.uint8)).permute(0, 3, 1, 2)
    return Batch(images, torch.from_numpy(random.integers(0, 3, count)), np.arange(count), count)


def normalised(images: Tensor) -> Tensor:
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (images / 255 - mean[:, None, None]) / std[:, None, None]


def test_the_task_is_found_by_its_name() -> None:
    task: Task = build_task(recipe())
    assert isinstance(task, Classify)
    assert (task.primary, task.mode) == ("top1", "max")


@pytest.mark.parametrize(("metric", "mode"), [("top5", "max"), ("mean_class_accuracy", "max"), ("val_loss", "min")])
def test_another_metric_may_be_chosen(metric: str, mode: str) -> None:
    task = build_task(recipe(metric=metric))
    assert (task.primary, task.mode) == (metric, mode)


def test_pixels_are_normalised_once_whatever_the_sizes_of_the_batches() -> None:
    task = build_task(recipe())
    for count, height, width in [(4, 6, 5), (2, 6, 5), (7, 6, 5), (3, 9, 4), (1, 6, 5)]:
        given = batch(count, height, width)
        prepared = task.prepare(given, CPU, train=True)
        assert prepared.images.dtype == torch.float32
        assert prepared.images.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(prepared.images, normalised(given.images), rtol=1e-5, atol=1e-6)
        assert torch.equal(prepared.labels, given.labels)
        assert prepared.global_size == given.global_size


def test_pixels_of_any_memory_format_and_of_none_are_taken() -> None:
    task = build_task(recipe())
    given = batch()
    given.images = given.images.contiguous()
    torch.testing.assert_close(
        task.prepare(given, CPU, train=False).images, normalised(given.images), rtol=1e-5, atol=1e-6
    )
    assert task.prepare(batch(0), CPU, train=False).images.shape == (0, 3, 6, 5)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_smoothed_cross_entropy(smoothing: float) -> None:
    task, given = build_task(recipe(label_smoothing=smoothing)), batch()
    logits = torch.randn(4, 3)
    loss = task.loss(cast(nn.Module, lambda images: logits), given)["loss"]
    torch.testing.assert_close(loss, functional.cross_entropy(logits, given.labels, label_smoothing=smoothing))


def test_auxiliary_heads_add_two_fifths_of_their_loss() -> None:
    task, given = build_task(recipe()), batch()
    heads = torch.randn(3, 4, 3)
    main, first, second = (functional.cross_entropy(head, given.labels) for head in heads)
    loss = task.loss(cast(nn.Module, lambda images: tuple(heads)), given)["loss"]
    torch.testing.assert_close(loss, main + 0.4 * (first + second))


def test_predictions_feed_the_metrics() -> None:
    task, data = build_task(recipe(model="tests.tiny:linear")), toy()
    model = task.build_model(data.info).eval()
    metric = task.metrics()
    with torch.no_grad():
        for some in data.validation():
            prepared = task.prepare(some, CPU, train=False)
            metric.update(task.predict(model, prepared), prepared)
    assert list(metric.details()["class_accuracy"]) == list(CLASSES)
    assert sum(map(sum, metric.details()["confusion"])) == data.info.val
