"""What the training loop costs: `fit` against a minimal hand-written loop, and what an epoch's report blocks.

Both loops train the same model with the same loss, optimizer, threads and precision, and take each batch in turns;
their losses must be equal. For each task it prints a table and

    classify_time_ratio, accumulate_time_ratio (the same in four parts per step), detect_time_ratio, segment_time_ratio
                      time of a step in `fit` / in the hand-written loop, the median over all steps (at most 1.02)
    report_block_ms   what `report` with a checkpoint blocks beyond the time to write the file (below 20)
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from orchestrator.data.wrapped import WrappedData
from trainables import checkpoint
from trainables.contracts import Batch, Metrics, State, Targets
from trainables.local import LocalRuntime
from trainables.loop import fit
from trainables.memory import MemoryData
from trainables.optim import build_optimizer, choose
from trainables.order import seed_of
from trainables.recipe import Recipe
from trainables.tasks import build_task

CLASSES = tuple("abcdefghij")
OBJECTS = 5
"""Of each image."""
SETTINGS: dict[str, dict[str, Any]] = {
    "classify": {"model": "resnet18", "imgsz": 96, "batch": 32, "images": 256},
    "accumulate": {"task": "classify", "model": "resnet18", "imgsz": 96, "batch": 32, "micro_batch": 8, "images": 256},
    "detect": {"model": "ssdlite320_mobilenet_v3_large", "imgsz": 160, "batch": 8, "images": 64},
    "segment": {"model": "maskrcnn_mobilenet_v3_large_fpn", "imgsz": 128, "batch": 4, "images": 16},
}
"""Of each task: light models at small sizes, where the loop's own share of a step is largest."""


class TimedRuntime(LocalRuntime):
    """Notes the seconds that each report with a state blocks."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.blocked: list[float] = []

    def report(self, metrics: Metrics, state: State | None) -> None:
        started = time.perf_counter()
        super().report(metrics, state)
        if state is not None:
            self.blocked.append(time.perf_counter() - started)


def make_data(task: str, images: int, size: int, batch: int) -> MemoryData:
    """Noise with random labels; one image validates."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (images + 1, size, size, 3), np.uint8)
    labels = generator.integers(0, len(CLASSES), images + 1)
    if task == "classify":
        return MemoryData(pixels, labels, CLASSES, images, batch)
    objects = [_objects(size, task == "segment", generator) for _ in range(images + 1)]
    return MemoryData(pixels, np.full_like(labels, -1), CLASSES, images, batch, objects=objects)


def _objects(size: int, masks: bool, generator: np.random.Generator) -> Targets:
    """Boxes of an eighth to a half of the image, with rectangles as masks."""
    sides = generator.uniform(size / 8, size / 2, (OBJECTS, 2))
    corners = generator.uniform(0, 1, (OBJECTS, 2)) * (size - sides)
    boxes = np.concatenate([corners, corners + sides], 1).astype(np.float32)
    drawn = np.zeros((OBJECTS, size, size), np.uint8)
    for mask, (x0, y0, x1, y1) in zip(drawn, boxes.astype(int).tolist(), strict=True):
        mask[y0 : y1 + 1, x0 : x1 + 1] = 1
    labels = torch.from_numpy(generator.integers(0, len(CLASSES), OBJECTS))
    crowd = torch.zeros(OBJECTS, dtype=torch.bool)
    return Targets(torch.from_numpy(boxes), labels, crowd, torch.from_numpy(drawn) if masks else None)


class ByHand:
    """The loop that one would write without us, as one step after the other."""

    def __init__(self, recipe: Recipe, data: MemoryData) -> None:
        torch.manual_seed(seed_of(recipe.seed))
        self.recipe, self.task, self.device = recipe, build_task(recipe), torch.device("cpu")
        model = self.task.build_model(data.info)
        self.model = model.to(memory_format=torch.channels_last).train()
        self.optimizer = build_optimizer(
            choose(recipe, data.steps * recipe.total_epochs), self.model, recipe.weight_decay
        )

    def step(self, batch: Batch, seeds: Callable[[int], int]) -> float:
        """One step; `seeds` gives that of each part, for what the model draws (dropout, sampling)."""
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for number, part in enumerate(batch.split(self.recipe.micro_batch or len(batch))):
            torch.manual_seed(seeds(number))
            inputs = self.task.prepare(part, self.device, train=True)
            loss = self.task.loss(self.model, inputs)["loss"] * (len(part) / len(batch))
            loss.backward()
            total += loss.item()
        self.optimizer.step()
        return total

    def state(self) -> State:
        tensors = checkpoint.optimizer_tensors(self.optimizer, self.model)
        return State(self.model.state_dict(), tensors, {})


