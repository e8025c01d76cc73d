"""Every entry of every table keeps the contract of its table: a new line is tested by itself."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import nn

from orchestrator import config
from orchestrator.data import FORMATS, Format, detect, get_format
from orchestrator.data.images import load_stored
from orchestrator.data.manifest import read_manifest
from tests import layouts, tiny_detectors
from tests.tiny import CLASSES, recipe, run, toy
from trainables import checkpoint
from trainables import recipe as recipe_module
from trainables.collectives import World
from trainables.contracts import DataInfo, Sample
from trainables.memory import MemoryData
from trainables.optim import OPTIMIZERS, Choice, build_optimizer
from trainables.recipe import Recipe
from trainables.schedules import SCHEDULES, lr_factor
from trainables.tasks import TASKS, build_task

CPU = torch.device("cpu")
TASK_MODELS = {"classify": "tests.tiny:conv", **tiny_detectors.MODELS}


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


@pytest.mark.parametrize("name", sorted(set(SCHEDULES) - {"one_cycle"}))
def test_a_schedule_falls_from_the_first_rate_to_the_last(name: str) -> None:
    rates = [lr_factor(name, step, total=50, warmup=0, lrf=0.2) for step in range(50)]
    assert rates[0] == 1
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == (1 if name == "constant" else 0.2)


# -------------------------------------------------------------------------------------------------- tasks


@pytest.mark.parametrize("name", TASKS)
def test_a_task_trains_predicts_and_measures(name: str) -> None:
    task = build_task(recipe(task=name, model=TASK_MODELS[name]))
    data = toy() if name == "classify" else tiny_detectors.scenes()
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
    assert set(metric.compute()) == set(task.scores)
    assert isinstance(metric.compute()[task.primary], float)
    assert metric.details()


@pytest.mark.parametrize("name", TASKS)
def test_a_task_stopped_and_resumed_ends_with_the_same_weights(tmp_path: Path, name: str) -> None:
    settings = recipe(task=name, model=TASK_MODELS[name], epochs=2, ema=0.9, lr=0.01)

    def data() -> MemoryData:
        return toy() if name == "classify" else tiny_detectors.scenes()

    run(settings, data(), tmp_path / "whole")
    stopped, _ = run(settings, data(), tmp_path / "parts", stop_at=(1, 1))
    assert stopped.stopped_because == "interruption"
    run(settings, data(), tmp_path / "parts", tmp_path / "parts" / "last")
    whole, parts = (checkpoint.load(tmp_path / folder / "last") for folder in ("whole", "parts"))
    for ours, theirs in ((parts.model, whole.model), (parts.ema, whole.ema)):
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize(
    "settings", [{"amp": "bf16"}, {"micro_batch": 1}, {"clip_grad": 1.0}, {"channels_last": False}]
)
def test_a_task_trains_with_every_setting_of_the_engine(name: str, settings: dict[str, Any]) -> None:
    made = recipe(task=name, model=TASK_MODELS[name], epochs=2, lr=0.01, **settings)
    data = toy() if name == "classify" else tiny_detectors.scenes()
    progress, recorder = run(made, data)
    assert (progress.epoch, progress.skipped) == (2, [])
    assert all(tensor.isfinite().all() for tensor in recorder.model.values())


@pytest.mark.parametrize("name", TASKS)
def test_a_task_refuses_a_metric_that_it_does_not_produce(name: str) -> None:
    with pytest.raises(ValueError, match="unknown metric 'beauty'"):
        build_task(recipe(task=name, metric="beauty"))


def test_a_classifier_has_the_classes_of_the_data() -> None:
    info = DataInfo("", "", (*CLASSES, "more"), 1, 1, 0, 8)
    task = build_task(recipe(task="classify", model="tests.tiny:linear"))
    assert task.build_model(info)(torch.zeros(1, 3, 8, 8)).shape == (1, 4)


# ------------------------------------------------------------------------------------------------ formats


def a_location(name: str, folder: Path) -> str:
    """One that the format reads."""
    if name == "digits":
        return "digits"
    layouts.EXAMPLES[name](folder)
    return str(folder)


def plain(sample: Sample) -> Any:
    """A sample as JSON, in which tuples are lists."""
    return json.loads(json.dumps(asdict(sample)))


def test_the_config_names_exactly_the_formats() -> None:
    assert set(config.FORMATS) == {"auto", *FORMATS}


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_lists_samples_and_loads_their_pixels(name: str, tmp_path: Path) -> None:
    location = a_location(name, tmp_path)
    assert detect(location)[0] == name
    entry = get_format(name)
    assert isinstance(entry, Format)
    samples = list(entry.read(location).samples)
    assert len({sample.id for sample in samples}) == len(samples) > 1
    pixels = load_stored(entry.load(samples[-1].image), 4, "short").pixels
    assert pixels.dtype == np.uint8
    assert min(pixels.shape[:2]) == 4
    listed = sorted(samples, key=lambda sample: sample.id)
    assert [plain(sample) for sample in read_manifest(location, name).samples()] == [plain(s) for s in listed]
    assert all(sample.stamp for sample in samples)
    has_objects = name in ("yolo", "coco", "voc")
    assert all((sample.objects is None) != has_objects for sample in samples)
    assert all((sample.label == -1) == has_objects for sample in samples)


@pytest.mark.parametrize("name", sorted(set(FORMATS) - {"digits"}))
def test_a_format_refuses_a_place_with_nothing_in_it(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=str(tmp_path)):
        get_format(name).read(str(tmp_path))
