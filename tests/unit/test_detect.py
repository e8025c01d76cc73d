"""Detection: losses and boxes against torchvision's own models, coordinates, labels, and what must never crash."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision import models as torchvision_models
from torchvision.models.detection.image_list import ImageList

from tests import tiny_detectors
from tests.tiny import CLASSES, recipe
from trainables.contracts import Batch, DataInfo, Targets, Truth
from trainables.detectors import DETECTORS, FCOS_SCORE, MAX_DETECTIONS, assemble, build_detector
from trainables.models import NoMemory
from trainables.tasks import build_task
from trainables.tasks.detect import Detect

CPU = torch.device("cpu")
INFO = DataInfo("", "", CLASSES, 4, 2, 0, 64)


def targets(boxes: Any, labels: Any, crowd: Any = None, masks: Tensor | None = None) -> Targets:
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    crowd = torch.zeros(len(boxes), dtype=torch.bool) if crowd is None else torch.tensor(crowd)
    return Targets(boxes, torch.tensor(labels, dtype=torch.int64), crowd, masks)


def batch(size: int, given: list[Targets] | None = None, count: int = 2, seed: int = 0, **changes: Any) -> Batch:
    random = np.random.default_rng(seed)
    images = torch.from_numpy(random.integers(0, 256, (count, size, size, 3), np.uint8)).permute(0, 3, 1, 2)
    labels, samples = torch.full((count,), -1), np.arange(count)
    return replace(Batch(images, labels, samples, count, targets=given), **changes)


def drawn(given: Targets, size: int) -> Targets:
    """The same with masks: their boxes."""
    masks = torch.zeros(len(given.labels), size, size, dtype=torch.uint8)
    for mask, (x0, y0, x1, y1) in zip(masks, given.boxes.round().int().tolist(), strict=True):
        mask[y0:y1, x0:x1] = 1
    return replace(given, masks=masks)


def scene(size: int, masks: bool = False) -> list[Targets]:
    part = size / 8
    first = targets([[part, part, 3 * part, 4 * part], [4 * part, 2 * part, 7 * part, 6.5 * part]], [0, 2])
    second = targets([], [])
    return [drawn(first, size), drawn(second, size)] if masks else [first, second]


# ------------------------------------------------------------------------------- against torchvision's models

LIGHT = {
    "ssdlite320_mobilenet_v3_large": 320,
    "fasterrcnn_mobilenet_v3_large_320_fpn": 64,
    "retinanet_resnet50_fpn": 64,
    "maskrcnn_mobilenet_v3_large_fpn": 64,
}
HEAVY = {
    "ssd300_vgg16": 300,
    "fcos_resnet50_fpn": 72,
    "retinanet_resnet50_fpn_v2": 72,
    "fasterrcnn_mobilenet_v3_large_fpn": 72,
    "fasterrcnn_resnet50_fpn": 72,
    "fasterrcnn_resnet50_fpn_v2": 72,
    "maskrcnn_resnet50_fpn": 72,
    "maskrcnn_resnet50_fpn_v2": 72,
}


def test_every_detector_is_compared_with_torchvisions() -> None:
    assert set(LIGHT) | set(HEAVY) == set(DETECTORS)


def reference(name: str, size: int) -> nn.Module:
    """Torchvision's own model, which normalises by itself and is told not to resize."""
    entry = DETECTORS[name]
    classes = len(CLASSES) + entry.background
    if name.startswith("ssd"):
        ssd: nn.Module = torchvision_models.get_model(name, weights=None, weights_backbone=None, num_classes=classes)
        return ssd
    model = entry.build(num_classes=classes)
    transform: Any = model.transform
    transform.min_size, transform.max_size = (size,), size
    return model