class InTurns(WrappedData):
    """Data that lets the other loop take each batch first, and times both."""

    def __init__(self, data: MemoryData, hand: ByHand, clock: Callable[[], float]) -> None:
        super().__init__(data)
        self.hand, self.clock = hand, clock
        self.seconds: list[list[tuple[float, float]]] = []
        """By hand and in `fit`, of each step of each epoch."""
        self.losses: list[float] = []
        """By hand, of each epoch."""

    def train(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        steps: list[tuple[float, float]] = []
        self.seconds.append(steps)
        total = 0.0
        for step, batch in enumerate(self.data.train(epoch)):
            seeds = partial(_seed, self.hand.recipe.seed, epoch, step)
            started = self.clock()
            total += self.hand.step(batch, seeds) * len(batch)
            handed_out = self.clock()
            yield batch
            steps.append((handed_out - started, self.clock() - handed_out))
        self.losses.append(total / self.info.train)


def _seed(seed: int, epoch: int, step: int, part: int) -> int:
    """As `fit` seeds the parts of a step on rank 0."""
    return seed_of(seed, epoch, step, part, 0)


def compare(name: str, epochs: int, changes: dict[str, Any], clock: Callable[[], float]) -> float:
    """Print the table of a task and its ratio. Returns what a report blocks beyond writing, in milliseconds."""
    settings = {"task": name} | SETTINGS[name] | changes
    images, task = settings.pop("images"), str(settings["task"])
    recipe = Recipe.model_validate(
        settings
        | {"epochs": epochs + 1, "warmup_epochs": 0.0, "schedule": "constant", "lr": 1e-3}
        | {"optimizer": "SGD", "amp": False, "channels_last": True, "val_interval": 0, "patience": 0}
    )
    assert recipe.imgsz is not None
    plain = make_data(task, images, recipe.imgsz, recipe.batch)
    data = InTurns(plain, ByHand(recipe, plain), clock)
    rows: list[Metrics] = []
    written: list[float] = []
    with tempfile.TemporaryDirectory() as folder:

        def on_report(metrics: Metrics, state: State | None) -> None:
            if state is not None:
                rows.append(metrics)

        with TimedRuntime(Path(folder), on_report, device=torch.device("cpu")) as runtime:
            fit(recipe, build_task(recipe), data, runtime)
        for _ in range(3):
            started = time.perf_counter()
            checkpoint.save(Path(folder) / "written", checkpoint.capture(data.hand.state()))
            written.append(time.perf_counter() - started)
    print(f"{name}: {recipe.model}, {recipe.imgsz} px, batch {recipe.batch}, {torch.get_num_threads()} threads")
    print(f"{'epoch':>5} {'by hand ms/step':>16} {'fit ms/step':>12} {'ratio':>7} {'loss':>9} {'report ms':>10}")
    measured = list(zip(data.seconds, rows, data.losses, runtime.blocked, strict=True))[1:]  # the first warms up
    for steps, row, loss, blocked in measured:
        assert abs(row["train_loss"] - loss) < 1e-4 * abs(loss), f"the loops differ: {row['train_loss']} and {loss}"
        hand, mine = (1e3 * statistics.median(column) for column in zip(*steps, strict=True))
        print(f"{row['epoch']:5} {hand:16.1f} {mine:12.1f} {mine / hand:7.3f} {loss:9.4f} {1e3 * blocked:10.1f}")
    ratios = [mine / hand for steps, *_ in measured for hand, mine in steps]
    print(f"{name}_time_ratio: {statistics.median(ratios):.3f}\n", flush=True)
    return 1e3 * (statistics.median(runtime.blocked[1:]) - statistics.median(written))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"of {', '.join(SETTINGS)}; default: all")
    parser.add_argument("--epochs", type=int, default=5, help="that are measured, after one that is not")
    for name, kind in (("model", str), ("imgsz", int), ("batch", int), ("images", int)):
        parser.add_argument(f"--{name}", type=kind)
    parser.add_argument(
        "--cpu-time", action="store_true", help="in place of the clock's: for a busy machine, with OMP_NUM_THREADS=1"
    )
    arguments = parser.parse_args()
    clock = time.thread_time if arguments.cpu_time else time.perf_counter
    changes = {k: v for k, v in vars(arguments).items() if k in SETTINGS["classify"] and v is not None}
    blocks = [compare(task, arguments.epochs, changes, clock) for task in arguments.tasks or SETTINGS]
    print(f"report_block_ms: {max(0.0, *blocks):.1f}")


if __name__ == "__main__":
    main()
