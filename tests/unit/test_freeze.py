from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models as torchvision_models

from tests import tiny
from tests.tiny import recipe
from trainables import checkpoint
from trainables.contracts import State
from trainables.freeze import check, find_stages, freeze
from trainables.models import NoMemory, build_classifier, check_classifier
from trainables.optim import Choice, build_optimizer


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.bn = nn.BatchNorm2d(width)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.drop(self.bn(self.conv(x)).relu())
        return out


class Residual(nn.Module):
    """In the shape of torchvision's residual networks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.layer1, self.layer2 = nn.Sequential(Block(4), Block(4)), nn.Sequential(Block(4), Block(4))
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.layer2(self.layer1(self.bn1(self.conv1(x)))).mean((2, 3)))
        return logits


IMAGES = torch.randn(4, 3, 8, 8)


def frozen(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if not p.requires_grad}


def built(name: str) -> nn.Module:
    with NoMemory():
        model: nn.Module = torchvision_models.get_model(name, weights=None)
    return model


# ---------------------------------------------------------------------------------------------- the stages


@pytest.mark.parametrize(
    ("name", "count", "first", "last"),
    [
        ("resnet18", 5, ["conv1", "bn1"], ["layer4"]),
        ("vgg11_bn", 8, ["features.0", "features.1"], ["features.25", "features.26"]),
        ("mobilenet_v3_small", 13, ["features.0"], ["features.12"]),
        ("densenet121", 8, ["features.conv0", "features.norm0"], ["features.denseblock4", "features.norm5"]),
        ("googlenet", 12, ["conv1"], ["inception5b"]),
        ("mnasnet0_5", 10, ["layers.0", "layers.1"], ["layers.14", "layers.15"]),
        ("regnet_x_400mf", 5, ["stem"], ["trunk_output.block4"]),
        ("shufflenet_v2_x0_5", 5, ["conv1"], ["conv5"]),
        ("swin_t", 8, ["features.0"], ["features.7", "norm"]),
        (
            "vit_b_32",
            13,
            ["class_token", "conv_proj", "encoder.pos_embedding"],
            ["encoder.layers.encoder_layer_11", "encoder.ln"],
        ),
    ],
)
def test_the_stages_of_a_family(name: str, count: int, first: list[str], last: list[str]) -> None:
    stages = find_stages(built(name))
    assert (len(stages), stages[0], stages[-1]) == (count, first, last)


@pytest.mark.parametrize(
    ("name", "count", "first"),
    [
        ("fasterrcnn_mobilenet_v3_large_320_fpn", 17, ["backbone.body.0"]),
        ("retinanet_resnet50_fpn", 5, ["backbone.body.conv1", "backbone.body.bn1"]),
        ("ssdlite320_mobilenet_v3_large", 18, ["backbone.features.0.0"]),
        ("ssd300_vgg16", 10, ["backbone.features.0"]),
    ],
)
def test_the_stages_of_a_detector_are_those_of_its_backbones_body(name: str, count: int, first: list[str]) -> None:
    with NoMemory():
        model = torchvision_models.get_model(name, weights=None, weights_backbone=None)
    stages = find_stages(model)
    assert (len(stages), stages[0]) == (count, first)


@pytest.mark.parametrize(
    ("model", "stages"),
    [
        (tiny.conv(3), [["0"]]),
        (tiny.conv_norm_dropout(3), [["0", "1"]]),
        (tiny.linear(3), []),
        (Residual(), [["conv1", "bn1"], ["layer1"], ["layer2"]]),
        (nn.ModuleDict({"net": Residual()}), [["net.conv1", "net.bn1"], ["net.layer1"], ["net.layer2"]]),
    ],
    ids=["one layer", "with a norm", "a head only", "residual", "in a wrapper"],
)
def test_the_stages_of_ones_own_model(model: nn.Module, stages: list[list[str]]) -> None:
    assert find_stages(model) == stages


# -------------------------------------------------------------------------------------------- what is frozen


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        (0, []),
        ([], []),
        (1, ["conv1", "bn1"]),
        (2, ["conv1", "bn1", "layer1"]),
        (["layer1"], ["layer1"]),
        (["layer?"], ["layer1", "layer2"]),
        (["layer2.*"], ["layer2"]),
        (["*.bn"], ["layer1.0.bn", "layer1.1.bn", "layer2.0.bn", "layer2.1.bn"]),
        (["conv1.weight", "layer2.[0]"], ["conv1.weight", "layer2.0"]),
        (["fc"], ["fc"]),
    ],
)
def test_stages_and_patterns_freeze_what_they_name(what: int | list[str], expected: list[str]) -> None:
    model = Residual()
    whole = {n for n, _ in model.named_parameters() if any(n == part or n.startswith(f"{part}.") for part in expected)}
    assert set(check(model, what)) == whole
    assert not frozen(model), "check changes nothing"
    assert set(freeze(model, what)) == whole == frozen(model)


def test_given_stages_are_counted_instead_of_the_models_own() -> None:
    model = Residual()
    assert freeze(model, 1, [["layer2", "fc.bias"], ["layer1"]])[-1] == "fc.bias"
    assert not any(name.startswith(("conv1", "layer1")) for name in frozen(model))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (
            4,
            r"freeze = 4 is out of range: the model has 3 stages \(1 conv1 to bn1, 2 layer1, 3 layer2\); its parts are",
        ),
        (["layr1"], r"freeze: 'layr1' matches nothing in the model: did you mean layer1.* the model has 3 stages"),
        (
            ["layer1", "backbone.*"],
            r"freeze: 'backbone\.\*' matches nothing.* its parts are conv1, bn1, layer1",
        ),
        (["*"], r"freeze = \* leaves nothing to train"),
        (["layer*", "conv1", "bn1", "fc"], r"freeze = layer\*, conv1, bn1, fc leaves nothing to train"),
    ],
)
def test_what_cannot_be_frozen_is_refused(what: int | list[str], message: str) -> None:
    for step in (check, freeze):
        with pytest.raises(ValueError, match=f"^{message}"):
            step(Residual(), what)


@pytest.mark.parametrize("what", [1, ["feature.*"]])
def test_the_check_before_the_start_says_so_too(what: int | list[str]) -> None:
    with pytest.raises(ValueError, match=r"^freeze.* the model has 0 stages \(none\); its parts are 1"):
        check_classifier(recipe(model="tests.tiny:linear", freeze=what), 3, 8)
    with pytest.raises(ValueError, match=r"^freeze"):
        build_classifier(recipe(model="tests.tiny:linear", freeze=what), 3, 8)


# --------------------------------------------------------------------------------------- what freezing means


@pytest.mark.parametrize("what", [2, ["conv1", "bn1", "layer1.*"]])
def test_frozen_parts_stay_as_they_are_and_the_rest_trains(what: int | Sequence[str]) -> None:
    model = Residual()
    names = list(model.state_dict())
    chosen = freeze(model, what)
    assert list(model.state_dict()) == names
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = build_optimizer(Choice("AdamW", 0.1, 0.9, "config"), model, 0.1)
    for _ in range(2):
        model.train()
        optimizer.zero_grad()
        model(IMAGES).square().mean().backward()
        optimizer.step()
    assert all(p.grad is None for name, p in model.named_parameters() if name in chosen)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in names if name.startswith(("layer2", "fc"))}


def test_frozen_norms_stay_in_eval_mode_for_ever() -> None:
    model = Residual()
    freeze(model, 2)
    for mode in (True, False, True):
        model.train(mode)
        modes = {n: m.training for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
        assert {name for name, training in modes.items() if training} == (
            {"layer2.0.bn", "layer2.1.bn"} if mode else set()
        )
    model.layer1.train()
    assert not any(m.training for m in model.layer1.modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.parametrize("affine", [True, False])
def test_a_norm_without_parameters_in_a_frozen_part_is_frozen_too(affine: bool) -> None:
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=affine))
    model = nn.Sequential(body, nn.BatchNorm2d(4, affine=False), nn.Flatten(), nn.LazyLinear(2))
    model(IMAGES)
    freeze(model, ["0"])
    model.train()
    assert not body[1].training
    assert model[1].training


def test_norms_of_which_only_a_part_is_frozen_go_on() -> None:
    model = Residual()
    freeze(model, ["*.bn.weight"])
    assert all(m.training for m in model.train().modules())


def test_frozen_parts_cost_no_gradients() -> None:
    """Nothing before the first trainable layer is recorded for the backward pass."""
    model = Residual()
    freeze(model, 2)
    recorded: dict[str, bool] = {}

    def note(name: str) -> Any:
        return lambda module, args, out: recorded.__setitem__(name, out.requires_grad)

    for name, module in model.named_children():
        module.register_forward_hook(note(name))
    model.train()(IMAGES)
    assert recorded == {"conv1": False, "bn1": False, "layer1": False, "layer2": True, "fc": True}


def test_a_copy_is_frozen_by_itself() -> None:
    """The moving average is a copy of the model."""
    model = Residual()
    freeze(model, 1)
    twin = copy.deepcopy(model).train()
    assert frozen(twin) == frozen(model)
    assert not twin.bn1.training
    assert "train" in vars(twin.bn1)
    assert twin.bn1.train() is twin.bn1, "and not the original's"


def test_a_checkpoint_of_a_frozen_model_loads_into_one_that_is_not(tmp_path: Path) -> None:
    model, other = Residual(), Residual()
    freeze(model, 2)
    checkpoint.save(tmp_path / "best", checkpoint.capture(State(model.state_dict(), {}, {})))
    checkpoint.load_model(other, checkpoint.load(tmp_path / "best").model)
    assert torch.equal(model.eval()(IMAGES), other.eval()(IMAGES))


def test_a_classifier_is_built_frozen_after_its_weights_were_loaded(tmp_path: Path) -> None:
    torch.save(tiny.conv_norm_dropout(3).state_dict(), tmp_path / "w.pt")
    made = recipe(model="tests.tiny:conv_norm_dropout", pretrained=str(tmp_path / "w.pt"), freeze=1)
    model, _ = build_classifier(made, 3, 8)
    assert frozen(model) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert torch.equal(model.state_dict()["0.weight"], torch.load(tmp_path / "w.pt", weights_only=True)["0.weight"])
    assert not model.train()[1].training  # type: ignore[index]
    assert check_classifier(made, 3, 8)[0] == sum(p.numel() for p in model.parameters())
