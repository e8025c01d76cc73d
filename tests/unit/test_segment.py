"""Instance segmentation: what is beyond detection, the masks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as mask_api
from torch import nn
from torchvision.models.detection.roi_heads import paste_masks_in_image

from tests import tiny_detectors
from tests.tiny import CLASSES, recipe
from tests.unit.test_detect import Says, batch, drawn, shown, targets
from trainables.collectives import World
from trainables.contracts import DataInfo
from trainables.tasks import build_task
from trainables.tasks.segment import Segment

CPU = torch.device("cpu")
INFO = DataInfo("", "", CLASSES, 4, 2, 0, 32, masks=True)


def tiny(model: str = "masks") -> tuple[Segment, nn.Module]:
    task = build_task(recipe(task="segment", model=f"tests.tiny_detectors:{model}"))
    assert isinstance(task, Segment)
    torch.manual_seed(0)
    return task, task.build_model(INFO)


def decoded(runs: Any) -> np.ndarray[Any, Any]:
    return np.asarray(mask_api.decode(dict(runs)))


def test_the_metric_is_that_of_masks_and_may_be_that_of_boxes() -> None:
    task, _ = tiny()
    assert (task.primary, task.mode) == ("mask_map", "max")
    assert build_task(recipe(task="segment", metric="map50")).primary == "map50"


def test_crowds_are_left_out_with_their_masks() -> None:
    task, model = tiny()
    given = drawn(targets([[0, 0, 30, 30], [4, 4, 20, 20]], [0, 1], [True, False]), 32)
    prepared = task.prepare(batch(32, [given, drawn(targets([], []), 32)]), CPU, train=True)
    assert prepared.targets is not None
    masks = [target.masks for target in prepared.targets]
    assert [m.shape for m in masks if m is not None] == [(1, 32, 32), (0, 32, 32)]
    assert masks[0] is not None
    assert masks[0].sum() == 16 * 16
    assert task.loss(model.train(), prepared)["loss_mask"] > 0


def test_a_batch_of_background_alone_gives_a_finite_loss() -> None:
    task, model = tiny()
    nothing = drawn(targets([], []), 32)
    losses = task.loss(model.train(), task.prepare(batch(32, [nothing, nothing]), CPU, train=True))
    losses["loss"].backward()
    assert losses["loss"].isfinite()
    assert losses["loss_mask"] == 0


def says(boxes: Any, masks: Any) -> Says:
    count = len(boxes)
    found = {"boxes": torch.tensor(boxes), "labels": torch.ones(count, dtype=torch.int64), "masks": masks}
    return Says(found | {"scores": torch.linspace(0.9, 0.1, count)})


def test_masks_are_pasted_in_the_original_image_at_its_own_resolution() -> None:
    """A disc that fills its box of 16 view pixels is a smooth disc of 100 original ones, cut at the image's edge."""
    task, _ = tiny()
    at = torch.arange(28) + 0.5 - 14
    disc = ((at[:, None] ** 2 + at**2).sqrt() < 14).float()[None, None].expand(2, -1, -1, -1)
    truths = [shown((200, 400), 0.0, -100.0, 0.16)]
    boxes = [[16.0, 24.0, 32.0, 40.0], [56.0, 10.0, 72.0, 26.0]]  # the second: 350 to 450, -37.5 to 62.5
    given = task.prepare(batch(64, count=1, truths=truths), CPU, train=False)
    (found,) = task.predict(says(boxes, disc), given)
    assert found.masks is not None
    whole, cut = (decoded(mask) for mask in found.masks)
    y, x = np.mgrid[:200, :400] + 0.5

    def disc_at(x0: float, y0: float) -> Any:
        return ((x - x0) ** 2 + (y - y0) ** 2) < 50**2

    for mask, expected in ((whole, disc_at(150, 100)), (cut, disc_at(400, 12.5))):
        assert mask.shape == (200, 400)
        assert (mask & expected).sum() / (mask | expected).sum() > 0.95
    assert found.boxes[1] == pytest.approx([350, 0, 400, 62.5])


def test_in_view_pixels_masks_agree_with_torchvisions() -> None:
    task, _ = tiny()
    boxes = torch.tensor([[10.0, 12.0, 50.0, 60.0], [3.2, 4.7, 30.9, 20.1]])
    masks = torch.rand(2, 1, 7, 7).repeat_interleave(4, 2).repeat_interleave(4, 3)
    (found,) = task.predict(says(boxes.tolist(), masks), task.prepare(batch(64, count=1), CPU, train=False))
    theirs = paste_masks_in_image(masks, boxes, (64, 64))[:, 0] >= 0.5
    for ours, other in zip(found.masks or (), theirs.numpy(), strict=True):
        mask = decoded(ours)
        assert (mask & other).sum() / (mask | other).sum() > 0.85, "theirs go to whole pixels"


def test_a_model_of_ones_own_gives_masks_of_the_whole_view() -> None:
    task, model = tiny("of_own")
    truths = [shown((60, 60), 0.0, 0.0, 0.5333333)]  # 32 pixels
    (found,) = task.predict(model.eval(), task.prepare(batch(32, count=1, truths=truths), CPU, train=False))
    assert found.labels.tolist() == [2, 1, 0], "without the background"
    for mask in found.masks or ():
        assert decoded(mask)[15:30, 15:30].all()
        assert decoded(mask).sum() == 15 * 15
    losses = task.loss(model.train(), task.prepare(batch(32, [drawn(targets([[1, 1, 9, 9]], [0]), 32)] * 2), CPU, True))
    assert set(losses) == {"height", "loss"}


@pytest.mark.parametrize("bf16", [False, True])
def test_an_epoch_of_learning_and_a_validation_pass(bf16: bool) -> None:
    task, model = tiny()
    data = tiny_detectors.scenes(train=8, val=3)
    for given in data.train(0):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = task.loss(model.train(), task.prepare(given, CPU, train=True))["loss"]
        loss.backward()
        assert loss.isfinite()
    metric = task.metrics()
    with torch.no_grad():
        for given in data.validation():
            prepared = task.prepare(given, CPU, train=False)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                output = task.predict(model.eval(), prepared)
            metric.update(output, prepared)
    metric.reduce(World(0, 1, CPU))
    assert set(metric.compute()) == set(task.scores)
    assert metric.compute()["mask_map"] is not None


def test_perfect_detections_of_a_validation_batch_score_one() -> None:
    task, _ = tiny()
    data = tiny_detectors.scenes(train=1, val=6)
    metric = task.metrics()
    task.classes = CLASSES
    metric.classes = CLASSES
    for given in data.validation():
        prepared = task.prepare(given, CPU, train=False)
        told = []
        for truth in given.truths or ():
            masks = torch.from_numpy(np.stack([decoded(m) for m in truth.masks or ()] or [np.zeros((32, 32))]))
            masks = masks[: len(truth.labels), None].float()
            found = {"boxes": truth.boxes, "labels": truth.labels + 1, "scores": torch.ones(len(truth.labels))}
            told.append(found | {"masks": masks})
        task._box_masks = False
        metric.update(task.predict(Says(*told), prepared), prepared)
    metric.reduce(World(0, 1, CPU))
    assert metric.compute()["map"] == pytest.approx(1)
    assert metric.compute()["mask_map"] == pytest.approx(1)
