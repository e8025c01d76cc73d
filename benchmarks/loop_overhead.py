"""What the training loop costs: `fit` against a minimal hand-written loop, and what an epoch's report blocks.

Both loops train the same model on the same batches with the same threads and precision, in turns; their losses must be
equal. Prints a table and

    loop_time_ratio   time of an epoch in `fit` / in the hand-written loop (at most 1.02)
    report_block_ms   what `report` with a checkpoint blocks beyond the time to write the file (below 20)
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from trainables import checkpoint
from trainables.contracts import Metrics, State
from trainables.local import LocalRuntime
from trainables.loop import fit
from trainables.memory import MemoryData
from trainables.optim import build_optimizer, choose
from trainables.order import seed_of
from trainables.recipe import Recipe
from trainables.tasks import build_task

CLASSES = tuple("abcdefghij")


class TimedRuntime(LocalRuntime):
    """Notes the seconds that each report with a state blocks."""

    blocked: float = 0.0

    def report(self, metrics: Metrics, state: State | None) -> None:
        started = time.perf_counter()
        super().report(metrics, state)
        if state is not None:
            self.blocked = time.perf_counter() - started


def make_data(images: int, size: int, batch: int) -> MemoryData:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (images + 1, size, size, 3), np.uint8)
    return MemoryData(pixels, generator.integers(0, len(CLASSES), images + 1), CLASSES, images, batch)


def ours(recipe: Recipe, data: MemoryData, folder: Path) -> tuple[float, float, float]:
    """Seconds of the epoch's steps, its mean loss, seconds that the report blocked."""
    rows: list[Metrics] = []
    with TimedRuntime(
        folder, lambda m, state: rows.append(m) if state else None, device=torch.device("cpu")
    ) as runtime:
        fit(recipe, build_task(recipe), data, runtime)
    return data.info.train / rows[0]["images_per_second"], rows[0]["train_loss"], runtime.blocked


def by_hand(recipe: Recipe, data: MemoryData) -> tuple[float, float, State]:
    """The loop that one would write without us: seconds, mean loss, and the state at the end."""
    torch.manual_seed(seed_of(recipe.seed))
    task = build_task(recipe)
    model = task.build_model(data.info).to(memory_format=torch.channels_last)
    optimizer = build_optimizer(choose(recipe, data.steps), model, recipe.weight_decay)
    device, total = torch.device("cpu"), 0.0
    model.train()
    started = time.perf_counter()
    for batch in data.train(0):
        inputs = task.prepare(batch, device, train=True)
        optimizer.zero_grad(set_to_none=True)
        loss = task.loss(model, inputs)["loss"]
        loss.backward()
        optimizer.step()
        total += loss.item() * len(batch)
    seconds = time.perf_counter() - started
    tensors = checkpoint.optimizer_tensors(optimizer, model)
    return seconds, total / data.info.train, State(model.state_dict(), tensors, {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--imgsz", type=int, default=96)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    recipe = Recipe(
        model=arguments.model,
        imgsz=arguments.imgsz,
        batch=arguments.batch,
        epochs=1,
        warmup_epochs=0.0,
        schedule="constant",
        optimizer="SGD",
        amp=False,
    )
    data = make_data(arguments.images, arguments.imgsz, arguments.batch)
    fit_seconds, hand_seconds, blocked, written = [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.rounds + 1):
            hand, hand_loss, state = by_hand(recipe, data)
            mine, loss, block = ours(recipe, data, Path(folder))
            assert abs(loss - hand_loss) < 1e-6, f"the loops differ: {loss} and {hand_loss}"
            started = time.perf_counter()
            checkpoint.save(Path(folder) / "written", checkpoint.capture(state))
            write = time.perf_counter() - started
            if number:  # the first round warms up
                fit_seconds.append(mine)
                hand_seconds.append(hand)
                blocked.append(block)
                written.append(write)
    ratios = [mine / hand for mine, hand in zip(fit_seconds, hand_seconds, strict=True)]
    print(f"{arguments.model}, {arguments.imgsz} px, batch {arguments.batch}, {torch.get_num_threads()} threads")
    print(f"{'round':>5} {'by hand s':>10} {'fit s':>8} {'ratio':>7} {'report ms':>10} {'write ms':>9}")
    for number, row in enumerate(zip(hand_seconds, fit_seconds, ratios, blocked, written, strict=True), 1):
        print(f"{number:5} {row[0]:10.3f} {row[1]:8.3f} {row[2]:7.3f} {1e3 * row[3]:10.1f} {1e3 * row[4]:9.1f}")
    print(f"loop_time_ratio: {statistics.median(ratios):.3f}")
    print(f"report_block_ms: {max(0.0, 1e3 * (statistics.median(blocked) - statistics.median(written))):.1f}")


if __name__ == "__main__":
    main()
