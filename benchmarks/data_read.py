"""Reading a warm cache: the bare gather, the loader as training uses it, and the first batch.

    warm_gather_of_memcpy   memcpy of the same bytes, batch after batch as the shards hold them / a gather of shuffled
                            images from the shards, both into one reused buffer, one thread (at least 0.85, goal 0.95)
    loader_vs_ray_data      an epoch of Ray Data, materialised and shuffled locally / of our loader (at least 2)
    loader_vs_torch         an epoch of torch's DataLoader with 2 workers over a memory map / of our loader (at least 3)
    first_batch_ms          to open a cache and make its first batch (at most 50)

The gather and memcpy take turns batch by batch, the loaders epoch by epoch. What the others need to start (torch's
workers, Ray, its blocks) is there before and stays.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from itertools import count, cycle
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks._made import BATCH, noise_cache, view_of
from benchmarks._own_ray import own_ray
from benchmarks._timing import print_table, ratio, take_turns
from orchestrator.data.cache import Cache
from orchestrator.data.images import Image
from orchestrator.data.loader import Loader, ring_memory
from orchestrator.data.shards import Shard
from trainables.order import order

SHUFFLE = 1000
"""Images in Ray Data's shuffle buffer."""


class Mapped(Dataset[tuple[torch.Tensor, int]]):
    """What one writes for torch: a memory map of the pixels, and a label per image."""

    def __init__(self, path: Path, labels: list[int]) -> None:
        self.pixels, self.labels = np.load(path, mmap_mode="c"), labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.from_numpy(self.pixels[index]), self.labels[index]


def compare_gather(cache: Cache, rounds: int) -> float:
    blocks = [shard.block for path in sorted(cache.folder.glob("*.arrow")) if (shard := Shard(path)).block is not None]
    out = ring_memory(blocks[0][:BATCH].nbytes).numpy().reshape(blocks[0][:BATCH].shape)
    stored = [block[start : start + BATCH] for block in blocks for start in range(0, len(block) - BATCH + 1, BATCH)]

    def shuffled() -> Iterator[list[int]]:
        for epoch in count():
            sequence = order(0, epoch, cache.keys).tolist()
            yield from (sequence[start : start + BATCH] for start in range(0, len(cache) - BATCH + 1, BATCH))

    batches, pieces = shuffled(), cycle(stored)

    def gather() -> None:
        for i, position in enumerate(next(batches)):
            out[i] = cache.image(position)

    def memcpy() -> None:
        np.copyto(out, next(pieces))

    seconds = take_turns({"gather": gather, "memcpy": memcpy}, rounds * len(stored), warm_up=2 * len(stored))
    print_table(f"{len(cache)} images, {cache.bytes / 1e6:.0f} MB, batches of {BATCH}, one thread", seconds, BATCH)
    return ratio(seconds, "memcpy", "gather")


def compare_loaders(cache: Cache, pixels: Image, folder: Path, rounds: int) -> tuple[float, float]:
    import ray.data

    loader, epochs = Loader(cache, view_of(cache, pixels.shape[1])), iter(range(1 + rounds))
    np.save(folder / "pixels.npy", pixels)
    dataset = Mapped(folder / "pixels.npy", cache.labels.tolist())
    of_torch = DataLoader(dataset, BATCH, shuffle=True, num_workers=2, persistent_workers=True)
    of_ray = ray.data.from_numpy(np.array_split(pixels, 4)).materialize()

    def take_all(batches: Iterable[object]) -> None:
        assert sum(1 for _ in batches) == loader.steps

    contenders = {
        "Loader.train": lambda: take_all(loader.train(next(epochs))),
        "Ray Data": lambda: take_all(
            of_ray.iter_torch_batches(batch_size=BATCH, local_shuffle_buffer_size=SHUFFLE, local_shuffle_seed=0)
        ),
        "torch DataLoader": lambda: take_all(of_torch),
    }
    seconds = take_turns(contenders, rounds)
    print_table(f"the same images through a loader, {rounds} epochs", seconds, len(cache))
    return ratio(seconds, "Ray Data", "Loader.train"), ratio(seconds, "torch DataLoader", "Loader.train")


def first_batch(folder: Path, imgsz: int, rounds: int) -> float:
    milliseconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        cache = Cache(folder)
        for _ in Loader(cache, view_of(cache, imgsz)).train(0):
            milliseconds.append((time.perf_counter() - started) * 1e3)
            break
        cache.close()
    print(f"first batch of {len(cache)} images, ms: " + ", ".join(f"{value:.1f}" for value in milliseconds))
    return statistics.median(milliseconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--imgsz", type=int, default=224)
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--first-batch-images", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder, imgsz, rounds = Path(name), arguments.imgsz, arguments.rounds
        noise_cache(folder / "large", arguments.first_batch_images, imgsz).close()
        first = first_batch(folder / "large", imgsz, rounds)
        cache = noise_cache(folder / "cache", arguments.images, imgsz)
        gather = compare_gather(cache, rounds)
        pixels = np.stack([cache.image(position) for position in range(len(cache))])
        with own_ray(3 * pixels.nbytes + 2**28):
            ray_data, torch_loader = compare_loaders(cache, pixels, folder, rounds)
    print(f"warm_gather_of_memcpy: {gather:.2f}")
    print(f"loader_vs_ray_data: {ray_data:.2f}")
    print(f"loader_vs_torch: {torch_loader:.2f}")
    print(f"first_batch_ms: {first:.1f}")


if __name__ == "__main__":
    main()
