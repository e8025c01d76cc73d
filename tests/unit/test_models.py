from __future__ import annotations

import sys
import types
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models as torchvision_models

from tests import tiny
from tests.tiny import recipe
from trainables.models import (
    NoMemory,
    build_classifier,
    check_classifier,
    default_imgsz,
    model_names,
    torchvision_weights,
)
from trainables.pixels import Normalization

FAMILIES = ["inception_v3", "squeezenet1_1", "vit_b_32"]
"""With auxiliary heads, without a linear layer, and for one size of image; the others are in the contract tests."""
TINY = "tests.tiny:linear"


def trains(model: nn.Module, classes: int, imgsz: int) -> None:
    """Take one training step through all outputs."""
    outputs = model.train()(torch.randn(2, 3, imgsz, imgsz))
    heads = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    assert {tuple(head.shape) for head in heads} == {(2, classes)}
    torch.cat(heads).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


# -------------------------------------------------------------------------------------------- what is built


def test_torchvisions_classifiers_are_the_table() -> None:
    assert set(FAMILIES) < set(model_names())
    assert not {"fasterrcnn_resnet50_fpn", "fcn_resnet50", "r3d_18", "raft_small"} & set(model_names())


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_built_for_its_size_and_classes(name: str) -> None:
    parameters, loaded = check_classifier(recipe(model=name), 7, default_imgsz(name))
    assert parameters > 100_000
    assert loaded is None
    assert check_classifier(recipe(model=name), 8, default_imgsz(name))[0] > parameters


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(model_names()) - set(FAMILIES)))
def test_every_other_classifier_is_built_too(name: str) -> None:
    assert check_classifier(recipe(model=name), 7, default_imgsz(name))[0] > 100_000


@pytest.mark.parametrize(
    ("name", "imgsz"), [("resnet18", 224), ("inception_v3", 299), ("efficientnet_b7", 600), (TINY, 224)]
)
def test_the_default_size_is_that_of_the_published_weights(name: str, imgsz: int) -> None:
    assert default_imgsz(name) == imgsz


def test_checking_takes_no_memory_for_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    devices: list[str] = []
    original = torchvision_models.get_model

    def watched(*args: Any, **options: Any) -> nn.Module:
        model: nn.Module = original(*args, **options)
        devices.extend(p.device.type for p in model.parameters())
        return model

    monkeypatch.setattr(torchvision_models, "get_model", watched)
    for name in ("regnet_y_400mf", "squeezenet1_1"):
        check_classifier(recipe(model=name), 7, 64)
    assert set(devices) == {"meta"}


def test_the_built_model_has_the_head_and_the_checked_number_of_parameters() -> None:
    model, normalization = build_classifier(recipe(model="squeezenet1_1"), 5, 64)
    assert sum(p.numel() for p in model.parameters()) == check_classifier(recipe(model="squeezenet1_1"), 5, 64)[0]
    assert normalization == Normalization()
    trains(model, 5, 64)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "heads", "imgsz"), [("googlenet", 3, 64), ("inception_v3", 2, 299)])
def test_auxiliary_heads_train(name: str, heads: int, imgsz: int) -> None:
    model, _ = build_classifier(recipe(model=name), 5, imgsz)
    assert len(model.train()(torch.randn(2, 3, imgsz, imgsz))) == heads
    trains(model, 5, imgsz)


# ----------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("name", "imgsz"),
    [
        ("alexnet", 32),
        ("vgg11", 16),
        ("squeezenet1_1", 16),
        ("inception_v3", 128),  # enough for the model itself, but not for the auxiliary head that training needs
        ("vit_b_16", 100),
        ("maxvit_t", 100),
        ("densenet121", 24),
    ],
)
def test_a_size_that_the_model_does_not_take_is_refused(name: str, imgsz: int) -> None:
    with pytest.raises(ValueError, match=rf"^model {name} .*imgsz={imgsz}: "):
        check_classifier(recipe(model=name), 7, imgsz)


def test_an_unknown_name_answers_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown model 'resnet8': did you mean resnet18"):
        check_classifier(recipe(model="resnet8"), 7, 64)


def own(builder: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """The reference of a model function of the user's own."""
    module = types.ModuleType("users_models")
    module.build = builder  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "users_models", module)
    return "users_models:build"


