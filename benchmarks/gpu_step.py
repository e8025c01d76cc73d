"""Whether the data keep up with a GPU: ResNet-50 at 224 with mixed precision and channels_last, on one GPU.

`fit` trains on images from a cache, cropped, zoomed and mirrored by the loader, and on one batch that lies in the GPU's
memory already, epoch by epoch in turns. Prints a table and

    gpu_real_of_synthetic   images per second from the cache / of the batch on the GPU (at least 0.97)
    gpu_data_wait_fraction  share of the time that the training waits for images of the cache (below 0.01)
    gpu_memory_peak_bytes   of the training

Without a CUDA GPU it says so and ends.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks._made import CLASSES, noise_cache, view_of
from orchestrator.data.loader import Loader
from orchestrator.data.wrapped import WrappedData
from orchestrator.launch import cpu_count
from trainables.augment import Augmentation
from trainables.contracts import Batch, Metrics, State
from trainables.local import LocalRuntime
from trainables.loop import fit
from trainables.recipe import Recipe
from trainables.tasks import build_task

STORED = 256
"""Side of the cached images: room for crops of 224."""


class InTurns(WrappedData):
    """Every other epoch is of one batch that is on the GPU already."""

    def __init__(self, data: Loader, batch: Batch) -> None:
        super().__init__(data)
        self._batch = batch

    def train(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        if epoch % 2 == 0:
            yield from self.data.train(epoch, first_step)
            return
        for _ in range(first_step, self.steps):
            yield self._batch


@dataclass(frozen=True)
class Measured:
    """Medians over the epochs of each kind."""

    real: float
    synthetic: float
    """Images per second."""
    wait: float
    memory: int
    rows: list[Metrics]

    @property
    def ratio(self) -> float:
        """Of neighbouring epochs, the median."""
        rates: list[float] = [row["images_per_second"] for row in self.rows]
        return statistics.median(real / made for real, made in zip(rates[::2], rates[1::2], strict=True))


def measure(model: str, imgsz: int, batch: int, steps: int, rounds: int, folder: Path) -> Measured:
    """Train `rounds` epochs of so many steps on each kind of data, after one of each that warms up. Needs a GPU."""
    recipe = Recipe.model_validate(
        {"model": model, "imgsz": imgsz, "batch": batch, "epochs": 2 * (rounds + 1), "optimizer": "SGD", "lr": 1e-3}
        | {"amp": True, "channels_last": True, "val_interval": 0, "patience": 0}
    )
    device = torch.device("cuda")
    how = Augmentation(scale=recipe.scale, fliplr=recipe.fliplr)
    rows: list[Metrics] = []

    def on_report(metrics: Metrics, state: State | None) -> None:
        if state is not None:
            rows.append(metrics)

    with closing(noise_cache(folder / "cache", batch * steps, round(imgsz * STORED / 224))) as cache:
        loader = Loader(cache, view_of(cache, imgsz, how, batch), threads=cpu_count())
        images = torch.randint(0, 256, (batch, imgsz, imgsz, 3), dtype=torch.uint8, device=device).permute(0, 3, 1, 2)
        labels = torch.randint(0, len(CLASSES), (batch,), device=device)
        made = Batch(images, labels, torch.arange(batch).numpy(), batch)
        with LocalRuntime(on_report=on_report, device=device) as runtime:
            fit(recipe, build_task(recipe), InTurns(loader, made), runtime)
    counted = rows[2:]
    return Measured(
        real=statistics.median(row["images_per_second"] for row in counted[::2]),
        synthetic=statistics.median(row["images_per_second"] for row in counted[1::2]),
        wait=statistics.median(row["data_wait_fraction"] for row in counted[::2]),
        memory=max(row["gpu_memory_peak_bytes"] for row in counted),
        rows=counted,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--imgsz", type=int, default=224)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=60, help="per epoch")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu_step: this machine has no CUDA GPU, so nothing was measured")
        return
    name, version = torch.cuda.get_device_name(), torch.__version__
    print(
        f"{arguments.model}, {arguments.imgsz} px, batch {arguments.batch}; {name}, {cpu_count()} CPUs, torch {version}"
    )
    with tempfile.TemporaryDirectory() as folder:
        options = (arguments.model, arguments.imgsz, arguments.batch, arguments.steps, arguments.rounds)
        found = measure(*options, Path(folder))
    print(f"{'epoch':>5} {'data':>9} {'images/s':>9} {'data wait':>9} {'GPU use':>8}")
    for number, row in enumerate(found.rows):
        kind = "synthetic" if number % 2 else "cache"
        use = f"{row['gpu_utilization']:.0%}" if row["gpu_utilization"] is not None else "-"
        wait = f"{row['data_wait_fraction']:.2%}"
        print(f"{row['epoch']:5} {kind:>9} {row['images_per_second']:9.0f} {wait:>9} {use:>8}")
    print(f"images per second: {found.real:.0f} from the cache, {found.synthetic:.0f} synthetic")
    print(f"gpu_real_of_synthetic: {found.ratio:.3f}")
    print(f"gpu_data_wait_fraction: {found.wait:.4f}")
    print(f"gpu_memory_peak_bytes: {found.memory} ({found.memory / 2**30:.1f} GiB)")


if __name__ == "__main__":
    main()
