from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from trainables.recipe import MODELS_BY_TASK, Recipe


def problems(**settings: Any) -> list[tuple[str, str]]:
    """(key, message) of everything that is wrong."""
    with pytest.raises(ValidationError) as caught:
        Recipe.model_validate(settings)
    return [(str(error["loc"][0]), error["msg"]) for error in caught.value.errors()]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("task", "paint"),
        ("model", ""),
        ("model", 18),
        ("pretrained", 1),
        ("epochs", 0),
        ("epochs", -1),
        ("epochs", 1.5),
        ("epochs", True),
        ("epochs", "ten"),
        ("patience", -1),
        ("batch", 0),
        ("batch", -2),
        ("batch", 6.0),
        ("batch", True),
        ("imgsz", 7),
        ("imgsz", 8193),
        ("optimizer", "sgd"),
        ("lr", 0),
        ("lr", -0.1),
        ("lr", True),
        ("lr", "fast"),
        ("lr", "1e999"),
        ("lr", float("nan")),
        ("lr", float("inf")),
        ("lrf", -0.1),
        ("lrf", 1.1),
        ("momentum", 1.0),
        ("weight_decay", -1e-4),
        ("schedule", "cosin"),
        ("warmup_epochs", -1),
        ("label_smoothing", 1.0),
        ("amp", "fp8"),
        ("amp", 1),
        ("fliplr", 1.5),
        ("fliplr", False),
        ("scale", 1.0),
        ("multi_scale", 1.0),
        ("metric", 5),
        ("seed", -1),
        ("seed", 2**63),
        ("deterministic", "yes"),
        ("compile", "yes"),
        ("learning_rate", 0.1),
    ],
)
def test_a_bad_value_is_refused_with_its_key(key: str, value: Any) -> None:
    found = problems(**{key: value})
    assert {k for k, _ in found} == {key}
    assert "not available yet" not in str(found)


@pytest.mark.parametrize(("task", "model"), MODELS_BY_TASK.items())
def test_each_task_has_a_model_of_its_own_where_none_is_named(task: str, model: str) -> None:
    assert Recipe.model_validate({"task": task}).model == model
    assert Recipe.model_validate({"task": task, "model": "resnet50"}).model == "resnet50"


@pytest.mark.parametrize(
    ("text", "number"), [("1e-3", 1e-3), ("1E-3", 1e-3), ("+2e0", 2.0), ("1.5e2", 150.0), ("5.e-1", 0.5), (".5e0", 0.5)]
)
def test_numbers_that_yaml_reads_as_text_are_numbers(text: str, number: float) -> None:
    assert Recipe.model_validate({"lr": text}).lr == number


def test_whole_numbers_are_rates_too() -> None:
    made = Recipe.model_validate({"lr": 1, "lrf": 0, "fliplr": 1})
    assert (made.lr, made.lrf, made.fliplr) == (1.0, 0.0, 1.0)


def test_all_problems_are_told_at_once() -> None:
    assert [key for key, _ in problems(lr=-1, epochs=0, shedule="cosine")] == ["epochs", "lr", "shedule"]


def test_defaults_are_those_of_the_guide() -> None:
    made = Recipe()
    assert (made.epochs, made.batch, made.patience, made.seed) == (300, 64, 50, 0)
    assert (made.optimizer, made.lr, made.lrf, made.momentum, made.schedule) == ("auto", None, 0.01, 0.9, "cosine")
    assert (made.scale, made.fliplr, made.multi_scale, made.warmup_epochs) == (0.5, 0.5, 0.0, 3.0)
    assert (made.pretrained, made.amp, made.deterministic, made.compile) == (False, "auto", False, False)


def test_a_recipe_cannot_be_changed_and_survives_json() -> None:
    made = Recipe(lr=0.1, epochs=3)
    with pytest.raises(ValidationError, match="frozen"):
        made.lr = 0.2  # type: ignore[misc]
    assert Recipe.model_validate_json(made.model_dump_json()) == made


@pytest.mark.parametrize(
    ("settings", "key", "told"),
    [
        ({"val_interval": 0}, "val_interval", "patience = 50 needs validation"),
        ({"val_interval": 0, "patience": 0, "epochs": "auto"}, "val_interval", "epochs = auto needs validation"),
        ({"task": "detect", "label_smoothing": 0.1}, "label_smoothing", "for task: classify only"),
        ({"freeze": -1}, "freeze", "greater than or equal to 0"),
        ({"memory": "-1GB"}, "memory", "6GB"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], key: str, told: str) -> None:
    ((found, message),) = problems(**settings)
    assert found == key
    assert told in message
