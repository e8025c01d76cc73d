"""Caches and photos made for the benchmarks, without Ray."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from benchmarks.decode import photo
from orchestrator.data.build import SHARD_BYTES
from orchestrator.data.cache import Cache
from orchestrator.data.images import Image
from orchestrator.data.loader import View
from tests.pictures import row, write_cache
from trainables.augment import Augmentation
from trainables.order import sample_keys

CLASSES = tuple("abcdefghij")
BATCH = 64
_DISTINCT = 256
"""Images of noise that are repeated over a cache."""
_PHOTO = (375, 500)
"""Height and width."""


def noise_cache(folder: Path, images: int, size: int) -> Cache:
    """A cache of square images in shards as large as the builder makes them; all its pages are in memory."""
    pixels = np.random.default_rng(0).integers(0, 256, (_DISTINCT, size, size, 3), np.uint8)
    ids = [f"train/{CLASSES[i % len(CLASSES)]}/{i:06d}.jpg" for i in range(images)]
    rows = [
        row(name, int(key), i % len(CLASSES), pixels[i % _DISTINCT])
        for i, (name, key) in enumerate(zip(ids, sample_keys(ids), strict=True))
    ]
    return Cache(write_cache(folder, rows, rows_per_shard=SHARD_BYTES // (4 * size * size)))


def view_of(cache: Cache, imgsz: int, augmentation: Augmentation | None = None, batch: int = BATCH) -> View:
    """All samples train; by default each view is the image as it is."""
    return View("made", "", CLASSES, imgsz, batch, 0, cache.keys, cache.keys[:0], augmentation or Augmentation())


def write_photos(folder: Path, count: int) -> list[Path]:
    """JPEG files of 500 x 375 in a folder per class, cut at random places and scales from `_originals`."""
    originals = _originals()
    for name in CLASSES:
        (folder / name).mkdir(parents=True)

    def write(number: int) -> Path:
        path = folder / CLASSES[number % len(CLASSES)] / f"{number:06d}.jpg"
        encoded = cv2.imencode(".jpg", _part(originals, number), [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
        path.write_bytes(encoded.tobytes())
        return path

    with ThreadPoolExecutor() as pool:
        return list(pool.map(write, range(count)))


def _originals() -> list[Image]:
    """The sharpest of the real photos that the tests use, else made ones."""
    root = Path(os.environ.get("ORCHESTRATOR_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
    found = sorted(path for name in ("nuts_coco", "veg_yolo") for path in (root / name).rglob("*.jp*g"))
    if found:
        return [cv2.imread(str(path)) for path in found]  # type: ignore[misc]
    made = [np.frombuffer(photo(600, 800, seed), np.uint8) for seed in range(32)]
    return [cv2.imdecode(content, cv2.IMREAD_COLOR) for content in made]  # type: ignore[misc]


def _part(originals: list[Image], number: int) -> Image:
    """A random window of one original, resized to _PHOTO."""
    generator = np.random.default_rng(number)
    original = originals[generator.integers(len(originals))]
    height, width = original.shape[:2]
    scale = generator.uniform(0.6, 1.0) * min(height / _PHOTO[0], width / _PHOTO[1])
    high, wide = round(_PHOTO[0] * scale), round(_PHOTO[1] * scale)
    top, left = generator.integers(height - high + 1), generator.integers(width - wide + 1)
    window = original[top : top + high, left : left + wide]
    return cv2.resize(window, _PHOTO[::-1], interpolation=cv2.INTER_AREA)  # type: ignore[return-value]
