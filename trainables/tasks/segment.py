"""Instance segmentation: detection with a mask for each object, measured by COCO's mAP of boxes and of masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from trainables.average_precision import SEGMENTATION
from trainables.contracts import Mode
from trainables.tasks.detect import Detect


class Segment(Detect):
    """The instance segmentation task: its models also learn from masks, and give them as run lengths."""

    scores: ClassVar[Mapping[str, Mode]] = SEGMENTATION
    default_metric: ClassVar[str] = "mask_map"
    masks: ClassVar[bool] = True
