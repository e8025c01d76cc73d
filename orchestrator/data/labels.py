"""The labels of a cache's samples as batches have them: objects in a view for training, as they are for evaluation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from orchestrator.data import masks
from orchestrator.data.cache import Cache
from orchestrator.data.images import Image
from orchestrator.data.objects import Objects, to_targets
from trainables.augment import Window
from trainables.contracts import RunLengths, Targets, Truth
from trainables.run_lengths import encode

MIN_VISIBLE = 0.1
"""Share of an object's box that a training view must show for the object to count."""


class Labels:
    """The objects of the samples of a cache.

    masks: whether they come with their masks; an object with a box only then has that as its mask.
    """

    def __init__(self, cache: Cache, masks: bool) -> None:
        self._cache, self._masks = cache, masks

    def targets(self, position: int, image: Image, window: Window, size: int) -> Targets:
        """Those of one image in the training view of `size` pixels that shows a window of its stored pixels."""
        full = self._full_scale(position, image)
        return to_targets(
            self._objects(position),
            scale=size / (window.side * full),
            left=window.left * full,
            top=window.top * full,
            flip_x=window.flip_x,
            flip_y=window.flip_y,
            size=size,
            keep=MIN_VISIBLE,
        )

    def truth(self, position: int, image: Image, window: Window, size: int) -> Truth:
        """Those of one image, all of them, in its own pixels, and where the view shows it."""
        full = self._full_scale(position, image)
        return to_truth(
            self._objects(position),
            self._cache.full_size(position),
            scale=size / (window.side * full),
            left=window.left * full,
            top=window.top * full,
        )

    def _objects(self, position: int) -> Objects:
        objects = self._cache.objects(position)
        assert objects is not None
        if not self._masks:
            return replace(objects, masks=None)
        return objects if objects.masks is not None else replace(objects, masks=(b"",) * len(objects))

    def _full_scale(self, position: int, image: Image) -> float:
        """Pixels at full scale per stored one."""
        return max(self._cache.full_size(position)) / int(max(image.shape))


def to_truth(objects: Objects, size: tuple[int, int], scale: float, left: float, top: float) -> Truth:
    """All objects as they are evaluated: in pixels of the original image of `size` (height, width).

    scale, left, top: where a view shows it, as for `to_targets`. In a set of masks, an object with a box only has that
    as its mask.
    """
    drawn = None
    if objects.masks is not None:
        drawn = [_run_lengths(mask, box, size) for mask, box in zip(objects.masks, objects.boxes, strict=True)]
    return Truth(
        size=size,
        boxes=torch.tensor(objects.boxes),  # a copy: those of a cache cannot be written to
        labels=torch.tensor(objects.labels),
        crowd=torch.tensor(objects.crowd),
        masks=drawn,
        left=left,
        top=top,
        scale=scale,
    )


def _run_lengths(data: bytes, box: np.ndarray[Any, np.dtype[np.float32]], size: tuple[int, int]) -> RunLengths:
    """An encoded mask, or where it is b"" the box, as COCO's run lengths; only its own part of the image is drawn."""
    mask = masks.decode(data) if data else masks.rectangle(box)
    x0, y0, x1, y1 = masks.bounds(mask)
    left, top = max(int(np.floor(x0)), 0), max(int(np.floor(y0)), 0)
    right, bottom = min(int(np.ceil(x1)), size[1]), min(int(np.ceil(y1)), size[0])
    bits = np.zeros((max(bottom - top, 0), max(right - left, 0)), np.uint8)
    masks.draw(mask, bits, 1.0, left, top)
    return encode(bits, left, top, size)