def compare_with_torchvision(name: str, size: int, exact: bool) -> None:
    rtol = 1e-3 if exact else 1e-2
    entry, masks = DETECTORS[name], DETECTORS[name].task == "segment"
    task = build_task(recipe(task=entry.task, model=name))
    assert isinstance(task, Detect)
    torch.manual_seed(0)
    model = task.build_model(INFO)
    theirs: Any = reference(name, size)
    theirs.load_state_dict(model.state_dict())  # the names are torchvision's
    theirs.transform.image_mean, theirs.transform.image_std = task.normalization.mean, task.normalization.std
    given = batch(size, scene(size, masks))
    first_label = int(entry.background)
    raw = [image.contiguous().float() / 255 for image in given.images]
    plain: list[dict[str, Any]] = [
        {"boxes": t.boxes, "labels": t.labels + first_label} | ({"masks": t.masks} if masks else {})
        for t in given.targets or ()
    ]
    torch.manual_seed(1)
    expected = theirs.train()(raw, plain)
    torch.manual_seed(1)
    losses = task.loss(model.train(), task.prepare(given, CPU, train=True))
    assert set(losses) == {*expected, "loss"}
    for key, value in expected.items():
        torch.testing.assert_close(losses[key], value, rtol=rtol, atol=1e-5)
    torch.testing.assert_close(losses["loss"], sum(expected.values()), rtol=rtol, atol=1e-5)
    if masks:
        return  # theirs are pasted; the boxes are those of the same heads
    if name.startswith("fcos"):
        theirs.score_thresh = FCOS_SCORE
    with torch.no_grad():
        found = task.predict(model.eval(), task.prepare(batch(size), CPU, train=False))
        known = theirs.eval()(raw)
    for ours, other in zip(found, known, strict=True):
        best = {key: value[:MAX_DETECTIONS].numpy() for key, value in other.items()}
        kept = (best["boxes"][:, 2:] > best["boxes"][:, :2]).all(1)
        np.testing.assert_allclose(ours.scores, best["scores"][kept], rtol=rtol, atol=1e-4)
        if exact:  # in the others, equal scores change places
            np.testing.assert_array_equal(ours.labels, best["labels"][kept] - first_label)
            np.testing.assert_allclose(ours.boxes, best["boxes"][kept], atol=0.05)


