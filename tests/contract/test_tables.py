"""Every entry of every table keeps the contract of its table: a new line is tested by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import nn

from orchestrator.data import FORMATS, Format, get_format
from orchestrator.data.manifest import read_manifest
from tests.pictures import write_images
from tests.tiny import CLASSES, recipe, toy
from trainables import checkpoint
from trainables import recipe as recipe_module
from trainables.collectives import World
from trainables.contracts import DataInfo
from trainables.optim import OPTIMIZERS, Choice, build_optimizer
from trainables.recipe import Recipe
from trainables.schedules import SCHEDULES, lr_factor
from trainables.tasks import TASKS, build_task

CPU = torch.device("cpu")


def available(key: str, names: Any) -> set[str]:
    """The names of a setting that are not refused as "not available yet"."""
    refuses = Recipe.unavailable.get(key, lambda name: False)
    return {name for name in get_args(names) if not refuses(name)}


def test_the_settings_name_exactly_what_the_tables_hold() -> None:
    assert available("optimizer", recipe_module.OptimizerName) == {"auto", *OPTIMIZERS}
    assert available("schedule", recipe_module.ScheduleName) == set(SCHEDULES)
    assert available("task", Recipe.model_fields["task"].annotation) == set(TASKS)


# --------------------------------------------------------------------------------------------- optimizers


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_lowers_a_quadratic(name: str, momentum: float) -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    target = nn.Linear(4, 3)
    inputs = torch.randn(32, 4)
    optimizer = build_optimizer(Choice(name, 3 * OPTIMIZERS[name].lr, momentum, "config"), model, 0.0)
    losses = []
    for _ in range(300):
        loss = (model(inputs) - target(inputs).detach()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(np.isfinite(losses))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizers_state_can_be_saved_by_name(name: str) -> None:
    model = nn.Linear(4, 3)
    optimizer = build_optimizer(Choice(name, 0.1, 0.9, "config"), model, 0.1)
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    state = checkpoint.optimizer_tensors(optimizer, model)
    assert {path.split("/")[0] for path in state} == {"weight", "bias"}
    assert all(isinstance(tensor, torch.Tensor) for tensor in state.values())


# ---------------------------------------------------------------------------------------------- schedules


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_falls_from_the_first_rate_to_the_last(name: str) -> None:
    rates = [lr_factor(name, step, total=50, warmup=0, lrf=0.2) for step in range(50)]
    assert rates[0] == 1
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == (1 if name == "constant" else 0.2)


# -------------------------------------------------------------------------------------------------- tasks


@pytest.mark.parametrize("name", TASKS)
def test_a_task_trains_predicts_and_measures(name: str) -> None:
    task = build_task(recipe(task=name, model="tests.tiny:conv"))
    data = toy()
    model = task.build_model(data.info)
    batch = next(data.train(0))
    prepared = task.prepare(batch, CPU, train=True)
    task.loss(model, prepared)["loss"].backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    metric = task.metrics()
    with torch.no_grad():
        for batch in data.validation():
            prepared = task.prepare(batch, CPU, train=False)
            metric.update(task.predict(model.eval(), prepared), prepared)
    metric.reduce(World(0, 1, CPU))
    assert task.mode in ("max", "min")
    assert isinstance(metric.compute()[task.primary], float)
    assert metric.details()


@pytest.mark.parametrize("name", TASKS)
def test_a_task_refuses_a_metric_that_it_does_not_produce(name: str) -> None:
    with pytest.raises(ValueError, match="unknown metric 'beauty'"):
        build_task(recipe(task=name, metric="beauty"))


@pytest.mark.parametrize("name", TASKS)
def test_a_model_has_the_classes_of_the_data(name: str) -> None:
    info = DataInfo("", "", (*CLASSES, "more"), 1, 1, 0, 8)
    task = build_task(recipe(task=name, model="tests.tiny:linear"))
    assert task.build_model(info)(torch.zeros(1, 3, 8, 8)).shape == (1, 4)


# ------------------------------------------------------------------------------------------------ formats


def a_folder_of_class_folders(root: Path) -> str:
    return str(write_images(root, {"train/cat": 2, "train/dog": 2}))


EXAMPLES: dict[str, Callable[[Path], str]] = {
    "imagefolder": a_folder_of_class_folders,
    "digits": lambda root: "digits",
}
"""A location that each format reads."""


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_lists_samples_and_loads_their_pixels(name: str, tmp_path: Path) -> None:
    location = EXAMPLES[name](tmp_path)
    entry = get_format(name)
    assert isinstance(entry, Format)
    samples = list(entry.read(location).samples)
    assert len({sample.id for sample in samples}) == len(samples) > 1
    image = entry.load(samples[-1].image)
    assert image.dtype == np.uint8
    assert image.shape[2] == 3
    assert set(read_manifest(location, name).table["label"].to_pylist()) == {sample.label for sample in samples}


@pytest.mark.parametrize("name", sorted(set(FORMATS) - {"digits"}))
def test_a_format_refuses_a_place_with_nothing_in_it(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=str(tmp_path)):
        get_format(name).read(str(tmp_path))