class TwoHeads(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(3, num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.head(images.mean((2, 3)))
        return logits, logits


def decaying(num_classes: int) -> nn.Module:
    """Computes with real numbers while it is built, as models with stochastic depth do."""
    rates = [rate.item() for rate in torch.linspace(0, 0.1, 3)]
    return nn.Sequential(nn.Flatten(), *[nn.Dropout(rate) for rate in rates], nn.Linear(192, num_classes))


@pytest.mark.parametrize("builder", [tiny.linear, decaying])
def test_a_function_of_the_users_own_is_taken(monkeypatch: pytest.MonkeyPatch, builder: Any) -> None:
    reference = own(builder, monkeypatch)
    assert check_classifier(recipe(model=reference), 5, 8) == (193 * 5, None)
    trains(build_classifier(recipe(model=reference), 5, 8)[0], 5, 8)


@pytest.mark.parametrize(
    ("builder", "message"),
    [
        (lambda num_classes: "a model", "the function returned str, not a torch.nn.Module"),
        (lambda num_classes: nn.Flatten(), r"must map 2 images to logits \(2, 5\), but gave \(2, 192\)"),
        (lambda num_classes: nn.Conv2d(3, 5, 8), r"must map 2 images to logits \(2, 5\), but gave \(2, 5, 1, 1\)"),
        (TwoHeads, r"must map 2 images to logits \(2, 5\), but gave tuple"),
        (lambda: tiny.linear(5), "cannot be called with num_classes="),
        ("text", "cannot be called with num_classes="),
    ],
    ids=["no module", "no head", "no logits", "two outputs", "no argument", "no function"],
)
def test_a_function_that_makes_no_classifier_is_refused(
    monkeypatch: pytest.MonkeyPatch, builder: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_classifier(recipe(model=own(builder, monkeypatch)), 5, 8)


def test_a_model_for_one_size_is_not_rebuilt_for_those_of_multi_scale() -> None:
    made = recipe(model="vit_b_32")
    with pytest.raises(ValueError, match=r"^model vit_b_32 does not take images of imgsz=64: "):
        check_classifier(made, 5, 96, [64, 96])
    check_classifier(recipe(model="squeezenet1_1"), 5, 96, [64, 96, 128])


# ---------------------------------------------------------------------------------------- published weights


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """What torchvision "downloads" for squeezenet1_1."""
    torch.manual_seed(0)
    state: dict[str, Tensor] = torchvision_models.squeezenet1_1().state_dict()
    monkeypatch.setattr(torchvision_models.SqueezeNet1_1_Weights, "get_state_dict", lambda *_, **__: state)
    return state


def test_published_weights_are_loaded_with_their_normalisation(published: dict[str, Tensor]) -> None:
    made = recipe(model="squeezenet1_1", pretrained=True)
    _, loaded = check_classifier(made, 5, 64)
    assert loaded is not None
    assert (loaded.source, loaded.resized) == ("torchvision", ["classifier.1.weight", "classifier.1.bias"])
    model, normalization = build_classifier(made, 5, 64)
    assert normalization == Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert torch.equal(model.state_dict()["features.0.weight"], published["features.0.weight"])


def test_without_network_the_file_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torchvision_models.ResNet18_Weights, "get_state_dict", offline)
    with pytest.raises(
        ValueError, match=r"pretrained: true needs https://.*resnet18.*no route to host.*set pretrained to a"
    ):
        check_classifier(recipe(model="resnet18", pretrained=True), 5, 64)


def test_ones_own_model_has_no_published_weights() -> None:
    with pytest.raises(
        ValueError, match=r"tests\.tiny:linear has no published weights: set pretrained to false or to a file"
    ):
        check_classifier(recipe(model=TINY, pretrained=True), 5, 8)


def test_a_detectors_published_weights_name_what_it_normalises_by(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "ssdlite320_mobilenet_v3_large"
    state = {key: torch.zeros(1) for key in ("a", "b")}
    detector = types.SimpleNamespace(
        transform=types.SimpleNamespace(image_mean=[0.5, 0.5, 0.5], image_std=[0.4, 0.5, 0.6]), state_dict=lambda: state
    )
    monkeypatch.setattr(torchvision_models, "get_model", lambda *_, **__: detector)
    assert torchvision_weights(name) == (state, Normalization((0.5, 0.5, 0.5), (0.4, 0.5, 0.6)))


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_inputs_are_transformed_as_the_published_weights_expect(name: str) -> None:
    """torchvision switches this on where it loads the weights itself."""
    with NoMemory():
        model, _ = build_classifier(recipe(model=name), 5, 299)
    assert getattr(model, "transform_input") is True  # noqa: B009 (untyped)


# ------------------------------------------------------------------------------------------------------ timm


@pytest.fixture
def timm() -> Any:
    return pytest.importorskip("timm")


def test_timms_classifiers_are_built_for_their_classes_and_size(timm: Any) -> None:
    model, normalization = build_classifier(recipe(model="timm/test_convnext", freeze=1), 5, 64)
    parameters, loaded = check_classifier(recipe(model="timm/test_convnext", freeze=1), 5, 64)
    assert (parameters, loaded) == (sum(p.numel() for p in model.parameters()), None)
    assert normalization == Normalization()
    assert {n.split(".")[0] for n, p in model.named_parameters() if not p.requires_grad} == {"stem"}
    model.requires_grad_()
    trains(model, 5, 64)


def test_timms_models_for_one_size_are_built_for_imgsz(timm: Any) -> None:
    model, _ = build_classifier(recipe(model="timm/test_vit"), 5, 64)
    trains(model, 5, 64)
    with pytest.raises(ValueError, match=r"model timm/test_vit .*imgsz=100: "):
        check_classifier(recipe(model="timm/test_vit"), 5, 100)


@pytest.mark.parametrize(
    ("name", "imgsz"), [("resnet18", 224), ("test_vit", 160), ("resnet18.a3_in1k", 160), ("no_such_model", 224)]
)
def test_timms_default_size_is_that_of_its_weights(timm: Any, name: str, imgsz: int) -> None:
    assert default_imgsz(f"timm/{name}") == imgsz


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet81", r"unknown model 'timm/resnet81': did you mean resnet"),
        ("resnet18.a1_in2k", r"published weights of resnet18: did you mean a1_in1k"),
        ("", r"unknown model 'timm/'"),
        ("hf-hub:someone/model", r"unknown model 'timm/hf-hub:someone/model'"),
    ],
)
def test_an_unknown_name_of_timm_answers_with_the_nearest(timm: Any, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_classifier(recipe(model=f"timm/{name}"), 5, 64)


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"pip install 'orchestrator\[timm\]'"):
        check_classifier(recipe(model="timm/resnet18"), 5, 64)
    assert default_imgsz("timm/resnet18") == 224


@pytest.fixture
def timms_weights(timm: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """What timm "downloads": those of test_vit, whose positions are for images of 160."""
    torch.manual_seed(0)
    state: dict[str, Tensor] = timm.create_model("test_vit").state_dict()
    loader = sys.modules[timm.create_model.__module__.replace("_factory", "_builder")]
    monkeypatch.setattr(loader, "load_state_dict_from_hf", lambda *_, **__: dict(state))
    return state


def test_timms_published_weights_are_loaded_with_their_normalisation(timms_weights: dict[str, Tensor]) -> None:
    made = recipe(model="timm/test_vit", pretrained=True)
    _, loaded = check_classifier(made, 5, 64)
    assert loaded is not None
    assert (loaded.source, loaded.resized, loaded.missing) == ("timm", ["head.weight", "head.bias"], [])
    model, normalization = build_classifier(made, 5, 64)
    assert normalization == Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert torch.equal(model.state_dict()["blocks.0.attn.qkv.weight"], timms_weights["blocks.0.attn.qkv.weight"])
    assert model.state_dict()["pos_embed"].shape != timms_weights["pos_embed"].shape, "resampled by timm"


def test_without_network_the_place_of_timms_weights_is_named(timm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route to host")

    loader = sys.modules[timm.create_model.__module__.replace("_factory", "_builder")]
    monkeypatch.setattr(loader, "load_state_dict_from_hf", offline)
    message = r"pretrained: true needs https://huggingface\.co/timm/resnet18\S*, .*no route to host.*set pretrained to"
    with pytest.raises(ValueError, match=message):
        check_classifier(recipe(model="timm/resnet18", pretrained=True), 5, 64)


def test_a_file_of_weights_loads_into_a_model_of_timm(tmp_path: Path, timms_weights: dict[str, Tensor]) -> None:
    torch.save({"state_dict": timms_weights}, tmp_path / "w.pth")
    _, loaded = check_classifier(recipe(model="timm/test_vit", pretrained=str(tmp_path / "w.pth")), 5, 64)
    assert loaded is not None
    assert (loaded.resampled, loaded.resized) == (["pos_embed"], ["head.weight", "head.bias"])
