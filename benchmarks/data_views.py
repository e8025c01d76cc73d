"""Random views of stored images, 256 px to 224 px, against torchvision.transforms.v2 per sample, in one thread.

    crop_vs_torchvision       random crop, zoom and flip to uint8 (at least 3)
    complete_vs_torchvision   the same to a normalised float batch (at least 6)

Ours are `train_view` into a reused batch buffer and the classifier's `prepare`. Theirs are RandomResizedCrop and
RandomHorizontalFlip, then ToDtype, Normalize and torch.stack, on tensors in channels_last memory, which v2 resizes
faster. They take turns batch by batch.
"""

from __future__ import annotations

import argparse
from itertools import count

import numpy as np
import torch
from torchvision.transforms import v2

from benchmarks._made import BATCH
from benchmarks._timing import Seconds, print_table, ratio, take_turns
from orchestrator.data.loader import ring_memory
from trainables.augment import Augmentation, train_view
from trainables.contracts import Batch
from trainables.order import draws
from trainables.pixels import Normalization
from trainables.recipe import Recipe
from trainables.tasks import build_task

SIDE = 256
HOW = Augmentation(scale=0.5, fliplr=0.5)
"""The defaults of a run."""


def compare(size: int, rounds: int) -> Seconds:
    images = np.random.default_rng(0).integers(0, 256, (8 * BATCH, SIDE, SIDE, 3), np.uint8)
    tensors = torch.from_numpy(images).permute(0, 3, 1, 2)
    parts = [range(start, start + BATCH) for start in range(0, len(images), BATCH)]
    steps = count()
    keys = np.arange(BATCH, dtype=np.uint64)
    memory = ring_memory(BATCH * size * size * 3).view(BATCH, size, size, 3)
    out, task, device = memory.numpy(), build_task(Recipe(imgsz=size)), torch.device("cpu")
    batch = Batch(memory.permute(0, 3, 1, 2), torch.zeros(BATCH, dtype=torch.int64), np.arange(BATCH), BATCH)
    normalization = Normalization()
    crop = v2.Compose([v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip(HOW.fliplr)])
    complete = v2.Compose(
        [crop, v2.ToDtype(torch.float32, scale=True), v2.Normalize(normalization.mean, normalization.std)]
    )

    def ours() -> None:
        step = next(steps)
        numbers = draws(0, step, keys, HOW.draws)
        for i, position in enumerate(parts[step % len(parts)]):
            train_view(images[position], out[i], HOW, numbers[i])

    def ours_complete() -> None:
        ours()
        task.prepare(batch, device, train=True)

    def theirs() -> None:
        for position in parts[next(steps) % len(parts)]:
            crop(tensors[position])

    def theirs_complete() -> None:
        torch.stack([complete(tensors[position]) for position in parts[next(steps) % len(parts)]])

    contenders = {
        "views, uint8": ours,
        "torchvision, uint8": theirs,
        "views, float batch": ours_complete,
        "torchvision, float batch": theirs_complete,
    }
    return take_turns(contenders, rounds, warm_up=3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--imgsz", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=100)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    seconds = compare(arguments.imgsz, arguments.rounds)
    print_table(f"{SIDE} to {arguments.imgsz} px, batches of {BATCH}, one thread", seconds, BATCH)
    print(f"crop_vs_torchvision: {ratio(seconds, 'torchvision, uint8', 'views, uint8'):.2f}")
    print(f"complete_vs_torchvision: {ratio(seconds, 'torchvision, float batch', 'views, float batch'):.2f}")


if __name__ == "__main__":
    main()
