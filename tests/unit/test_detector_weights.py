"""Detectors that start from weights: what is loaded, and which batch norms then stay as they are."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models as torchvision_models

from tests.tiny import recipe
from trainables import detectors
from trainables.detector_check import check_detector
from trainables.detectors import DETECTORS, assemble, build_detector, start_from
from trainables.models import NoMemory
from trainables.recipe import Recipe

NAME = "fasterrcnn_mobilenet_v3_large_320_fpn"


def of(name: str, **settings: Any) -> Recipe:
    return recipe(task=DETECTORS[name].task, model=name, **settings)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as torchvision publishes it: 90 classes, frozen norms, which count no batches."""
    torch.manual_seed(0)
    state = build_detector(of(NAME), 90).model.state_dict()
    path = tmp_path_factory.mktemp("weights") / "coco.safetensors"
    kept = {k: v.contiguous() for k, v in state.items() if not k.endswith("num_batches_tracked")}
    save_file({k: v + 1 if k.endswith("running_mean") else v for k, v in kept.items()}, path)
    return path


def norms(model: nn.Module) -> dict[str, Any]:
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}


def test_all_but_the_head_is_loaded_and_told_beforehand(trained: Path) -> None:
    settings = of(NAME, pretrained=str(trained))
    _, promised = check_detector(settings, 3, [320])
    built = build_detector(settings, 3)
    assert built.loaded == promised
    assert promised is not None
    heads = ["cls_score.weight", "cls_score.bias", "bbox_pred.weight", "bbox_pred.bias"]
    assert promised.resized == [f"roi_heads.box_predictor.{name}" for name in heads]
    assert (promised.missing, promised.unused) == ([], [])


def test_batch_norms_of_a_pretrained_backbone_stay_as_they_are(trained: Path) -> None:
    model = build_detector(of(NAME, pretrained=str(trained)), 3).model
    before = copy.deepcopy(norms(model))
    target = {"boxes": torch.tensor([[2.0, 2.0, 30.0, 40.0]]), "labels": torch.tensor([1])}
    for trains in (model, copy.deepcopy(model)):
        sum(trains.train()(torch.rand(2, 3, 64, 64), [target, target]).values()).backward()
        for name, norm in norms(trains).items():
            assert not norm.training
            assert not norm.weight.requires_grad
            assert torch.equal(before[name].running_mean, norm.running_mean)
    convolution: Any = model.get_submodule("backbone.body.0.0")
    assert convolution.weight.grad is not None, "only the norms are frozen"


def test_from_scratch_they_train() -> None:
    model = build_detector(of(NAME), 3).model.train()
    assert all(norm.training for norm in norms(model).values())
    assert all(p.requires_grad for p in model.parameters())


def published(name: str, monkeypatch: pytest.MonkeyPatch, state: dict[str, Tensor] | None = None) -> Any:
    """The detector on the meta device, with published weights (by default of today's names) without their content."""
    entry = DETECTORS[name]
    with NoMemory():
        if state is None:
            options: Any = {"weights": None, "weights_backbone": None, "num_classes": 91}
            state = torchvision_models.get_model(entry.published, **options).state_dict()
        built = assemble(entry, of(name), 3)

    def fetch(asked: str, normalization: Any) -> tuple[dict[str, Tensor], Any]:
        assert asked == entry.published
        return state, normalization

    monkeypatch.setattr(detectors, "_fetch", fetch)
    built.model.to("meta")
    return start_from(built, entry, of(name, pretrained=True))


@pytest.mark.parametrize("name", DETECTORS)
def test_published_weights_fit_and_norms_follow_torchvisions_rule(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    built = published(name, monkeypatch)
    entry, model = DETECTORS[name], built.model.train()
    assert len(built.loaded.loaded) > 50
    assert built.loaded.unused == []
    own_head = ("roi_heads.mask",) if name == "maskrcnn_mobilenet_v3_large_fpn" else ()
    assert [key for key in built.loaded.missing if not key.startswith(own_head or "-")] == []
    body = [norm for key, norm in norms(model).items() if key.startswith("backbone.") and ".fpn." not in key]
    rest = [norm for norm in norms(model).values() if norm not in body]
    assert {norm.training for norm in body} <= {not entry.frozen_norms}
    assert all(norm.training for norm in rest)
    if entry.exact_norms:
        assert {norm.eps for norm in body} == {0.0}, "the weights were trained without"
    assert 0.0 not in {norm.eps for norm in rest}


@pytest.mark.parametrize("name", ["retinanet_resnet50_fpn", "maskrcnn_resnet50_fpn", "fcos_resnet50_fpn"])
def test_the_names_of_torchvisions_old_files_are_known(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torchvision's own models, which rename what they are given, load them."""
    with NoMemory():
        model = torchvision_models.get_model(name, weights=None, weights_backbone=None, num_classes=91).to("meta")
    old = {}
    for key, tensor in model.state_dict().items():
        key = re.sub(r"(fpn\.\w+_blocks\.\d)\.0\.", r"\1.", key)
        key = re.sub(r"(rpn\.head\.conv)\.0\.0\.", r"\1.", key)
        key = re.sub(r"(mask_head)\.(\d)\.0\.", lambda m: f"{m[1]}.mask_fcn{int(m[2]) + 1}.", key)
        if name.startswith("retinanet"):
            key = re.sub(r"(_head\.conv)\.(\d)\.0\.", lambda m: f"{m[1]}.{2 * int(m[2])}.", key)
        old[key] = tensor
    assert set(old) != set(model.state_dict())
    model.load_state_dict(old)
    built = published(name, monkeypatch, old)
    assert (built.loaded.missing, built.loaded.unused) == ([], [])


def test_weights_that_cannot_be_downloaded_are_told_with_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: Any, **kwargs: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    message = r"pretrained: true needs https://.*fasterrcnn_mobilenet_v3_large_320.*no route to host.*or to false"
    with pytest.raises(ValueError, match=message):
        check_detector(of(NAME, pretrained=True), 3, [320])


def test_a_classifiers_weights_go_into_the_backbone(tmp_path: Path) -> None:
    classifier = torchvision_models.mobilenet_v3_large(weights=None)
    path = tmp_path / "classifier.safetensors"
    save_file({k: v.contiguous() for k, v in classifier.state_dict().items()}, path)
    built = build_detector(of(NAME, pretrained=str(path)), 3)
    first: Any = built.model.get_submodule("backbone.body.0.0")
    assert torch.equal(first.weight, classifier.features[0][0].weight)
    assert built.loaded is not None
    assert not norms(built.model.train())["backbone.body.0.1"].training


def test_a_model_of_ones_own_starts_from_a_file_too(tmp_path: Path) -> None:
    settings = {"task": "detect", "model": "tests.tiny_detectors:boxes"}
    first = build_detector(recipe(**settings), 3).model
    save_file({k: v.contiguous() for k, v in first.state_dict().items()}, tmp_path / "own.safetensors")
    again = build_detector(recipe(**settings, pretrained=str(tmp_path / "own.safetensors")), 3)
    for name, tensor in again.model.state_dict().items():
        assert torch.equal(tensor, first.state_dict()[name])
    with pytest.raises(ValueError, match="has no published weights"):
        build_detector(recipe(**settings, pretrained=True), 3)
