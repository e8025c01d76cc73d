"""A data set that a model learns in a few steps: noisy images of one colour each, as ROOT/SPLIT/CLASS/NUMBER.png."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

CLASSES = ("blue", "green", "red")
"""In the order of their index, which is that of OpenCV's channels."""
SIDE = 12
"""Height and width of the images, in pixels."""

TRAIN, VAL = (8, 7, 7), (4, 3, 0)
"""Images per class: no number of workers divides their sums, and the last class has none for validation."""


def write_colours(root: Path, splits: Mapping[str, Sequence[int]] | None = None) -> Path:
    """Write the images of each split; the numbers are those of each class."""
    random = np.random.default_rng(0)
    for split, counts in (splits or {"train": TRAIN, "val": VAL}).items():
        for channel, (name, count) in enumerate(zip(CLASSES, counts, strict=True)):
            for number in range(count):
                image = random.integers(0, 200, (SIDE, SIDE, 3), np.uint8)
                image[:, :, channel] += 55
                folder = root / split / name
                folder.mkdir(parents=True, exist_ok=True)
                assert cv2.imwrite(str(folder / f"{number}.png"), image)
    return root


def ids(root: Path, split: str) -> list[str]:
    """The sample ids of a split: paths relative to the root."""
    return sorted(path.relative_to(root).as_posix() for path in (root / split).rglob("*.png"))
