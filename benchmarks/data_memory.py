"""What a cache costs in memory when many processes of a machine read it.

    pss_of_cache   sum of PSS of 8 processes that each went through an epoch of the loader, less 8 times the same
                   process without a cache, over the bytes of the cache (at most 1.15)

The process without a cache is measured as 8 that read a small one, just enough to fill their buffers, whose size is
taken off.

PSS (proportional set size) counts a page that n processes share as 1/n in each: the sum is what they take together.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks._made import BATCH, noise_cache, view_of
from orchestrator.data.cache import Cache
from orchestrator.data.loader import RING, Loader


def read(folder: Path, imgsz: int) -> None:
    """The body of a reader: one epoch, then wait until the end of the input."""
    cache = Cache(folder)
    for _ in Loader(cache, view_of(cache, imgsz)).train(0):
        pass
    print("ready", flush=True)
    sys.stdin.read()


def pss(folder: Path, imgsz: int, readers: int) -> int:
    """Bytes that so many readers take together."""
    command = [sys.executable, __file__, "--imgsz", str(imgsz), "--read", str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    processes = [subprocess.Popen(command, **pipes) for _ in range(readers)]  # type: ignore[call-overload]
    try:
        for process in processes:
            assert process.stdout.readline().strip() == b"ready"
        return sum(_pss_of(process.pid) for process in processes)
    finally:
        for process in processes:
            process.communicate()


def _pss_of(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--imgsz", type=int, default=224)
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--readers", type=int, default=8)
    parser.add_argument("--read", type=Path, help="be a reader of this cache")
    arguments = parser.parse_args()
    imgsz, readers = arguments.imgsz, arguments.readers
    if arguments.read:
        read(arguments.read, imgsz)
        return
    with tempfile.TemporaryDirectory() as name:
        small = noise_cache(Path(name) / "small", RING * BATCH, imgsz)
        large = noise_cache(Path(name) / "large", arguments.images, imgsz)
        without, together = (pss(cache.folder, imgsz, readers) for cache in (small, large))
    print(f"{readers} readers, MB\n{'cache':>8} {'sum of PSS':>11}")
    for cache, taken in ((small, without), (large, together)):
        print(f"{cache.bytes / 1e6:>8.0f} {taken / 1e6:>11.0f}")
    print(f"pss_of_cache: {(together - (without - small.bytes)) / large.bytes:.2f}")


if __name__ == "__main__":
    main()
