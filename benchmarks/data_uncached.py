"""Training without a cache: Ray Data decodes the next images while the model trains.

    uncached_overlap   an epoch / (decoding it alone + training on batches that are there); below 1

The model takes as many small steps on each batch as last about as long as decoding it. One task decodes, one thread
trains, so that on two CPUs neither takes time from the other.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from itertools import count
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from benchmarks._made import BATCH, CLASSES, view_of, write_photos
from benchmarks._own_ray import own_ray
from benchmarks._timing import Seconds, print_table, take_turns
from orchestrator.data.build import build_cache
from orchestrator.data.cache import Cache, Stored, stored_side
from orchestrator.data.loader import Loader
from orchestrator.data.manifest import read_manifest
from trainables.augment import Augmentation
from trainables.contracts import Batch


class Trainer:
    """A small convolutional net and SGD."""

    def __init__(self) -> None:
        self.repeats = 1
        """Steps on each batch."""
        layers = (nn.Conv2d(3, 16, 8, stride=8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.model = nn.Sequential(*layers, nn.Linear(16, len(CLASSES)))
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.01)

    def step(self, batch: Batch) -> None:
        images = batch.images.float() / 255
        for _ in range(self.repeats):
            self.optimizer.zero_grad()
            functional.cross_entropy(self.model(images), batch.labels).backward()
            self.optimizer.step()


def compare(cache: Cache, imgsz: int, rounds: int) -> tuple[Seconds, int]:
    loader = Loader(cache, view_of(cache, imgsz, Augmentation(scale=0.5, fliplr=0.5)))
    trainer, epochs, ready = Trainer(), count(), loader.first_batch()

    def decode() -> None:
        for _ in loader.train(next(epochs)):
            pass

    def train() -> None:
        for _ in range(loader.steps):
            trainer.step(ready)

    def epoch() -> None:
        for batch in loader.train(next(epochs)):
            trainer.step(batch)

    alone = take_turns({"decode": decode, "train": train}, 1)
    trainer.repeats = max(1, round(alone["decode"][0] / alone["train"][0]))
    return take_turns({"decode": decode, "train": train, "epoch": epoch}, rounds, warm_up=0), trainer.repeats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--imgsz", type=int, default=128)
    parser.add_argument("--images", type=int, default=24 * BATCH)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    stored = Stored("imagefolder", stored_side(arguments.imgsz, 0.0), pixels=False)
    with tempfile.TemporaryDirectory() as name, own_ray():
        photos = Path(name) / "photos"
        write_photos(photos, arguments.images)
        manifest = read_manifest(str(photos), stored.format)
        cache = build_cache(Path(name) / "cache", manifest, stored, 0.0, lambda done, total: None)
        seconds, repeats = compare(cache, arguments.imgsz, arguments.rounds)
        cache.close()
    print_table(
        f"{arguments.images} photos at {arguments.imgsz} px, {repeats} steps per batch", seconds, arguments.images
    )
    overlap = [e / (d + t) for d, t, e in zip(*seconds.values(), strict=True)]
    print(f"uncached_overlap: {statistics.median(overlap):.2f}")


if __name__ == "__main__":
    main()
