"""What torchvision's detectors are changed in: pixels come normalised and at their size, boxes stay in float32."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD
from torchvision.ops import MultiScaleRoIAlign

from trainables.pixels import Normalization

FAMILIES = (FasterRCNN, SSD, FCOS, RetinaNet)
"""The detectors that `adapt` knows; MaskRCNN is a FasterRCNN."""

_ANCHORS = ("anchor_generator", "rpn.anchor_generator")
_HEADS = ("head", "rpn.head", "roi_heads.box_predictor", "roi_heads.mask_predictor")
"""Modules whose outputs become boxes, scores and masks."""


class Batched(nn.Module):
    """In the place of torchvision's GeneralizedRCNNTransform, which would normalise and resize image by image.

    Takes a batch (n, 3, H, W) that is ready, pads it to `divisor` at the right and bottom, and leaves detections as
    they are: boxes in pixels of the batch, masks (k, 1, 28, 28) over their boxes.
    """

    def __init__(self, divisor: int) -> None:
        super().__init__()
        self.divisor = divisor

    def forward(self, images: Tensor, targets: list[dict[str, Tensor]] | None = None) -> tuple[ImageList, Any]:
        n, _, height, width = images.shape
        right, bottom = -width % self.divisor, -height % self.divisor
        padded = functional.pad(images, (0, right, 0, bottom)) if right or bottom else images
        return ImageList(padded, [(height, width)] * n), targets

    def postprocess(
        self, result: list[dict[str, Tensor]], image_shapes: Any, original_sizes: Any
    ) -> list[dict[str, Tensor]]:
        return result


class DefaultBoxes(nn.Module):
    """SSD's default boxes at any size of image.

    A generator with fixed steps in pixels places them for one size only; at others the grid itself gives the steps.
    """

    def __init__(self, given: DefaultBoxGenerator, side: int) -> None:
        super().__init__()
        self.given, self.side = given, side
        self.general = DefaultBoxGenerator(given.aspect_ratios, scales=given.scales, clip=given.clip)

    def forward(self, images: ImageList, features: list[Tensor]) -> list[Tensor]:
        fits = tuple(images.tensors.shape[-2:]) == (self.side, self.side)
        boxes: list[Tensor] = (self.given if fits else self.general)(images, features)
        return boxes


def adapt(model: nn.Module) -> Normalization:
    """Change a detector of torchvision's families in place; the names of its state dict stay.

    Returns the normalisation of the pixels that it did itself, and now expects to be done.
    """
    transform: Any = model.transform
    if isinstance(model, SSD) and model.anchor_generator.steps is not None:
        model.anchor_generator = DefaultBoxes(model.anchor_generator, transform.fixed_size[0])
    divisor = transform.size_divisible
    model.transform = Batched(divisor)
    for name, module in model.named_modules():
        if name in _ANCHORS:
            module.register_forward_pre_hook(_anchors_in_float32)
        elif name in _HEADS:
            module.register_forward_hook(_in_float32)
        elif isinstance(module, MultiScaleRoIAlign):
            module.register_forward_pre_hook(_PaddedSizes(divisor))
    return Normalization(tuple(transform.image_mean), tuple(transform.image_std))


def limit_detections(model: nn.Module, limit: int) -> None:
    """Let a detector of torchvision's families give at most so many detections per image."""
    owner: Any = model.roi_heads if isinstance(model, FasterRCNN) else model
    owner.detections_per_img = min(owner.detections_per_img, limit)


def _anchors_in_float32(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Anchors take the type of the features, but bfloat16 places them up to two pixels off beyond pixel 256."""
    images, features = args
    return images, [f.new_zeros((), dtype=torch.float32).expand(f.shape) for f in features]


def _in_float32(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.float()
    if isinstance(output, dict):
        return {name: tensor.float() for name, tensor in output.items()}
    return type(output)(_in_float32(module, args, part) for part in output)


class _PaddedSizes:
    """The scale of a feature map is that to the padded image: of small ones torchvision derives a wrong one."""

    def __init__(self, divisor: int) -> None:
        self.divisor = divisor

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        features, boxes, sizes = args
        return features, boxes, [self._padded(size) for size in sizes]

    def _padded(self, size: Sequence[int]) -> tuple[int, int]:
        height, width = (math.ceil(side / self.divisor) * self.divisor for side in size)
        return height, width