@pytest.mark.parametrize("name", LIGHT)
def test_losses_and_scores_equal_torchvisions_on_the_same_pixels(name: str) -> None:
    compare_with_torchvision(name, LIGHT[name], exact=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", HEAVY)
def test_losses_and_scores_of_the_heavy_models_equal_torchvisions(name: str) -> None:
    # batch norms over a few pixels each, fifty times, make the last digits of the pixels larger
    compare_with_torchvision(name, HEAVY[name], exact=False)


# ---------------------------------------------------------------------------------------------- what is learned


def tiny(**settings: Any) -> tuple[Detect, nn.Module]:
    task = build_task(recipe(task="detect", model="tests.tiny_detectors:boxes", **settings))
    assert isinstance(task, Detect)
    torch.manual_seed(0)
    return task, task.build_model(INFO)


def test_crowds_and_boxes_without_area_are_not_learned_from() -> None:
    task, model = tiny()
    clean = targets([[4, 4, 20, 20]], [1])
    dirty = targets(
        [[0, 0, 30, 30], [4, 4, 20, 20], [5, 5, 5, 9], [9, 9, 4, 4]], [0, 1, 2, 2], [True, False, False, False]
    )
    losses = []
    for given in (clean, dirty):
        prepared = task.prepare(batch(32, [given, targets([], [])]), CPU, train=True)
        assert [len(t.labels) for t in prepared.targets or ()] == [1, 0]
        torch.manual_seed(1)
        losses.append(float(task.loss(model.train(), prepared)["loss"].detach()))
    assert losses[0] == losses[1]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("bf16", [False, True])
def test_images_without_objects_and_tiny_boxes_give_a_finite_loss(count: int, bf16: bool) -> None:
    task, model = tiny()
    for given in (targets([], []), targets([[3, 3, 4, 4], [31.2, 31.5, 32, 32], [7, 7, 7.01, 30]], [0, 1, 2])):
        prepared = task.prepare(batch(32, [given] * count, count), CPU, train=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            losses = task.loss(model.train(), prepared)
        losses["loss"].backward()
        assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_a_single_batch_is_learned_by_heart() -> None:
    task, model = tiny()
    data = tiny_detectors.scenes(train=2, val=0, batch=2)
    given = task.prepare(next(data.train(0)), CPU, train=True)
    optimizer = torch.optim.AdamW(model.parameters(), 0.005)
    for step in range(90):
        torch.manual_seed(step)
        loss = task.loss(model.train(), given)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        found = task.predict(model.eval(), given)
    for output, target in zip(found, given.targets or (), strict=True):
        sure = output.scores > 0.6
        assert sorted(output.labels[sure]) == sorted(target.labels.tolist())
        for box, label in zip(target.boxes.numpy(), target.labels.tolist(), strict=True):
            distances = np.abs(output.boxes[sure & (output.labels == label)] - box).max(1)
            assert distances.min() < 3


# ------------------------------------------------------------------------------------------------ what is found


class Says(nn.Module):
    """Finds in every image what it was told."""

    def __init__(self, *found: dict[str, Any]) -> None:
        super().__init__()
        self.found = [{name: torch.as_tensor(value) for name, value in one.items()} for one in found]

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        return self.found


def says(boxes: Any, labels: Any, scores: Any) -> Says:
    found = {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.tensor(labels, dtype=torch.int64)}
    return Says(found | {"scores": torch.tensor(scores)})


def shown(size: tuple[int, int], left: float, top: float, scale: float) -> Truth:
    none = torch.zeros(0, dtype=torch.int64)
    return Truth(size, torch.zeros(0, 4), none, none.bool(), None, left, top, scale)


def test_boxes_are_found_in_pixels_of_the_original_image_and_inside_it() -> None:
    task, _ = tiny()
    # an image of 100 x 200 shown whole in 64 pixels, grey above and below
    truths = [shown((100, 200), 0.0, -50.0, 0.32)]
    boxes = [[16.0, 24.0, 48.0, 32.0], [-2.0, 30.0, 70.0, 60.0], [10.0, 2.0, 20.0, 14.0]]
    given = batch(64, count=1, truths=truths)
    (found,) = task.predict(says(boxes, [1, 3, 2], [0.3, 0.9, 0.5]), task.prepare(given, CPU, train=False))
    assert found.boxes == pytest.approx(np.array([[0, 43.75, 200, 100], [50, 25, 150, 50]]))
    assert found.labels.tolist() == [2, 0], "the box in the grey is none"
    assert found.scores == pytest.approx([0.9, 0.3])
    assert [a.dtype for a in (found.boxes, found.labels, found.scores)] == [np.float32, np.int64, np.float32]
    assert found.masks is None


def test_without_truths_boxes_are_in_pixels_of_the_view() -> None:
    task, _ = tiny()
    given = task.prepare(batch(64, count=1), CPU, train=False)
    (found,) = task.predict(says([[16.0, 24.0, 48.0, 70.0]], [1], [0.3]), given)
    assert found.boxes.tolist() == [[16, 24, 48, 64]]


def test_the_best_hundred_of_the_datas_classes_are_kept() -> None:
    task, _ = tiny()
    boxes, scores = torch.rand(300, 4) * 10, torch.rand(300)
    boxes[:, 2:] += 20
    labels = torch.arange(300) % 6  # 0 is the background, 4 and 5 are no classes
    (found,) = task.predict(
        Says({"boxes": boxes, "labels": labels, "scores": scores}), task.prepare(batch(64, count=1), CPU, train=False)
    )
    own = scores[(labels > 0) & (labels < 4)].sort(descending=True).values[:MAX_DETECTIONS]
    assert found.scores.tolist() == own.tolist()
    assert set(found.labels.tolist()) == {0, 1, 2}


def test_nothing_found_and_no_images_are_no_error() -> None:
    task, model = tiny()
    (found,) = task.predict(says([], [], []), task.prepare(batch(64, count=1), CPU, train=False))
    assert (found.boxes.shape, found.labels.shape, found.scores.shape) == ((0, 4), (0,), (0,))
    assert task.predict(model, batch(64, count=0)) == []


# ---------------------------------------------------------------------------------- sizes and number formats


@pytest.mark.parametrize("size", [160, 200])
@pytest.mark.parametrize("bf16", [False, True])
def test_ssdlite_trains_and_finds_at_any_size(size: int, bf16: bool) -> None:
    task = build_task(recipe(task="detect", model="ssdlite320_mobilenet_v3_large"))
    model = task.build_model(INFO)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = task.loss(model.train(), task.prepare(batch(size, scene(size)), CPU, train=True))["loss"]
        with torch.no_grad():
            found = task.predict(model.eval(), task.prepare(batch(size), CPU, train=False))
    assert loss.isfinite()
    assert all(output.boxes.max(initial=0) <= size for output in found)


def test_anchors_and_outputs_of_heads_are_float32_in_mixed_precision() -> None:
    """In bfloat16, numbers beyond 256 are even: boxes would be up to two pixels off."""
    task, model = tiny()
    seen: dict[str, set[torch.dtype]] = {}

    def note(name: str, output: Any) -> None:
        parts = output if isinstance(output, list | tuple) else [output]
        for part in parts:
            note(name, part) if isinstance(part, list) else seen.setdefault(name, set()).add(part.dtype)

    for name in ("backbone", "rpn.anchor_generator", "rpn.head", "roi_heads.box_predictor"):
        model.get_submodule(name).register_forward_hook(lambda module, args, out, name=name: note(name, out))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        task.predict(model.eval(), task.prepare(batch(64), CPU, train=False))
    assert seen.pop("backbone") == {torch.bfloat16}
    assert list(seen.values()) == [{torch.float32}] * 3


@pytest.mark.parametrize(("pretrained", "std"), [(True, 1 / 255), (False, 0.229)])
def test_ssd300_takes_raw_pixels_where_its_weights_do(pretrained: bool, std: float) -> None:
    settings = recipe(task="detect", model="ssd300_vgg16", pretrained=pretrained)
    with NoMemory():
        built = assemble(DETECTORS["ssd300_vgg16"], settings, 2)
    assert built.normalization.std[0] == pytest.approx(std)


def test_default_boxes_of_ssd300_cover_images_of_other_sizes_too() -> None:
    settings = recipe(task="detect", model="ssd300_vgg16")
    with NoMemory():
        built = assemble(DETECTORS["ssd300_vgg16"], settings, 2)
    generator: Any = built.model.anchor_generator
    for size, grids in ((300, [38, 19, 10, 5, 3, 1]), (512, [64, 32, 16, 8, 6, 4])):
        images = ImageList(torch.empty(1, 3, size, size, device="meta"), [(size, size)])
        (boxes,) = generator(images, [torch.zeros(1, 1, grid, grid) for grid in grids])
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        last = centres[-(grids[-1] ** 2) * 4 :]
        assert last.min() == pytest.approx(size / grids[-1] / 2, rel=0.01)
        assert last.max() == pytest.approx(size - size / grids[-1] / 2, rel=0.01)
        assert centres.max() <= size * 1.02


def test_small_images_are_pooled_at_the_scale_of_the_features() -> None:
    """Torchvision takes the scale from the unpadded size, which gives 1/2 instead of 1/4 for 66 pixels."""
    built = build_detector(recipe(task="detect", model="fasterrcnn_mobilenet_v3_large_320_fpn"), 2)
    model: Any = built.model
    with torch.no_grad():
        model.eval()(torch.rand(1, 3, 66, 66))
    assert model.roi_heads.box_roi_pool.scales == [1 / 32, 1 / 32]
