"""COCO's mean average precision of boxes and masks, exact under any number of ranks.

Each rank keeps what was found and what is there, per image. Rank 0 gets it all, sorts it by the images' positions in
the data set (equal scores count in the order of the images) and evaluates once, while the other ranks wait.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from trainables.collectives import World
from trainables.contracts import Batch, Metrics, Mode, RunLengths

if TYPE_CHECKING:
    from trainables.tasks.detect import Detections

_NAMES = {
    "map": "map",
    "map50": "map_50",
    "map75": "map_75",
    "map_small": "map_small",
    "map_medium": "map_medium",
    "map_large": "map_large",
    "mar": "mar_100",
}
"""Our name -> torchmetrics'."""

DETECTION: dict[str, Mode] = dict.fromkeys(_NAMES, "max")
"""What a detector is measured by: COCO's mAP over IoU 0.50 to 0.95, at 0.50 and 0.75, of objects of less than 32 x 32,
up to 96 x 96 and more pixels, and its average recall with 100 detections per image."""
SEGMENTATION: dict[str, Mode] = DETECTION | {f"mask_{name}": "max" for name in _NAMES}
"""The same by boxes and by masks."""

EXAMPLES, EXAMPLE_SCORE = 16, 0.05
"""How many of the first images are kept for pictures, with the detections of at least this score."""

_ALL_AREAS, _MOST, _IOU_50, _IOU_75 = 0, -1, 0, 5
"""Indices into COCO's arrays of precision (IoU, recall, class, area, detections) and recall (without recall)."""

Array = np.ndarray[Any, np.dtype[Any]]
RECALLS: Array = np.linspace(0, 1, 101)
"""At which COCO takes the precision."""


@dataclass(frozen=True)
class _Image:
    """One image of the validation set, compactly: n detections and m objects. Masks as (size, text), None: boxes only.

    found: (n, 6) float32 box xyxy, score and label. there: (m, 6) float32 box xyxy, label and crowd.
    """

    position: int
    size: tuple[int, int]
    found: Array
    there: Array
    found_masks: list[bytes] | None
    there_masks: list[bytes] | None


