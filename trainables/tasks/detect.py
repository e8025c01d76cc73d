"""Object detection: boxes with a class and a score, measured by COCO's mAP in pixels of the original images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from trainables.average_precision import DETECTION, AveragePrecision
from trainables.contracts import Batch, DataInfo, Mode, RunLengths, Targets, Truth
from trainables.detectors import MAX_DETECTIONS, build_detector
from trainables.pixels import Normalization, Normalize
from trainables.recipe import Recipe
from trainables.registry import did_you_mean
from trainables.run_lengths import paste

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Detections:
    """What was found in one image, the best first, at most MAX_DETECTIONS.

    boxes: (n, 4) float32 xyxy inside the image, in pixels of the original; of the batch's image where a batch has no
    truths. labels: (n,) int64 class indices. scores: (n,) float32. masks: run lengths in the same image; None where the
    task has boxes only.
    """

    boxes: Array
    labels: Array
    scores: Array
    masks: tuple[RunLengths, ...] | None = None


class Detect:
    """The detection task. Raises ValueError for a metric that it does not produce."""

    scores: ClassVar[Mapping[str, Mode]] = DETECTION
    default_metric: ClassVar[str] = "map"
    masks: ClassVar[bool] = False

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.primary = recipe.metric or self.default_metric
        if self.primary not in self.scores:
            raise ValueError(f"unknown metric {self.primary!r}: {did_you_mean(self.primary, self.scores)}")
        self.mode: Mode = self.scores[self.primary]
        self.classes: tuple[str, ...] = ()
        self.normalization = Normalization()
        self._normalize = Normalize(self.normalization)
        self._first_label, self._box_masks = 1, True

    def build_model(self, info: DataInfo) -> nn.Module:
        self.classes = info.classes
        built = build_detector(self.recipe, len(info.classes))
        self.normalization = built.normalization
        self._normalize = Normalize(self.normalization)
        self._first_label, self._box_masks = built.first_label, built.box_masks
        return built.model

    def prepare(self, batch: Batch, device: torch.device, train: bool) -> Batch:
        """The batch on the device with images (n, 3, H, W) float32, normalised as the weights expect it.

        Of the targets, crowds and boxes without an area are left out: nothing is to be learned from them.
        """
        images = self._normalize(batch.images.to(device, non_blocking=True))
        targets = self._move(batch.targets, device) if batch.targets is not None else None
        return replace(batch, images=images, targets=targets)

    def _move(self, targets: Sequence[Targets], device: torch.device) -> list[Targets]:
        """All images' targets in one copy each of boxes, labels and masks."""
        kept = [~t.crowd & (t.boxes[:, 2:] > t.boxes[:, :2]).all(1) for t in targets]
        counts = [int(k.sum()) for k in kept]

        def moved(parts: list[Tensor]) -> list[Tensor]:
            return list(torch.cat(parts).to(device, non_blocking=True).split(counts))

        boxes = moved([t.boxes[k] for t, k in zip(targets, kept, strict=True)])
        labels = moved([t.labels[k] for t, k in zip(targets, kept, strict=True)])
        masks: list[Tensor | None] = [None] * len(targets)
        if self.masks:
            masks = [*moved([t.masks[k] for t, k in zip(targets, kept, strict=True) if t.masks is not None])]
        return [
            Targets(box, label, torch.zeros(len(label), dtype=torch.bool), mask)
            for box, label, mask in zip(boxes, labels, masks, strict=True)
        ]

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """The model's own losses by name, and their sum. The model must be in training mode."""
        assert batch.targets is not None
        targets = [self._target(target) for target in batch.targets]
        losses: dict[str, Tensor] = {name: loss.float() for name, loss in model(batch.images, targets).items()}
        return {**losses, "loss": torch.stack([loss.reshape(()) for loss in losses.values()]).sum()}

    def _target(self, target: Targets) -> dict[str, Tensor]:
        given = {"boxes": target.boxes, "labels": target.labels + self._first_label}
        if self.masks:
            assert target.masks is not None
            given["masks"] = target.masks
        return given

    def predict(self, model: nn.Module, batch: Batch) -> list[Detections]:
        """What is found in each image. The model must be in eval mode."""
        if not len(batch.images):
            return []
        truths: Sequence[Truth | None] = batch.truths or [None] * len(batch.images)
        size = (int(batch.images.shape[-2]), int(batch.images.shape[-1]))
        outputs = [self._best(output) for output in model(batch.images)]
        tables = _to_cpu([torch.cat([o["boxes"], o["scores"][:, None], o["labels"][:, None]], 1) for o in outputs])
        found = []
        for output, table, truth in zip(outputs, tables, truths, strict=True):
            masks = output["masks"][:, 0].float().cpu().numpy() if self.masks else None
            found.append(self._place(table, masks, size, truth))
        return found

    def _best(self, output: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """At most MAX_DETECTIONS of an image, in descending order of their scores, of the data's classes only."""
        labels = output["labels"] - self._first_label
        known = ((labels >= 0) & (labels < len(self.classes))).nonzero()[:, 0]
        best = known[output["scores"][known].argsort(descending=True, stable=True)[:MAX_DETECTIONS]]
        return {**{name: value[best] for name, value in output.items()}, "labels": labels[best]}

    def _place(self, table: Array, masks: Array | None, size: tuple[int, int], truth: Truth | None) -> Detections:
        """The detections of one image of a batch, (n, 6) boxes, score and label, where they are in the original."""
        left, top, scale = (truth.left, truth.top, truth.scale) if truth else (0.0, 0.0, 1.0)
        height, width = truth.size if truth else size
        shift = np.array([left, top, left, top])
        boxes = table[:, :4].astype(np.float64) / scale + shift
        inside = np.clip(boxes, 0, (width, height, width, height)).astype(np.float32)
        kept = np.flatnonzero((inside[:, 2:] > inside[:, :2]).all(1))  # the rest lies in the grey around the image
        pasted = None
        if masks is not None:
            whole = np.array([0, 0, size[1], size[0]]) / scale + shift
            over = boxes if self._box_masks else np.broadcast_to(whole, boxes.shape)
            pasted = tuple(paste(masks[i], tuple(over[i].tolist()), (height, width)) for i in kept)
        return Detections(inside[kept], table[kept, 5].astype(np.int64), table[kept, 4], pasted)

    def metrics(self) -> AveragePrecision:
        return AveragePrecision(self.classes, masks=self.masks)


def _to_cpu(tables: list[Tensor]) -> list[Array]:
    """Several (n, 6) tensors in one copy from the device."""
    whole = torch.cat(tables).float().cpu().numpy()
    return np.split(whole, np.cumsum([len(table) for table in tables])[:-1])
