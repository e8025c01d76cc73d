"""Every line of the table of detectors, and what is refused before anything starts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models as torchvision_models

from tests import tiny_detectors
from tests.tiny import recipe
from trainables.detector_check import check_detector
from trainables.detectors import DETECTORS, assemble, default_detector_imgsz, find_detector, start_from
from trainables.models import NoMemory
from trainables.recipe import MODELS_BY_TASK, Recipe

SIZES = range(320, 321)


def of(name: str, **settings: Any) -> Recipe:
    task = settings.pop("task", DETECTORS[name].task if name in DETECTORS else "detect")
    return recipe(task=task, model=name, **settings)


# ----------------------------------------------------------------------------------------------- the table


def test_the_table_has_the_defaults_of_the_tasks_and_torchvisions_detectors() -> None:
    assert {task: DETECTORS[MODELS_BY_TASK[task]].task for task in ("detect", "segment")} == {
        "detect": "detect",
        "segment": "segment",
    }
    published = set(torchvision_models.list_models(module=torchvision_models.detection)) - {"keypointrcnn_resnet50_fpn"}
    assert published == set(DETECTORS) - {"maskrcnn_mobilenet_v3_large_fpn"}


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_is_checked_without_memory_and_keeps_torchvisions_names(name: str) -> None:
    entry, own = DETECTORS[name], default_detector_imgsz(of(name))
    parameters, loaded = check_detector(of(name), 4, [own])
    assert loaded is None
    with NoMemory():
        plain = entry.build(num_classes=4 + entry.background)
        adapted = assemble(entry, of(name), 4).model
    assert parameters == sum(p.numel() for p in plain.parameters())
    assert shapes(adapted) == shapes(plain)
    weights = torchvision_models.get_model_weights(entry.published).DEFAULT
    assert len(weights.meta["categories"]) == 91


def shapes(model: nn.Module) -> list[tuple[str, torch.Size]]:
    return [(name, tensor.shape) for name, tensor in model.state_dict().items()]


def test_sizes_of_multi_scale_are_all_checked() -> None:
    with pytest.raises(ValueError, match="imgsz=224"):
        check_detector(of("ssd300_vgg16"), 2, range(224, 385, 32))
    check_detector(of("ssd300_vgg16"), 2, range(288, 385, 32))


@pytest.mark.parametrize("name", ["retinanet_resnet50_fpn", "ssd300_vgg16"])
def test_stages_of_the_backbone_can_be_frozen(name: str) -> None:
    entry, settings = DETECTORS[name], of(name, freeze=1)
    with NoMemory():
        model = start_from(assemble(entry, settings, 2), entry, settings).model
    frozen = [key for key, parameter in model.named_parameters() if not parameter.requires_grad]
    assert frozen
    assert all(key.startswith("backbone.") for key in frozen)
    with pytest.raises(ValueError, match=r"^freeze.*'nonsense\.\*' matches nothing"):
        check_detector(of(name, freeze=["nonsense.*"]), 2, SIZES)


# ------------------------------------------------------------------------------------------- wrong names


@pytest.mark.parametrize(
    ("task", "name", "message"),
    [
        ("detect", "resnet18", "model resnet18 is for task: classify; for task: detect "),
        ("detect", "timm/resnet18", "model timm/resnet18 is for task: classify"),
        (
            "detect",
            "maskrcnn_resnet50_fpn",
            "is for task: segment; for task: detect did you mean fasterrcnn_resnet50_fpn",
        ),
        ("segment", "ssd300_vgg16", "is for task: detect; for task: segment choose one of: maskrcnn_mobilenet"),
        (
            "detect",
            "fasterrcnn_resnet50",
            "unknown model 'fasterrcnn_resnet50' for task: detect: did you mean fasterrcnn",
        ),
        ("segment", "yolo", "unknown model 'yolo' for task: segment: choose one of: maskrcnn"),
    ],
)
def test_a_model_of_another_task_is_refused_with_the_names_that_do(task: str, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_detector(of(name, task=task))


def test_images_that_are_too_small_are_refused_with_the_least_size() -> None:
    with pytest.raises(
        ValueError, match=r"ssd300_vgg16 does not take images of imgsz=160: it needs (\d+) or more"
    ) as error:
        check_detector(of("ssd300_vgg16"), 2, range(160, 161))
    least = int(str(error.value).split("it needs ")[1].split()[0])
    check_detector(of("ssd300_vgg16"), 2, range(least, least + 1))
    with pytest.raises(ValueError, match=f"imgsz={least - 1}"):
        check_detector(of("ssd300_vgg16"), 2, range(least - 1, least))


# ------------------------------------------------------------------------------------- models of one's own


class Own(nn.Module):
    """What a user's detector may do wrong."""

    def __init__(self, losses: Any, found: Any) -> None:
        super().__init__()
        self.losses, self.found = losses, found
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, images: Tensor, targets: Any = None) -> Any:
        if self.training:
            assert targets is not None
            return self.losses
        return [self.found for _ in images] if isinstance(self.found, dict) else self.found


