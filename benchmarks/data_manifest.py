"""From a folder of images to a loader that is ready: what grows with the number of images, but the pixels.

    manifest_100k_s   seconds for 100,000 images (at most 30): `preflight` (lists the folder, makes the manifest and its
                      fingerprint, selects, checks), the cache opened, the loader, the order of an epoch and its first
                      batch

The files are hard links to a few small images, in a folder per class; the cache holds 8 x 8 pixels of each in as many
shards as images of 224 would fill. The table shows a tenth of the images, too: all steps grow linearly.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from orchestrator.config import Config
from orchestrator.data.build import SHARD_BYTES
from orchestrator.data.cache import Cache
from orchestrator.data.loader import Loader, View
from orchestrator.data.manifest import Manifest
from orchestrator.preflight import preflight
from tests.pictures import noise, row, write_cache, write_image
from trainables.order import order, sample_keys

CLASSES = 100
SIDE = 8
ROWS_PER_SHARD = SHARD_BYTES // (4 * 224**2)

T = TypeVar("T")
Steps = dict[str, float]
"""Seconds by what was done."""


def write_tree(folder: Path, images: int) -> Path:
    for name in range(CLASSES):
        first = folder / "train" / f"{name:03d}" / "000000.png"
        write_image(first, value=name, height=SIDE, width=SIDE)
        for number in range(1, images // CLASSES):
            first.with_name(f"{number:06d}.png").hardlink_to(first)
    return folder


def make_cache(folder: Path, manifest: Manifest) -> Path:
    ids, labels = manifest.table["id"].to_pylist(), manifest.table["label"].to_pylist()
    pixels = noise(SIDE, SIDE)
    rows = [row(name, int(key), label, pixels) for name, key, label in zip(ids, sample_keys(ids), labels, strict=True)]
    return write_cache(folder, rows, ROWS_PER_SHARD)


def measure(folder: Path, images: int) -> Steps:
    steps: Steps = {}

    def timed(name: str, work: Callable[[], T]) -> T:
        started = time.perf_counter()
        result = work()
        steps[name] = time.perf_counter() - started
        return result

    tree = write_tree(folder / "data", images)
    config = Config(data=str(tree), imgsz=SIDE, storage=str(folder / "runs"))
    checked, problems = timed("preflight", lambda: preflight(config))
    assert checked is not None, problems
    chosen, manifest = checked.selection, checked.manifest
    assert len(manifest) == images
    place = make_cache(folder / "cache", manifest)
    cache = timed("open the cache", lambda: Cache(place))
    view = View("made", manifest.fingerprint, manifest.classes, SIDE, 64, 0, chosen.train, chosen.val)
    loader = timed("make the loader", lambda: Loader(cache, view))
    timed("order of an epoch", lambda: order(0, 0, chosen.train))
    timed("first batch", loader.first_batch)
    cache.close()
    return steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    arguments = parser.parse_args()
    counts = arguments.images // 10, arguments.images
    results: list[Steps] = []
    for count in (10 * CLASSES, *counts):  # the first warms up
        with tempfile.TemporaryDirectory() as name:
            results.append(measure(Path(name), count))
    print(f"{'seconds for':18}" + "".join(f"{count:>10,}" for count in counts) + f"{'ratio':>8}")
    _, few, many = ({**steps, "in all": sum(steps.values())} for steps in results)
    for name, seconds in few.items():
        print(f"{name:18}{seconds:>10.3f}{many[name]:>10.3f}{many[name] / seconds:>8.1f}")
    print(f"manifest_{arguments.images // 1000}k_s: {many['in all']:.1f}")


if __name__ == "__main__":
    main()
