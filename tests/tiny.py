"""What the tests train: models, data and runtimes so small that a run takes milliseconds.

Configs and recipes name the models as ``tests.tiny:conv``: the way in which users name their own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainables.collectives import World
from trainables.contracts import Metrics, State
from trainables.local import LocalRuntime
from trainables.loop import Progress, fit
from trainables.memory import MemoryData
from trainables.recipe import Recipe
from trainables.tasks import build_task

CLASSES = ("red", "green", "blue")
SIZE = 8
TIMED = {"images_per_second", "data_wait_fraction", "seconds"}
"""The parts of a row that differ from run to run."""


# ------------------------------------------------------------------------------------------------ models


def linear(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, num_classes))


def conv(num_classes: int) -> nn.Module:
    """Without batch norm and dropout: the same function for every split of the batch."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, num_classes)
    )


def conv_norm(num_classes: int) -> nn.Sequential:
    """With batch norm, without anything random."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, num_classes),
    )


def conv_norm_dropout(num_classes: int) -> nn.Module:
    """With everything that has a state or draws random numbers."""
    return conv_norm(num_classes).insert(5, nn.Dropout(0.2))


class AllergicToWhite(nn.Module):
    """Gives NaN for an image that is all white."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body = linear(num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.body(images)
        white = images.amin((1, 2, 3)) > 2.2  # normalised by ImageNet's mean and deviation
        return torch.where(white[:, None], float("nan"), logits)


# -------------------------------------------------------------------------------------------------- data


def toy(train: int = 20, val: int = 7, batch: int = 6, **options: Any) -> MemoryData:
    """Noisy images of one colour each, which is their class."""
    random = np.random.default_rng(0)
    count = train + val
    labels = random.integers(0, len(CLASSES), count)
    images = random.integers(0, 200, (count, SIZE, SIZE, 3), np.uint8)
    images[np.arange(count), :, :, labels] += 55
    return MemoryData(images, labels, CLASSES, train, batch, **options)


def recipe(**settings: Any) -> Recipe:
    """Few epochs of the small model, without anything that is made for long runs."""
    defaults: dict[str, Any] = {"model": "tests.tiny:conv", "epochs": 3, "batch": 6, "lr": 0.05, "optimizer": "SGD"}
    return Recipe.model_validate({**defaults, **settings})


# ----------------------------------------------------------------------------------------------- running


KINDS = {"event": "event", "row": "train_loss", "step": "loss"}
"""Kinds of reports, and the key that tells each; any other states facts."""


class Recorder:
    """Keeps what the loop reports; asks it to stop once `stop_at` (epoch, step), both from 1, has been reported."""

    def __init__(self, stop_at: tuple[int, int] | None = None) -> None:
        self.rows: list[Metrics] = []
        self.steps: list[Metrics] = []
        self.facts: list[Metrics] = []
        self.events: list[Metrics] = []
        self.kinds: list[str] = []
        self.model: dict[str, Tensor] = {}
        self.ema: dict[str, Tensor] = {}
        self.stop_at = stop_at
        self.stop: Callable[[], None] = lambda: None

    def __call__(self, metrics: Metrics, state: State | None) -> None:
        kind = next((k for k, key in KINDS.items() if key in metrics), "facts")
        {"row": self.rows, "step": self.steps, "facts": self.facts, "event": self.events}[kind].append(metrics)
        self.kinds.append(kind)
        if state is not None:
            self.model = {name: tensor.clone() for name, tensor in state.model.items()}
            self.ema = {name: tensor.clone() for name, tensor in state.ema.items()}
        if kind == "step" and (metrics["epoch"], metrics["step"]) == self.stop_at:
            self.stop()

    @property
    def untimed_rows(self) -> list[Metrics]:
        return [{k: v for k, v in row.items() if k not in TIMED} for row in self.rows]


def run(
    settings: Recipe,
    data: MemoryData,
    folder: Path | None = None,
    restore: Path | None = None,
    stop_at: tuple[int, int] | None = None,
) -> tuple[Progress, Recorder]:
    """One run in this process; its checkpoints go to `folder`."""
    recorder = Recorder(stop_at)
    with LocalRuntime(folder, recorder, restore, torch.device("cpu")) as runtime:
        recorder.stop = runtime.stop.set
        return fit(settings, build_task(settings), data, runtime), recorder


class RankRuntime(LocalRuntime):
    """One of several ranks; each rank may be asked to stop on its own."""

    def __init__(self, world: World, recorder: Recorder) -> None:
        super().__init__(on_report=recorder, device=torch.device("cpu"))
        self.rank, self.world_size = world.rank, world.size