GOOD_LOSS = {"loss": torch.zeros(())}
GOOD = {"boxes": torch.zeros(3, 4), "labels": torch.ones(3, dtype=torch.int64), "scores": torch.ones(3)}


def good(num_classes: int) -> nn.Module:
    return Own(GOOD_LOSS, GOOD)


def takes_no_targets(num_classes: int) -> nn.Module:
    return nn.Conv2d(3, num_classes, 1)


def gives_logits(num_classes: int) -> nn.Module:
    return Own(torch.zeros(2, 3), GOOD)


def gives_a_vector(num_classes: int) -> nn.Module:
    return Own({"loss": torch.zeros(2)}, GOOD)


def gives_a_tensor(num_classes: int) -> nn.Module:
    return Own(GOOD_LOSS, torch.zeros(2, 5))


def gives_no_scores(num_classes: int) -> nn.Module:
    return Own(GOOD_LOSS, {"boxes": torch.zeros(3, 4), "labels": torch.ones(3)})


def gives_uneven(num_classes: int) -> nn.Module:
    return Own(GOOD_LOSS, GOOD | {"scores": torch.ones(2)})


def gives_a_string(num_classes: int) -> Any:
    return "model"


def wants_classes(classes: int) -> nn.Module:
    return Own(GOOD_LOSS, GOOD)


def is_a_faster_rcnn(num_classes: int) -> Any:
    return tiny_detectors.boxes(num_classes)


@pytest.mark.parametrize(
    ("function", "task", "message"),
    [
        ("takes_no_targets", "detect", "does not take a batch and targets as torchvision's detectors do"),
        ("gives_logits", "detect", r"must give a dict of scalar losses in training, but gave tensor \(2, 3\)"),
        ("gives_a_vector", "detect", "must give a dict of scalar losses in training, but gave dict of 1"),
        ("gives_a_tensor", "detect", r"must give a list with a dict per image, but gave tensor \(2, 5\)"),
        ("gives_no_scores", "detect", "must give tensors boxes, labels, scores for each image; it lacks scores"),
        ("good", "segment", "it lacks masks"),
        ("gives_uneven", "detect", r"must give \(k, 4\) boxes and k of all else"),
        ("gives_a_string", "detect", "the function returned str, not a torch.nn.Module"),
        ("wants_classes", "detect", "cannot be called with num_classes=: missing a required argument: 'classes'"),
        ("is_a_faster_rcnn", "segment", "gives boxes only: for task: segment it must be a MaskRCNN"),
        ("missing", "detect", "has no 'missing'"),
    ],
)
def test_a_detector_of_ones_own_is_tried_and_refused_with_what_is_wrong(function: str, task: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_detector(recipe(task=task, model=f"tests.contract.test_detectors:{function}"), 2, range(32, 33))


@pytest.mark.parametrize(
    ("model", "task"),
    [
        ("tests.contract.test_detectors:good", "detect"),
        ("tests.tiny_detectors:boxes", "detect"),
        ("tests.tiny_detectors:masks", "segment"),
        ("tests.tiny_detectors:of_own", "segment"),
        ("tests.tiny_detectors:of_own", "detect"),
    ],
)
def test_a_detector_of_ones_own_that_keeps_torchvisions_interface_does(model: str, task: str) -> None:
    parameters, loaded = check_detector(recipe(task=task, model=model), 3, [32, 48, 64])
    assert parameters >= 1
    assert loaded is None
    assert default_detector_imgsz(recipe(task=task, model=model)) == {"detect": 640, "segment": 512}[task]