class AveragePrecision:
    """Accumulates a validation pass of detection, or of instance segmentation."""

    def __init__(self, classes: Sequence[str], masks: bool) -> None:
        self.classes, self.masks = tuple(classes), masks
        self._images: list[_Image] = []
        self._scalars: Metrics = {}
        self._curves: dict[str, _Curves] = {}
        self._is_first = False

    def update(self, output: Sequence[Detections], batch: Batch) -> None:
        """Take one batch's detections in original pixels, for the batch's truths."""
        assert batch.truths is not None
        for position, found, truth in zip(batch.samples.tolist(), output, batch.truths, strict=True):
            columns = (truth.boxes.numpy(), truth.labels.numpy()[:, None], truth.crowd.numpy()[:, None])
            self._images.append(
                _Image(
                    position,
                    truth.size,
                    np.concatenate([found.boxes, found.scores[:, None], found.labels[:, None]], 1, dtype=np.float32),
                    np.concatenate(columns, 1, dtype=np.float32),
                    _texts(found.masks) if self.masks else None,
                    _texts(truth.masks) if self.masks else None,
                )
            )

    def reduce(self, world: World) -> None:
        gathered = world.gather_to_first(self._images)
        self._images = []
        if gathered is not None:
            self._images = sorted((image for part in gathered for image in part), key=lambda image: image.position)
            self._is_first = True
        self._scalars = world.from_first(self._evaluate)

    def compute(self) -> Metrics:
        return dict(self._scalars)

    def details(self) -> Metrics:
        """Per class, precision-recall curves at IoU 0.5, and what was found in the first images; {} but on rank 0."""
        if not self._is_first:
            return {}
        kinds = {"box": "", "mask": "mask_"} if self.masks else {"box": ""}
        curves = {kind: self._curves.get(kind, _Curves()) for kind in kinds}
        there = [image.there[image.there[:, 5] == 0, 4].astype(np.int64) for image in self._images]
        count = len(self.classes)
        objects = np.bincount(np.concatenate([*there, np.empty(0, np.int64)]), minlength=count)
        images = np.bincount(np.concatenate([*map(np.unique, there), np.empty(0, np.int64)]), minlength=count)
        rows = [
            {"name": name, "images": int(images[label]), "objects": int(objects[label])}
            | {f"{kinds[kind]}{k}": v for kind in kinds for k, v in curves[kind].figures(label).items()}
            for label, name in enumerate(self.classes)
        ]
        recall: list[float] = RECALLS.round(2).tolist()
        pr = {kind: [curves[kind].precision(label) for label in range(count)] for kind in kinds}
        examples = [self._example(image) for image in self._images[:EXAMPLES]]
        return {"classes": rows, "pr": {"recall": recall, **pr}, "examples": examples}

    def _example(self, image: _Image) -> Metrics:
        kept = np.flatnonzero(image.found[:, 4] >= EXAMPLE_SCORE)
        found = image.found[kept].astype(np.float64)
        example: Metrics = {
            "id": image.position,
            "size": list(image.size),
            "boxes": found[:, :4].round(2).tolist(),
            "labels": found[:, 5].astype(int).tolist(),
            "scores": found[:, 4].round(4).tolist(),
        }
        if image.found_masks is not None:
            texts = [image.found_masks[i].decode("ascii") for i in kept]
            example["masks"] = [{"size": list(image.size), "counts": text} for text in texts]
        return example

    def _evaluate(self) -> Metrics:
        """COCO's evaluation over all images, on rank 0: the scalars by name; None where there are no objects."""
        from torchmetrics.detection import MeanAveragePrecision  # takes seconds

        types: tuple[Literal["bbox", "segm"], ...] = ("bbox", "segm") if self.masks else ("bbox",)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that compute comes without update
            metric = MeanAveragePrecision(
                iou_type=types,
                iou_thresholds=np.linspace(0.5, 0.95, 10).tolist(),  # its own are rounded to float32, unlike COCO's
                rec_thresholds=RECALLS.tolist(),
                extended_summary=True,
                backend="faster_coco_eval",
                sync_on_compute=False,  # the other ranks do not compute
            )
            self._fill(metric)
            results: dict[str, Any] = metric.compute()
        labels = results["classes"].reshape(-1).tolist()
        kinds = [("box", "", "bbox_"), ("mask", "mask_", "segm_")] if self.masks else [("box", "", "")]
        scalars: Metrics = {}
        for kind, ours, theirs in kinds:
            scalars |= {ours + name: _defined(float(results[theirs + their])) for name, their in _NAMES.items()}
            if f"{theirs}precision" in results:
                precision, recall = (results[theirs + name].numpy() for name in ("precision", "recall"))
                self._curves[kind] = _Curves(precision, recall, {label: k for k, label in enumerate(labels)})
        return scalars

    def _fill(self, metric: Any) -> None:
        """Give torchmetrics its states as its `update` would, without drawing masks to encode them again."""
        for image in self._images:
            metric.detection_box.append(_xywh(image.found))
            metric.detection_scores.append(torch.from_numpy(image.found[:, 4]))
            metric.detection_labels.append(torch.from_numpy(image.found[:, 5].astype(np.int64)))
            metric.groundtruth_box.append(_xywh(image.there))
            metric.groundtruth_labels.append(torch.from_numpy(image.there[:, 4].astype(np.int64)))
            metric.groundtruth_crowds.append(torch.from_numpy(image.there[:, 5].astype(np.int64)))
            metric.groundtruth_area.append(torch.zeros(len(image.there)))  # taken from the masks, else the boxes
            if image.found_masks is not None and image.there_masks is not None:
                metric.detection_mask.append(tuple((image.size, text) for text in image.found_masks))
                metric.groundtruth_mask.append(tuple((image.size, text) for text in image.there_masks))


@dataclass(frozen=True)
class _Curves:
    """COCO's arrays, and which class of ours stands where in them.

    precision: (IoU, recall, class, area, detections), recall: (IoU, class, area, detections); -1 without objects.
    """

    precisions: Array | None = None
    recalls: Array | None = None
    index: dict[int, int] | None = None

    def figures(self, label: int) -> dict[str, float | None]:
        """What `classes` tells of one class; None where it has no objects."""
        of_class = self._of(label)
        if of_class is None:
            return dict.fromkeys(("map", "map50", "map75", "mar"))
        precision, recall = of_class
        means = {"map": precision, "map50": precision[_IOU_50], "map75": precision[_IOU_75], "mar": recall}
        return {name: float(values.mean()) for name, values in means.items()}

    def precision(self, label: int) -> list[float] | None:
        """The precision at IoU 0.5 for each of the 101 recalls."""
        of_class = self._of(label)
        return None if of_class is None else [float(p) for p in of_class[0][_IOU_50].round(4)]

    def _of(self, label: int) -> tuple[Array, Array] | None:
        if self.precisions is None or self.recalls is None or not self.index or label not in self.index:
            return None
        k = self.index[label]
        precision, recall = self.precisions[:, :, k, _ALL_AREAS, _MOST], self.recalls[:, k, _ALL_AREAS, _MOST]
        return None if (precision < 0).any() else (precision, recall)


def _texts(masks: Sequence[RunLengths] | None) -> list[bytes]:
    assert masks is not None
    return [mask["counts"].encode("ascii") for mask in masks]


def _xywh(table: Array) -> torch.Tensor:
    """(n, 4) of a table that begins with boxes as xyxy."""
    boxes = table[:, :4].astype(np.float32)
    return torch.from_numpy(np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1))


def _defined(value: float) -> float | None:
    """COCO's -1 for what no object gives a value."""
    return None if value < 0 or math.isnan(value) else value
