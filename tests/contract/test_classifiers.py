"""Every family of classifiers is built, frozen, and found again in a file, without memory for its weights."""

from __future__ import annotations

from itertools import takewhile
from typing import Any

import pytest
from torch import nn
from torchvision import models as torchvision_models

from tests.tiny import recipe
from trainables.freeze import find_stages, freeze
from trainables.models import NoMemory, check_classifier, model_names
from trainables.weights import match

FAMILIES = {
    # the smallest of each family, and a size of image that it takes
    "alexnet": 64,
    "convnext_tiny": 32,
    "densenet121": 32,
    "efficientnet_b0": 32,
    "efficientnet_v2_s": 32,
    "googlenet": 64,
    "inception_v3": 299,
    "maxvit_t": 224,
    "mnasnet0_5": 32,
    "mobilenet_v2": 32,
    "mobilenet_v3_small": 32,
    "regnet_x_400mf": 32,
    "regnet_y_400mf": 32,
    "resnet18": 32,
    "resnext50_32x4d": 32,
    "shufflenet_v2_x0_5": 32,
    "squeezenet1_1": 32,
    "swin_t": 32,
    "swin_v2_t": 32,
    "vgg11": 32,
    "vgg11_bn": 32,
    "vit_b_32": 64,
    "wide_resnet50_2": 32,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "vit_b_32": {"image_size": 64},
    "googlenet": {"init_weights": False},
    "inception_v3": {"init_weights": False},
}
LONGER = (
    "wide_resnet",
    "resnext",
    "regnet_x",
    "regnet_y",
    "efficientnet_v2",
    "mobilenet_v2",
    "mobilenet_v3",
    "swin_v2",
)
"""Families whose names begin with, or go on after, another's."""
HEADS = {"fc", "classifier", "head", "heads", "aux1", "aux2", "AuxLogits"}


def build(name: str) -> nn.Module:
    with NoMemory():
        model: nn.Module = torchvision_models.get_model(name, weights=None, num_classes=3, **OPTIONS.get(name, {}))
    return model.to("meta")


def family(name: str) -> str:
    """resnet of resnet18, vgg_bn of vgg11_bn."""
    letters = "".join(takewhile(str.isalpha, name))
    head = next((part for part in LONGER if name.startswith(part)), letters)
    return f"{head}_bn" if name.endswith("_bn") else head


def test_no_family_is_left_out() -> None:
    assert {family(name) for name in model_names()} == {family(name) for name in FAMILIES}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_built_for_the_classes(name: str) -> None:
    parameters, loaded = check_classifier(recipe(model=name, freeze=1), 3, FAMILIES[name])
    assert parameters > 100_000
    assert loaded is None


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_finds_its_own_weights_and_freezes_its_stages(name: str) -> None:
    model = build(name)
    names = list(model.state_dict())
    file = {f"module.{key}": tensor for key, tensor in model.state_dict().items()}
    loaded, _ = match(model, file, "file", name)
    assert (loaded.loaded, loaded.resized, loaded.missing, loaded.unused) == (names, [], [], [])

    stages = find_stages(model)
    assert 5 <= len(stages) <= 35
    first = set(freeze(model, 1))
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == first
    assert next(n for n, _ in model.named_parameters()) in first
    norms = [m for m in model.train().modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert all(norm.training == any(p.requires_grad for p in norm.parameters()) for norm in norms)

    freeze(model, len(stages))
    left = {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad}
    assert left, "the head is no stage"
    assert left <= HEADS, "and all else is in one"
    assert list(model.state_dict()) == names
