"""Detectors: torchvision's by name, a light Mask R-CNN of our own, or ``package.module:function`` of the user's own.

A function of the user's own is called with ``num_classes=``, one more than the data has: 0 is the background. It
returns a module with torchvision's interface: in training it takes images and a list of targets (boxes, labels, for
instance segmentation masks) and gives a dict of losses; else it takes images and gives a list of dicts with boxes,
labels, scores (and masks). Images come as one batch (n, 3, imgsz, imgsz), normalised.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor, nn
from torchvision import models as torchvision_models
from torchvision.models.detection import FCOS, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import mobilenet_backbone

from trainables.detector_parts import FAMILIES, adapt, limit_detections
from trainables.freeze import freeze
from trainables.models import model_names
from trainables.pixels import Normalization
from trainables.recipe import Recipe
from trainables.registry import did_you_mean, load
from trainables.weights import Loaded, load_pretrained

MAX_DETECTIONS = 100
"""The best of an image, as COCO evaluates them."""
FCOS_SCORE = 0.05
"""FCOS' least score; torchvision's 0.2 cuts the end off its precision-recall curve."""


@dataclass(frozen=True)
class Detector:
    """A detector of the table.

    build: called with ``num_classes=``, gives the model with random weights.
    imgsz: the size that its published weights were trained for, or one that suits it.
    background: whether class 0 is the background, so that the data's classes begin at 1.
    frozen_norms: whether the batch norms of a backbone with pretrained weights stay as they are (torchvision's rule).
    published: torchvision's model whose weights fit.
    exact_norms: whether the published weights were trained with batch norms without epsilon.
    raw_pixels: whether they take pixels of 0 to 255, which would start a training from scratch with a loss of hundreds.
    """

    task: str
    build: Callable[..., nn.Module]
    imgsz: int
    background: bool = True
    frozen_norms: bool = True
    published: str = ""
    exact_norms: bool = False
    raw_pixels: bool = False


@dataclass(frozen=True)
class Built:
    """A model with what its task must know of it.

    first_label: what the model calls the data's class 0. box_masks: whether its masks lie over their boxes, and not
    over the whole image.
    """

    model: nn.Module
    normalization: Normalization
    first_label: int
    box_masks: bool
    loaded: Loaded | None = None


def maskrcnn_mobilenet_v3_large_fpn(num_classes: int) -> MaskRCNN:
    """Mask R-CNN (He et al., 2017) over the backbone of torchvision's Faster R-CNN with MobileNetV3, whose anchors and
    published weights it shares."""
    backbone = mobilenet_backbone(
        backbone_name="mobilenet_v3_large", weights=None, fpn=True, norm_layer=nn.BatchNorm2d, trainable_layers=6
    )
    sizes = ((32, 64, 128, 256, 512),) * 3
    return MaskRCNN(backbone, num_classes, rpn_anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 3))


def _torchvision(name: str, imgsz: int, **options: Any) -> Detector:
    build = partial(torchvision_models.get_model, name, weights=None, weights_backbone=None)
    return Detector("segment" if name.startswith("mask") else "detect", build, imgsz, published=name, **options)


DETECTORS: dict[str, Detector] = {
    "ssdlite320_mobilenet_v3_large": _torchvision("ssdlite320_mobilenet_v3_large", 320, frozen_norms=False),
    "ssd300_vgg16": _torchvision("ssd300_vgg16", 300, raw_pixels=True),
    "fcos_resnet50_fpn": _torchvision("fcos_resnet50_fpn", 640, background=False),
    "retinanet_resnet50_fpn": _torchvision("retinanet_resnet50_fpn", 640, background=False, exact_norms=True),
    "retinanet_resnet50_fpn_v2": _torchvision("retinanet_resnet50_fpn_v2", 640, background=False, frozen_norms=False),
    "fasterrcnn_mobilenet_v3_large_320_fpn": _torchvision("fasterrcnn_mobilenet_v3_large_320_fpn", 320),
    "fasterrcnn_mobilenet_v3_large_fpn": _torchvision("fasterrcnn_mobilenet_v3_large_fpn", 640),
    "fasterrcnn_resnet50_fpn": _torchvision("fasterrcnn_resnet50_fpn", 640, exact_norms=True),
    "fasterrcnn_resnet50_fpn_v2": _torchvision("fasterrcnn_resnet50_fpn_v2", 640, frozen_norms=False),
    "maskrcnn_mobilenet_v3_large_fpn": Detector(
        "segment", maskrcnn_mobilenet_v3_large_fpn, 512, published="fasterrcnn_mobilenet_v3_large_fpn"
    ),
    "maskrcnn_resnet50_fpn": _torchvision("maskrcnn_resnet50_fpn", 640, exact_norms=True),
    "maskrcnn_resnet50_fpn_v2": _torchvision("maskrcnn_resnet50_fpn_v2", 640, frozen_norms=False),
}
"""Name -> detector. Those whose name begins with "mask" are for task: segment, the others for task: detect."""

_OWN_IMGSZ = {"detect": 640, "segment": 512}
"""Of a model of the user's own."""


def default_detector_imgsz(recipe: Recipe) -> int:
    """The size that a detector sees where the config names none."""
    entry = DETECTORS.get(recipe.model)
    return entry.imgsz if entry else _OWN_IMGSZ[recipe.task]


def build_detector(recipe: Recipe, classes: int) -> Built:
    """The detector for so many classes, with the weights that ``pretrained`` asks for and frozen as ``freeze`` says.

    Raises ValueError for a name, a function, weights or a pattern that do not do.
    """
    entry = None if ":" in recipe.model else find_detector(recipe)
    return start_from(assemble(entry, recipe, classes), entry, recipe)


def assemble(entry: Detector | None, recipe: Recipe, classes: int) -> Built:
    """The model with random weights."""
    first_label = 1 if entry is None or entry.background else 0
    builder = load(recipe.model) if entry is None else entry.build
    model = _call(builder, recipe.model, classes + first_label)
    if not isinstance(model, FAMILIES):
        return Built(model, Normalization(), first_label, box_masks=False)
    if recipe.task == "segment" and not isinstance(model, MaskRCNN):
        raise ValueError(f"model {recipe.model} gives boxes only: for task: segment it must be a MaskRCNN")
    normalization = adapt(model)
    if entry is not None:
        limit_detections(model, MAX_DETECTIONS)
        if isinstance(model, FCOS):
            model.score_thresh = FCOS_SCORE
        if entry.raw_pixels and recipe.pretrained is False:
            normalization = Normalization()
    return Built(model, normalization, first_label, box_masks=True)


def start_from(built: Built, entry: Detector | None, recipe: Recipe) -> Built:
    """Load and freeze what the recipe says. A model without memory is only checked."""
    model = built.model
    published = partial(_fetch, entry.published, built.normalization) if entry else None
    rename = partial(_name_of_today, frozenset(model.state_dict()))
    loaded, normalization = load_pretrained(model, recipe, published, built.normalization, rename)
    if entry and entry.exact_norms and recipe.pretrained is True:
        for norm in _backbone_norms(model).values():
            norm.eps = 0.0
    norms = list(_backbone_norms(model))
    if entry and entry.frozen_norms and norms and loaded and any(n.startswith("backbone.") for n in loaded.loaded):
        freeze(model, norms)
    freeze(model, recipe.freeze)
    return replace(built, normalization=normalization, loaded=loaded)


def _fetch(name: str, normalization: Normalization) -> tuple[dict[str, Tensor], Normalization]:
    """A detector's published weights, from torch's cache or downloaded. Raises ValueError."""
    weights = torchvision_models.get_model_weights(name).DEFAULT
    try:
        return weights.get_state_dict(progress=False, check_hash=True, weights_only=True), normalization
    except OSError as error:  # urllib's errors are OSErrors
        raise ValueError(
            f"pretrained: true needs {weights.url}, which cannot be downloaded ({error}); "
            "set pretrained to a file that you have, or to false"
        ) from error


_OLD_NAMES: tuple[tuple[str, Callable[[re.Match[str]], str]], ...] = (
    (r"(.*fpn\.(?:inner|layer)_blocks\.\d+)\.(\w+)", lambda m: f"{m[1]}.0.{m[2]}"),
    (r"(.*rpn\.head\.conv)\.(\w+)", lambda m: f"{m[1]}.0.0.{m[2]}"),
    (r"(.*head\.\w+_head\.conv)\.(\d+)\.(\w+)", lambda m: f"{m[1]}.{int(m[2]) // 2}.0.{m[3]}"),
    (r"(.*mask_head)\.mask_fcn(\d+)\.(\w+)", lambda m: f"{m[1]}.{int(m[2]) - 1}.0.{m[3]}"),
)
"""What layers were called before torchvision 0.13, when most of its published files were made."""


def _name_of_today(own: frozenset[str], name: str) -> str:
    """The model's name for a tensor of a file that may be old; `own` are the names of the model's state."""
    if name not in own:
        for pattern, new in _OLD_NAMES:
            if (match := re.fullmatch(pattern, name)) and new(match) in own:
                return new(match)
    return name


def _backbone_norms(model: nn.Module) -> dict[str, nn.BatchNorm2d]:
    """The batch norms of a detector's backbone, by name; without those of its feature pyramid."""
    named = model.named_modules()
    body = {name: m for name, m in named if name.startswith("backbone.") and not name.startswith("backbone.fpn.")}
    return {name: m for name, m in body.items() if isinstance(m, nn.BatchNorm2d)}


def find_detector(recipe: Recipe) -> Detector:
    """The model's line of the table. Raises ValueError for one of another task, and for none."""
    name, entry = recipe.model, DETECTORS.get(recipe.model)
    if entry is not None and entry.task == recipe.task:
        return entry
    of_task = [known for known, other in DETECTORS.items() if other.task == recipe.task]
    if entry is None and name not in model_names() and not name.startswith("timm/"):
        raise ValueError(f"unknown model {name!r} for task: {recipe.task}: {did_you_mean(name, of_task)}")
    owner = entry.task if entry else "classify"
    raise ValueError(f"model {name} is for task: {owner}; for task: {recipe.task} {did_you_mean(name, of_task)}")


def _call(builder: Any, name: str, num_classes: int) -> nn.Module:
    try:
        inspect.signature(builder).bind(num_classes=num_classes)
    except TypeError as error:
        raise ValueError(f"model {name} cannot be called with num_classes=: {error}") from error
    model = builder(num_classes=num_classes)
    if not isinstance(model, nn.Module):
        raise ValueError(f"model {name}: the function returned {type(model).__name__}, not a torch.nn.Module")
    return model
