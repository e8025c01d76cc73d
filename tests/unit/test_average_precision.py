"""COCO's mAP, compared with faster-coco-eval on COCO's own files, with one by hand, and over ranks."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.core import mask as mask_api

from tests.ranks import run_ranks
from trainables.average_precision import DETECTION, EXAMPLES, SEGMENTATION, AveragePrecision
from trainables.collectives import World
from trainables.contracts import Batch, Metrics, Truth
from trainables.order import share
from trainables.run_lengths import encode
from trainables.tasks.detect import Detections

CLASSES = ("cell", "nucleus", "never", "found only")
ONE = World(0, 1, torch.device("cpu"))
Image = tuple[int, Detections, Truth]


def rectangles(boxes: np.ndarray[Any, Any], size: tuple[int, int]) -> list[Any]:
    """The masks of boxes, each with a corner cut off."""
    masks = []
    for x0, y0, x1, y1 in boxes.round().astype(int):
        bits = np.zeros(size, np.uint8)
        bits[y0:y1, x0:x1] = 1
        bits[y0 : y0 + (y1 - y0) // 3, x0 : x0 + (x1 - x0) // 3] = 0
        masks.append(encode(bits, 0, 0, size))
    return masks


def truth(size: tuple[int, int], boxes: Any, labels: Any, crowd: Any = None, masks: bool = True) -> Truth:
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    crowd = np.zeros(len(boxes), bool) if crowd is None else np.asarray(crowd, bool)
    return Truth(
        size,
        torch.from_numpy(boxes),
        torch.tensor(labels, dtype=torch.int64),
        torch.from_numpy(crowd),
        rectangles(boxes, size) if masks else None,
        *(0.0, 0.0, 1.0),
    )


def detections(size: tuple[int, int], boxes: Any, labels: Any, scores: Any) -> Detections:
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    order = np.argsort(-np.asarray(scores, np.float32), kind="stable")
    boxes, labels = boxes[order], np.asarray(labels, np.int64)[order]
    return Detections(boxes, labels, np.asarray(scores, np.float32)[order], tuple(rectangles(boxes, size)))


def images(count: int = 30, seed: int = 0, tied: bool = False) -> list[Image]:
    """Objects of all sizes with crowds among them, found a little off; class 2 has none, class 3 is only "found"."""
    random = np.random.default_rng(seed)
    made = []
    for position in range(count):
        size = (int(random.integers(150, 250)), int(random.integers(150, 250)))
        n = 0 if position % 7 == 3 else int(random.integers(1, 9))
        corners, sides = (
            random.uniform(0, 100, (n, 2)),
            random.choice([12, 50, 120], (n, 1)) * random.uniform(0.6, 1, (n, 2)),
        )
        limits = (size[1], size[0])
        boxes = np.concatenate([corners, np.minimum(corners + sides, limits)], 1).round()
        labels, crowd = random.integers(0, 2, n), random.random(n) < 0.15
        found = np.repeat(boxes, 2, 0) + random.normal(0, 3, (2 * n, 4))
        false = np.array([[5, 5, 40, 60]])
        found = np.clip(np.concatenate([found, false]), 0, (*limits, *limits))
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 2)
        names = np.append(np.where(random.random(2 * n) < 0.8, np.repeat(labels, 2), 3), position % 4)
        scores = random.choice([0.2, 0.5, 0.9], 2 * n + 1) if tied else random.random(2 * n + 1)
        made.append((position, detections(size, found, names, scores), truth(size, boxes, labels, crowd)))
    return made


def batch_of(part: Sequence[Image]) -> tuple[list[Detections], Batch]:
    positions = np.array([position for position, _, _ in part], np.int64)
    batch = Batch(torch.empty(0), torch.empty(0), positions, len(part), truths=[t for _, _, t in part])
    return [found for _, found, _ in part], batch


def measured(
    parts: Sequence[Sequence[Image]], masks: bool = True, classes: Sequence[str] = CLASSES
) -> AveragePrecision:
    metric = AveragePrecision(classes, masks)
    for part in parts:
        metric.update(*batch_of(part))
    metric.reduce(ONE)
    return metric


# -------------------------------------------------------------------------------------- against COCO's own


def reference(made: Sequence[Image], kind: str, masks: bool) -> COCOeval_faster:
    """The evaluation of the files that one would hand to COCO's tools.

    As in COCO's files, an object's area is that of its mask where it has one; a result's that of what is evaluated.
    """
    objects: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for position, found, there in made:
        for box, label, crowd, mask in zip(
            there.boxes.tolist(), there.labels.tolist(), there.crowd.tolist(), there.masks or (), strict=True
        ):
            x0, y0, x1, y1 = box
            area = int(mask_api.area(dict(mask))) if masks else (x1 - x0) * (y1 - y0)
            entry = {"id": len(objects) + 1, "image_id": position, "category_id": label, "iscrowd": int(crowd)}
            objects.append(entry | {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": area, "segmentation": dict(mask)})
        for box, label, score, mask in zip(
            found.boxes.astype(float).tolist(),
            found.labels.tolist(),
            found.scores.tolist(),
            found.masks or (),
            strict=True,
        ):
            x0, y0, x1, y1 = box
            shape = {"bbox": [x0, y0, x1 - x0, y1 - y0]} if kind == "bbox" else {"segmentation": dict(mask)}
            results.append({"image_id": position, "category_id": label, "score": score, **shape})
    file = {
        "images": [{"id": p, "height": t.size[0], "width": t.size[1]} for p, _, t in made],
        "categories": [{"id": i, "name": name} for i, name in enumerate(CLASSES)],
        "annotations": objects,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(json.loads(json.dumps(file)))
        evaluation = COCOeval_faster(coco, coco.loadRes(results), kind, print_function=lambda *a: None)
        evaluation.run()
    return evaluation


@pytest.mark.parametrize("tied", [False, True])
def test_boxes_and_masks_equal_cocos_evaluation_of_the_same_files(tied: bool) -> None:
    made = images(tied=tied)
    got = measured([made[:11], made[11:]]).compute()
    assert set(got) == set(SEGMENTATION)
    for prefix, kind in (("", "bbox"), ("mask_", "segm")):
        stats = reference(made, kind, masks=True).stats
        names = ("map", "map50", "map75", "map_small", "map_medium", "map_large")
        expected = {prefix + name: stats[i] for i, name in enumerate(names)} | {f"{prefix}mar": stats[8]}
        assert {name: got[name] for name in expected} == pytest.approx(expected, abs=1e-6)
        assert 0.1 < got[f"{prefix}map"] < 0.9
    assert got["map"] != got["mask_map"]


def test_without_masks_the_areas_are_those_of_the_boxes() -> None:
    made = images(seed=1)
    got = measured([made], masks=False).compute()
    stats = reference(made, "bbox", masks=False).stats
    assert set(got) == set(DETECTION)
    assert got == pytest.approx(dict(zip(DETECTION, [*stats[:6], stats[8]], strict=True)), abs=1e-6)


def test_the_figures_of_a_class_are_those_of_the_class_alone() -> None:
    made = images(seed=2)
    classes = measured([made]).details()["classes"]
    for prefix, kind in (("", "bbox"), ("mask_", "segm")):
        evaluation = reference(made, kind, masks=True)
        for label in (0, 1):
            evaluation.params.catIds = [label]
            with contextlib.redirect_stdout(io.StringIO()):
                evaluation.run()
            expected = dict(zip(("map", "map50", "map75"), evaluation.stats[:3], strict=True)) | {
                "mar": evaluation.stats[8]
            }
            assert {name: classes[label][prefix + name] for name in expected} == pytest.approx(expected, abs=1e-6)


# -------------------------------------------------------------------------------------------------- by hand


def iou(one: Any, other: Any) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    both = max(width, 0) * max(height, 0)
    return float(both / ((one[2] - one[0]) * (one[3] - one[1]) + (other[2] - other[0]) * (other[3] - other[1]) - both))


def average_precision(made: Sequence[Image], label: int, threshold: float) -> float:
    """The mean of the precision at 101 recalls, written out (Everingham et al., 2010; Lin et al., 2014)."""
    hits = []
    total = 0
    for _, found, there in made:
        objects = [box for box, name in zip(there.boxes.tolist(), there.labels.tolist(), strict=True) if name == label]
        total += len(objects)
        free = list(range(len(objects)))
        for box, name, score in zip(found.boxes.tolist(), found.labels.tolist(), found.scores.tolist(), strict=True):
            if name != label:
                continue
            best = max(free, key=lambda i: iou(box, objects[i]), default=None)
            hit = best is not None and iou(box, objects[best]) >= threshold
            if hit:
                free.remove(best)  # type: ignore[arg-type]
            hits.append((score, hit))
    hits.sort(key=lambda pair: -pair[0])
    right = np.cumsum([hit for _, hit in hits])
    recall, precision = right / total, right / np.arange(1, len(hits) + 1)
    levels = np.linspace(0, 1, 101)
    return float(np.mean([max(precision[recall >= level], default=0.0) for level in levels]))


def test_a_case_by_hand() -> None:
    size = (100, 100)
    made = [
        (0, detections(size, [[10, 10, 30, 30], [50, 52, 70, 70], [0, 0, 9, 9]], [0, 0, 0], [0.9, 0.6, 0.7]),
         truth(size, [[10, 10, 30, 30], [50, 50, 70, 70]], [0, 0])),
        (1, detections(size, [[21, 20, 40, 44], [20, 20, 40, 40]], [0, 1], [0.8, 0.3]),
         truth(size, [[20, 20, 40, 40], [60, 60, 90, 90]], [0, 1])),
    ]  # fmt: skip
    metric = measured([made], masks=False, classes=("a", "b"))
    got = metric.compute()
    thresholds = np.arange(0.5, 1, 0.05).round(2)
    by_class = [[average_precision(made, label, t) for t in thresholds] for label in (0, 1)]
    assert got["map"] == pytest.approx(np.mean(by_class))
    assert got["map50"] == pytest.approx((by_class[0][0] + by_class[1][0]) / 2)
    # class 0: found at ranks 1, 2 and 4 of 3 objects; class 1: at the wrong place
    assert metric.details()["classes"][0]["map50"] == pytest.approx((67 * 1 + 34 * 0.75) / 101)
    assert metric.details()["classes"][1]["map50"] == 0


# ----------------------------------------------------------------------------------------- ranks and orders


def of_rank(world: World, tied: bool) -> Any:
    made = images(20, seed=3, tied=tied)
    metric = AveragePrecision(CLASSES, masks=True)
    mine = made[share(len(made), world.rank, world.size)]
    for start in range(0, len(mine), 3):
        metric.update(*batch_of(mine[start : start + 3]))
    metric.reduce(world)
    return [metric.compute(), metric.details()]


@pytest.mark.parametrize("tied", [pytest.param(False, marks=pytest.mark.slow), True])
def test_three_ranks_give_what_one_gives(tied: bool, tmp_path: Path) -> None:
    (scalars, details), *others = run_ranks(3, of_rank, tmp_path, tied)
    alone = of_rank(ONE, tied)
    assert [scalars, details] == json.loads(json.dumps(alone))
    for other in others:
        assert other == [scalars, {}], "the scalars are everywhere, the details with the first rank"


def test_the_order_of_batches_changes_nothing_where_scores_are_equal() -> None:
    made = images(9, seed=4, tied=True)
    halves = [made[:3], made[3:6], made[6:]]
    seen = {json.dumps(measured(order).compute()) for order in itertools.permutations(halves)}
    seen.add(json.dumps(measured([made[::-1]]).compute()))
    assert len(seen) == 1
    moved = [(8 - position, found, there) for position, found, there in made]
    assert json.dumps(measured([moved]).compute()) not in seen, "the order of the data set does"


# ---------------------------------------------------------------------------------------------- empty cases

SIZE = (40, 50)
NOTHING: tuple[Any, Any, Any] = ([], [], [])


def numbers(found: Any, there: Any, masks: bool) -> Metrics:
    made = [(0, detections(SIZE, *found), truth(SIZE, *there)), (1, detections(SIZE, *NOTHING), truth(SIZE, [], []))]
    metric = measured([made], masks)
    json.dumps(metric.details(), allow_nan=False)
    return metric.compute()


@pytest.mark.parametrize("masks", [False, True])
def test_without_objects_nothing_can_be_said(masks: bool) -> None:
    for found in (NOTHING, ([[1, 1, 20, 20]], [1], [0.5])):
        got = numbers(found, ([], []), masks)
        assert got == dict.fromkeys(SEGMENTATION if masks else DETECTION)


@pytest.mark.parametrize("masks", [False, True])
def test_without_detections_every_score_is_zero_where_there_are_objects(masks: bool) -> None:
    got = numbers(NOTHING, ([[1, 1, 20, 20]], [1]), masks)
    assert (got["map"], got["map50"], got["mar"], got["map_small"]) == (0, 0, 0, 0)
    assert (got["map_medium"], got["map_large"]) == (None, None)
    assert got.get("mask_map", 0) == 0


@pytest.mark.parametrize("masks", [False, True])
def test_a_pass_over_no_images_is_no_error(masks: bool) -> None:
    metric = measured([], masks)
    assert metric.compute() == dict.fromkeys(SEGMENTATION if masks else DETECTION)
    assert metric.details()["examples"] == []


def test_crowds_are_neither_to_be_found_nor_to_be_missed() -> None:
    whole = [[0, 0, 50, 40]]
    got = numbers(([[1, 1, 20, 20], [2, 3, 9, 9]], [1, 1], [0.5, 0.9]), (whole, [1], [True]), True)
    assert got == dict.fromkeys(SEGMENTATION)
    there = ([*whole, [1, 1, 20, 20]], [1, 1], [True, False])
    assert numbers(([[1, 1, 20, 20], [2, 3, 9, 9]], [1, 1], [0.5, 0.9]), there, False)["map"] == pytest.approx(1)


# --------------------------------------------------------------------------------------------------- details


def test_details_count_objects_and_draw_curves() -> None:
    made = images(20, seed=5)
    details = measured([made]).details()
    rows = details["classes"]
    assert [row["name"] for row in rows] == list(CLASSES)
    for label, row in enumerate(rows):
        per_image = [((t.labels == label) & ~t.crowd).sum().item() for _, _, t in made]
        assert (row["objects"], row["images"]) == (sum(per_image), sum(n > 0 for n in per_image))
    for label in (2, 3):
        assert {rows[label][name] for name in ("map", "map50", "mar", "mask_map", "mask_mar")} == {None}
    pr = details["pr"]
    assert pr["recall"] == pytest.approx(np.linspace(0, 1, 101))
    for kind, name in (("box", "map50"), ("mask", "mask_map50")):
        assert [curve is None for curve in pr[kind]] == [False, False, True, True]
        assert np.mean(pr[kind][0]) == pytest.approx(rows[0][name], abs=1e-4)
    json.dumps(details, allow_nan=False)


def test_examples_are_the_first_images_of_the_data_set_with_what_was_found_for_sure() -> None:
    made = images(20, seed=6)
    examples = measured([made[10:], made[:10]]).details()["examples"]
    assert [example["id"] for example in examples] == list(range(EXAMPLES))
    for example, (_, found, there) in zip(examples, made, strict=False):
        sure = found.scores >= 0.05
        assert example["size"] == list(there.size)
        assert example["labels"] == found.labels[sure].tolist()
        assert np.asarray(example["boxes"]).reshape(-1, 4) == pytest.approx(found.boxes[sure].reshape(-1, 4), abs=0.01)
        assert len(example["masks"]) == len(example["scores"]) == sure.sum()
    assert "masks" not in measured([made], masks=False).details()["examples"][0]
