"""What four trials at once take in memory: one cache, mapped by all.

    trials_pss_ratio   sum of PSS of the four trials' processes over that of four without a cache to speak of, plus the
                       cache once (at most 1.10)

PSS (proportional set size) counts a page that n processes share as 1/n in each: the sum is what they take together.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil

from orchestrator.config import Config

TRIALS, SIDE = 4, 224


def write_images(folder: Path, count: int) -> Path:
    random = np.random.default_rng(0)
    for number in range(count):
        image = random.integers(0, 256, (SIDE // 8, SIDE // 8, 3), np.uint8)
        split = "val" if number % 8 == 0 else "train"
        path = folder / split / f"class{number // 8 % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_NEAREST))
    return folder


def config(folder: Path, data: Path, address: str) -> Config:
    return Config.model_validate(
        {
            "data": str(data),
            "model": "squeezenet1_1",
            "imgsz": 64,
            "multi_scale": 0.0,
            "epochs": 2,
            "batch": 64,
            "scale": 0.0,
            "amp": False,
            "channels_last": False,
            "storage": str(folder / "runs"),
            "cache_dir": str(folder / "cache"),
            "cache": "disk",
            "scaling": {"workers": 1, "address": address},
            "tune": {
                "space": {"lr": {"loguniform": [1e-4, 1e-3]}},
                "searcher": "random",
                "scheduler": "none",
                "samples": TRIALS + 1,
                "concurrent": TRIALS,
            },
        }
    )


def peak_pss(made: Config) -> tuple[int, int]:
    """The most that the trials' processes take together, and the bytes of the cache."""
    from orchestrator.tune import tune

    peaks: list[int] = [0]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            sizes = [_pss(process) for process in psutil.process_iter() if _is_trial(process)]
            if len(sizes) == TRIALS:
                peaks.append(sum(sizes))

    thread = threading.Thread(target=watch)
    thread.start()
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        summary = tune(made).summary
    done.set()
    thread.join()
    return max(peaks), summary["cache"]["bytes"]


def _is_trial(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return process.name().startswith("ray::") and "Trainable" in " ".join(process.cmdline())
    return False


def _pss(process: psutil.Process) -> int:
    with suppress(OSError, StopIteration):
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=40_000)
    arguments = parser.parse_args()
    from ray.cluster_utils import Cluster

    from orchestrator import launch

    for name, value in launch.QUIET.items():
        os.environ.setdefault(name, value)
    cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": TRIALS, "include_dashboard": False})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        small, _ = peak_pss(config(folder, write_images(folder / "small", 160), cluster.address))
        large, cache = peak_pss(config(folder, write_images(folder / "large", arguments.images), cluster.address))
    cluster.shutdown()
    time.sleep(1)
    print(f"{TRIALS} trials: {large / 1e6:.0f} MB with a cache of {cache / 1e6:.0f} MB, {small / 1e6:.0f} MB without")
    print(f"trials_pss_ratio: {large / (small + cache):.2f}")


if __name__ == "__main__":
    main()
