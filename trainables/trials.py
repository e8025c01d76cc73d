"""Training steps on made-up images, as they are measured before a run: how long they take, and how much memory."""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from trainables.collectives import World
from trainables.contracts import Batch, DataInfo, Targets, Task
from trainables.ema import Ema
from trainables.headroom import Peak, is_out_of_memory, memory_limit, release_memory, resident
from trainables.norms import norms_in_eval, synchronise
from trainables.optim import build_optimizer, choose
from trainables.order import seed_of
from trainables.precision import Precision, choose_precision, loss_of
from trainables.recipe import Recipe

TIMED_STEPS = 3

Row = dict[str, Any]
"""What was measured: the way to train, seconds per step, images per second, bytes."""


@dataclass(frozen=True)
class Trial:
    """A way to train, as it is measured."""

    size: int
    precision: Precision
    compiled: bool = False

    def row(self) -> Row:
        return {
            "images": self.size,
            "precision": str(self.precision),
            "channels_last": self.precision.memory_format == torch.channels_last,
            "compile": self.compiled,
        }


class Bench:
    """One model on this rank, on which steps are measured: the weights that it ends with are thrown away."""

    def __init__(self, recipe: Recipe, task: Task, info: DataInfo, world: World) -> None:
        self.recipe, self.task, self.info, self.world = recipe, task, info, world
        self.base = resident() if world.device.type == "cpu" else 0
        hosts = world.gather(socket.gethostname())
        self.limit = memory_limit(recipe, world.device, hosts.count(hosts[world.rank]))
        torch.manual_seed(seed_of(recipe.seed))
        self.model: nn.Module = task.build_model(info).to(world.device)
        if world.size > 1 and recipe.sync_bn is True:
            synchronise(self.model, world.device).recording = True  # their memory, without their collectives
        choice = choose(recipe, 1)
        self.optimizer = build_optimizer(choice, self.model, recipe.weight_decay)
        self.ema = Ema(self.model, recipe.ema) if recipe.ema else None

    def close(self) -> None:
        """Give back the model's memory."""
        del self.model, self.optimizer, self.ema
        release_memory()

    def plain(self, size: int, recipe: Recipe) -> Trial:
        """What the recipe says, where it leaves nothing to measure."""
        precision = choose_precision(recipe, self.world.device)
        return Trial(size, precision)

    def first(self) -> list[Row]:
        """One image, then two, in float32 unless the recipe says otherwise: rows of the slowest and largest rank.

        Raises ValueError where one image does not fit.
        """
        auto = self.recipe.amp in ("auto", True)
        recipe = (
            self.recipe.model_copy(update={"amp": False}) if auto and self.world.device.type == "cpu" else self.recipe
        )
        return [self.agree(self.measure(self.plain(size, recipe), steps=2)) for size in (1, 2)]

    def measure(self, trial: Trial, steps: int = TIMED_STEPS) -> Row:
        """Seconds per step and peak bytes of this rank; None where it does not fit."""
        row = trial.row()
        try:
            with Peak(self.world.device, self.base) as peak:
                seconds = min(self._steps(trial, steps))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            release_memory()
            return row | {"seconds": None, "bytes": None}
        return row | {"seconds": seconds, "bytes": peak.bytes}

    def agree(self, row: Row) -> Row:
        """The row of the slowest rank with the memory of the largest (collective); `fits` all or nobody."""
        rows = self.world.gather(row | {"limit": self.limit})
        fits = all(r["seconds"] is not None and r["bytes"] <= r["limit"] for r in rows)
        seconds = max(r["seconds"] or math.inf for r in rows)
        agreed = row | {"fits": fits, "bytes": max((r["bytes"] for r in rows if r["bytes"] is not None), default=None)}
        if math.isinf(seconds):
            return agreed | {"seconds": None, "images_per_second": None}
        return agreed | {"seconds": seconds, "images_per_second": row["images"] * self.world.size / seconds}

    def _steps(self, trial: Trial, steps: int) -> Iterator[float]:
        """The seconds of each of some training steps, after one that warms up."""
        batch = sample_batch(self.info, trial.size, self.recipe.task)
        model = self.model.to(memory_format=trial.precision.memory_format)
        called = cast(nn.Module, torch.compile(model)) if trial.compiled else model
        model.train()
        for number in range(1 + steps):
            started = time.perf_counter()
            self._step(called, batch, trial.precision)
            if number:
                yield time.perf_counter() - started

    def _step(self, model: nn.Module, batch: Batch, precision: Precision) -> None:
        """A whole step, but with a rate of zero: the weights stay as they are."""
        device = self.world.device
        with norms_in_eval(self.model, len(batch) == 1):
            self.optimizer.zero_grad(set_to_none=True)
            loss_of(self.task, model, batch, precision).backward()
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0
        self.optimizer.step()
        if self.ema:
            self.ema.update(1)
        if device.type == "cuda":
            torch.cuda.synchronize(device)


def sample_batch(info: DataInfo, count: int, task: str) -> Batch:
    """A made-up global batch: `count` images of the largest size of the training, each with the most objects."""
    size, classes = info.largest or info.imgsz, max(len(info.classes), 1)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator).permute(0, 3, 1, 2)
    labels = torch.randint(0, classes, (count,), generator=generator)
    targets = None
    if task != "classify":
        targets = [_targets(max(info.objects, 1), size, classes, task == "segment", generator) for _ in range(count)]
        labels = torch.full((count,), -1)
    return Batch(images, labels, torch.arange(count).numpy(), count, targets)


def _targets(count: int, size: int, classes: int, masks: bool, generator: torch.Generator) -> Targets:
    """Boxes of an eighth to a half of the image, with rectangles as masks."""
    sides = size / 8 + torch.rand(count, 2, generator=generator) * size * 3 / 8
    corners = torch.rand(count, 2, generator=generator) * (size - sides)
    boxes = torch.cat([corners, corners + sides], 1)
    drawn = None
    if masks:
        drawn = torch.zeros(count, size, size, dtype=torch.uint8)
        for mask, (x0, y0, x1, y1) in zip(drawn, boxes.long().tolist(), strict=True):
            mask[y0 : y1 + 1, x0 : x1 + 1] = 1
    labels = torch.randint(0, classes, (count,), generator=generator)
    return Targets(boxes, labels, torch.zeros(count, dtype=torch.bool), drawn)
