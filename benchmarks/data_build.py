"""Cold build of a cache from JPEG photos of 500 x 375, with Ray on two CPUs.

    build_vs_plain         a loop in two plain threads that reads, decodes (cv2.imdecode), resizes (INTER_AREA) to the
                           same size and writes one raw file / our build (at least 0.8)
    build_vs_read_images   ray.data.read_images(size=...).write_parquet / our build (at least 2.5)

Ours lists the folder, decodes, shrinks, writes, hashes, and opens the finished cache. The photos are in the page cache;
one Ray is up, and its workers have built a small cache before (their first imports take some 2 s). They take turns;
read_images, which takes long, has one.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from benchmarks._made import write_photos
from benchmarks._own_ray import own_ray
from benchmarks._timing import Seconds, print_table, ratio
from orchestrator.data.build import build_cache
from orchestrator.data.cache import Stored, stored_side
from orchestrator.data.images import store_size
from orchestrator.data.manifest import read_manifest

IMGSZ = 224
PLAIN, OURS, READ_IMAGES = "two plain threads", "our build", "read_images.write_parquet"


def plain(paths: Sequence[Path], side: int, file: Path) -> None:
    cv2.setNumThreads(0)
    lock = threading.Lock()
    with file.open("wb") as out, ThreadPoolExecutor(2) as pool:

        def work(path: Path) -> None:
            pixels = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR_RGB)
            assert pixels is not None
            height, width = store_size(pixels.shape[0], pixels.shape[1], side, "short")
            small = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
            with lock:
                out.write(small.data)

        for _ in pool.map(work, paths):
            pass


def ours(photos: Path, side: int, folder: Path) -> None:
    manifest = read_manifest(str(photos), "imagefolder")
    cache = build_cache(folder / "cache", manifest, Stored("imagefolder", side), 0.0, lambda done, total: None)
    assert len(cache) == len(manifest)
    cache.close()


def read_images(photos: Path, side: int, folder: Path) -> None:
    import ray.data

    size = store_size(375, 500, side, "short")
    ray.data.read_images(str(photos), size=size, mode="RGB").write_parquet(str(folder))


def timed(work: Callable[[Path], None], scratch: Path) -> float:
    """Seconds of work in an empty folder, which is removed."""
    scratch.mkdir()
    started = time.perf_counter()
    work(scratch)
    seconds = time.perf_counter() - started
    shutil.rmtree(scratch)
    return seconds


def compare(photos: Path, paths: Sequence[Path], scratch: Path, rounds: int) -> Seconds:
    side = stored_side(IMGSZ, 0.0)
    contenders = {
        PLAIN: lambda folder: plain(paths, side, folder / "raw"),
        OURS: lambda folder: ours(photos, side, folder),
        READ_IMAGES: lambda folder: read_images(photos, side, folder),
    }
    seconds: Seconds = {name: [] for name in contenders}
    for number in range(rounds):
        for name, work in contenders.items():
            if number == 0 or name != READ_IMAGES:
                seconds[name].append(timed(work, scratch))
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, own_ray(2**30):
        photos, few, scratch = (Path(name) / part for part in ("photos", "few", "scratch"))
        paths = write_photos(photos, arguments.images)
        megabytes = sum(path.stat().st_size for path in paths) / 1e6
        write_photos(few, 256)
        timed(lambda folder: ours(few, stored_side(IMGSZ, 0.0), folder), scratch)
        seconds = compare(photos, paths, scratch, arguments.rounds)
    print_table(f"{len(paths)} photos, {megabytes:.0f} MB", seconds, len(paths))
    first = {name: values[:1] for name, values in seconds.items()}
    print(f"build_vs_plain: {ratio(seconds, PLAIN, OURS):.2f}")
    print(f"build_vs_read_images: {ratio(first, READ_IMAGES, OURS):.2f}")


if __name__ == "__main__":
    main()
