"""Small data sets and caches on disk, for the tests of the data plane."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from orchestrator.data.cache import ShardFile, Stored, hash_file
from orchestrator.data.images import Image
from orchestrator.data.objects import Objects
from orchestrator.data.shards import FORMAT_VERSION, Row, write_shard
from trainables.order import sample_keys


def write_image(path: Path, value: int = 100, height: int = 4, width: int = 5) -> None:
    """A picture of one grey value, stored without loss."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((height, width, 3), value, np.uint8))


def write_images(root: Path, counts: dict[str, int]) -> Path:
    """`counts` gives the number of images of each folder below `root`, as {"train/cat": 3}."""
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            write_image(root / folder / f"{i}.png", value=i)
    return root


def noise(height: int, width: int, seed: int = 0) -> Image:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def write_cache(folder: Path, rows: Sequence[Row], rows_per_shard: int = 8, **index: Any) -> Path:
    """A cache as the builder publishes it, without Ray."""
    folder.mkdir(parents=True)
    shards: list[dict[str, Any]] = []
    for start in range(0, len(rows), rows_per_shard):
        path, part = folder / f"shard-{len(shards):05d}.arrow", rows[start : start + rows_per_shard]
        write_shard(path, part)
        stat = path.stat()
        shards.append(asdict(ShardFile(path.name, len(part), stat.st_size, stat.st_mtime_ns, hash_file(path), [])))
    plan = {"name": "made", "images": len(rows), "rows_per_shard": rows_per_shard, "stored": asdict(Stored("test", 12))}
    content = {
        "format_version": FORMAT_VERSION,
        "stored": plan["stored"],
        "build_seconds": 1.5,
        "issues": [],
        "shards": shards,
    }
    (folder / "plan.json").write_text(json.dumps(plan))
    (folder / "index.json").write_text(json.dumps(content | index))
    return folder


def numbered_rows(train: int, val: int = 0, classes: int = 3, size: int = 12) -> list[Row]:
    """Samples whose pixels all have the number of the sample, so that a batch tells what is in it."""
    ids = [f"train/{i:03d}" for i in range(train)] + [f"val/{i:03d}" for i in range(train, train + val)]
    return [
        row(name, int(key), i % classes, np.full((size, size + i % 3, 3), i, np.uint8))
        for i, (name, key) in enumerate(zip(ids, sample_keys(ids), strict=True))
    ]


def row(name: str, key: int, label: int, pixels: Image | None, objects: Objects | None = None) -> Row:
    """A row whose pixels are at full scale."""
    height, width = (0, 0) if pixels is None else pixels.shape[:2]
    return Row(name, key, f"/images/{name}", label, height, width, pixels, objects)
