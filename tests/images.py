"""Small image folders, as users have them: ROOT/SPLIT/CLASS/NUMBER.png."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

COLOURS = ("blue", "green", "red")
"""The classes, in the order of their index, which is that of OpenCV's channels."""
SIDE = 12
"""Height and width of the images, in pixels."""

TRAIN, VAL = (8, 7, 7), (4, 3, 0)
"""Images per class: no number of workers divides their sums, and the last class has none for validation."""


def write_folder(root: Path, splits: Mapping[str, Sequence[int]] | None = None) -> Path:
    """Noisy images of one colour each, which is their class; `splits` gives the images per class."""
    random = np.random.default_rng(0)
    for split, counts in (splits or {"train": TRAIN, "val": VAL}).items():
        for channel, (name, count) in enumerate(zip(COLOURS, counts, strict=True)):
            for number in range(count):
                image = random.integers(0, 200, (SIDE, SIDE, 3), np.uint8)
                image[:, :, channel] += 55
                write(root / split / name / f"{number}.png", image)
    return root


def write(path: Path, image: np.ndarray) -> None:
    """Write BGR (or grey) pixels in the format that the suffix names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


def ids(root: Path, split: str) -> list[str]:
    """The sample ids of a split: paths relative to the root."""
    return sorted(path.relative_to(root).as_posix() for path in (root / split).rglob("*.png"))
