"""Detectors and scenes so small that a step takes milliseconds. Configs name them as ``tests.tiny_detectors:boxes``."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

from tests.tiny import CLASSES
from trainables.contracts import Targets
from trainables.memory import MemoryData

SIZE = 32
CHANNELS = 16


class Backbone(nn.Sequential):
    """One feature map of a quarter of the image's size."""

    out_channels = CHANNELS

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, CHANNELS, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(CHANNELS, CHANNELS, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1),
            nn.ReLU(),
        )


def _options() -> dict[str, Any]:
    return {
        "rpn_anchor_generator": AnchorGenerator(((8, 16),), ((1.0,),)),
        "box_roi_pool": MultiScaleRoIAlign(["0"], output_size=5, sampling_ratio=2),
        "box_head": TwoMLPHead(CHANNELS * 25, 32),
        "rpn_post_nms_top_n_train": 40,
        "rpn_post_nms_top_n_test": 20,
        "box_batch_size_per_image": 32,
        "rpn_batch_size_per_image": 32,
        "box_score_thresh": 0.01,
    }


def boxes(num_classes: int) -> FasterRCNN:
    return FasterRCNN(Backbone(), box_predictor=FastRCNNPredictor(32, num_classes), **_options())


def masks(num_classes: int) -> MaskRCNN:
    return MaskRCNN(
        Backbone(),
        box_predictor=FastRCNNPredictor(32, num_classes),
        mask_roi_pool=MultiScaleRoIAlign(["0"], output_size=7, sampling_ratio=2),
        mask_head=MaskRCNNHeads(CHANNELS, [CHANNELS], 1),
        mask_predictor=MaskRCNNPredictor(CHANNELS, CHANNELS, num_classes),
        **_options(),
    )


class OfOwn(nn.Module):
    """Torchvision's interface without its classes: gives every image the same boxes, and masks in view pixels."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.linspace(0.1, 0.9, num_classes))

    def forward(self, images: Tensor, targets: list[dict[str, Tensor]] | None = None) -> Any:
        if self.training:
            assert targets is not None
            return {"height": sum((self.scores * len(t["boxes"])).sum() for t in targets) + self.scores.sum()}
        count, (height, width) = len(self.scores), images.shape[-2:]
        box = torch.tensor([width / 4, height / 4, width / 2, height / 2])
        drawn = torch.zeros(count, 1, height, width)
        drawn[:, :, height // 4 : height // 2, width // 4 : width // 2] = 1
        found = {
            "boxes": box.expand(count, 4),
            "labels": torch.arange(count),
            "scores": self.scores.detach(),
            "masks": drawn,
        }
        return [dict(found) for _ in images]


def of_own(num_classes: int) -> OfOwn:
    return OfOwn(num_classes)


MODELS = {"detect": "tests.tiny_detectors:boxes", "segment": "tests.tiny_detectors:masks"}


def scenes(train: int = 8, val: int = 5, batch: int = 4, with_masks: bool = True, **options: Any) -> MemoryData:
    """Dark images with up to two bright rectangles, whose class is their colour; every fourth has none."""
    random = np.random.default_rng(0)
    count = train + val
    images = random.integers(0, 60, (count, SIZE, SIZE, 3), np.uint8)
    objects = []
    for i, image in enumerate(images):
        number = 0 if i % 4 == 3 else 1 + i % 2
        corners = random.integers(0, 10, (number, 2)) + np.arange(number)[:, None] * (16, 0)
        xyxy = np.concatenate([corners, np.minimum(corners + random.integers(8, 15, (number, 2)), SIZE)], 1)
        labels = random.integers(0, len(CLASSES), number)
        drawn = np.zeros((number, SIZE, SIZE), np.uint8)
        for mask, (x0, y0, x1, y1), label in zip(drawn, xyxy, labels, strict=True):
            image[y0:y1, x0:x1, label] = 250
            mask[y0:y1, x0:x1] = 1
        objects.append(
            Targets(
                torch.tensor(xyxy, dtype=torch.float32),
                torch.from_numpy(labels),
                torch.zeros(number, dtype=torch.bool),
                torch.from_numpy(drawn) if with_masks else None,
            )
        )
    return MemoryData(images, np.full(count, -1), CLASSES, train, batch, objects=objects, **options)
