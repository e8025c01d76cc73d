"""Classifiers: torchvision's by name, timm's as ``timm/NAME``, or ``package.module:function`` of the user's own.

A function of the user's own is called with ``num_classes=`` and returns a module that maps (n, 3, imgsz, imgsz)
float images to (n, num_classes) logits.
"""

from __future__ import annotations

import http.client
import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision import models as torchvision_models

from trainables import timm_models
from trainables.freeze import check as check_freeze
from trainables.freeze import freeze
from trainables.pixels import Normalization
from trainables.recipe import Recipe
from trainables.registry import lookup
from trainables.weights import Loaded, Published, load_pretrained

__all__ = [
    "Loaded",
    "NoMemory",
    "build_classifier",
    "check_classifier",
    "default_imgsz",
    "model_names",
    "torchvision_weights",
]

_BUILDER_OPTIONS: dict[str, Callable[[int], dict[str, Any]]] = {
    # their published weights take other pixels than ImageNet's normalised ones, and transform them themselves
    **{name: lambda imgsz: {"init_weights": True, "transform_input": True} for name in ("googlenet", "inception_v3")},
    "maxvit_t": lambda imgsz: {"input_size": (imgsz, imgsz)},
    **{f"vit_{name}": lambda imgsz: {"image_size": imgsz} for name in ("b_16", "b_32", "l_16", "l_32", "h_14")},
}
"""What some builders must be told beyond the number of classes, given imgsz."""


def model_names() -> list[str]:
    """The names of torchvision's classifiers."""
    return list(torchvision_models.list_models(module=torchvision_models))


def default_imgsz(model: str) -> int:
    """The size that the model's published weights were trained for, else 224."""
    if timm_models.is_timm(model):
        return timm_models.default_imgsz(model) or 224
    if model not in model_names():
        return 224
    transforms: partial[Any] = torchvision_models.get_model_weights(model).DEFAULT.transforms
    return int(transforms.keywords.get("crop_size", 224))


def build_classifier(recipe: Recipe, classes: int, imgsz: int) -> tuple[nn.Module, Normalization]:
    """The model with a head for `classes`, the weights that ``pretrained`` asks for and ``freeze`` applied to it.

    Returns it with the normalisation that the weights expect. Raises ValueError as `check_classifier` does.
    """
    model = _build(recipe.model, classes, imgsz)
    _, normalization = load_pretrained(model, recipe, _published(recipe, imgsz))
    freeze(model, recipe.freeze)
    return model, normalization


def check_classifier(recipe: Recipe, classes: int, imgsz: int, sizes: Iterable[int] = ()) -> tuple[int, Loaded | None]:
    """Build the model without memory and run one batch through it: the number of parameters, and what would be loaded.

    sizes: of images that it must take too, once it is built for imgsz.

    Raises ValueError that says what to change where the name, the size of the images, the output, the weights or what
    is frozen are wrong. Downloads published weights into torch's cache.
    """
    with NoMemory():
        model = _build(recipe.model, classes, imgsz).to("meta")
    for size in {imgsz: None, **dict.fromkeys(sizes)}:
        _try_size(model, recipe.model, classes, size)
    loaded, _ = load_pretrained(model, recipe, _published(recipe, imgsz))
    check_freeze(model, recipe.freeze)
    return sum(p.numel() for p in model.parameters()), loaded


def _try_size(model: nn.Module, name: str, classes: int, imgsz: int) -> None:
    images = torch.empty(2, 3, imgsz, imgsz, device="meta")
    try:
        with torch.no_grad():
            model.train()(images)  # auxiliary heads need larger images than the rest
            logits = model.eval()(images)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ValueError(f"model {name} does not take images of imgsz={imgsz}: {_brief(error)}") from error
    if not isinstance(logits, Tensor) or logits.shape != (2, classes):
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"model {name} must map 2 images to logits (2, {classes}), but gave {got}")


class NoMemory(TorchFunctionMode):
    """Weights without memory. Unlike torch.device("meta") it leaves real what a builder computes with (regnet does)."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        if func in (torch.empty, torch.zeros, torch.ones, torch.randn) and options.get("device") is None:
            options["device"] = "meta"
        return func(*args, **options)


def _build(name: str, classes: int, imgsz: int) -> nn.Module:
    builder, options = _builder(name, imgsz)
    options["num_classes"] = classes
    try:
        inspect.signature(builder).bind(**options)
    except TypeError as error:
        raise ValueError(f"model {name} cannot be called with num_classes=: {error}") from error
    try:
        model = builder(**options)
    except (ValueError, AssertionError) as error:
        raise ValueError(f"model {name} cannot be built for imgsz={imgsz}: {_brief(error)}") from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"model {name}: the function returned {type(model).__name__}, not a torch.nn.Module")
    return model


def _builder(name: str, imgsz: int) -> tuple[Callable[..., Any], dict[str, Any]]:
    """What builds a model, and what it must be told for imgsz."""
    if timm_models.is_timm(name):
        return timm_models.builder(name, imgsz), {}
    table = {known: partial(torchvision_models.get_model, known, weights=None) for known in model_names()}
    _refuse_detectors(name)
    options = _BUILDER_OPTIONS[name](imgsz) if name in _BUILDER_OPTIONS else {}
    return lookup(table, name, "model"), options


def _refuse_detectors(name: str) -> None:
    from trainables.detectors import DETECTORS  # which builds on this module

    if name in DETECTORS:
        raise ValueError(f"model {name} is for task: {DETECTORS[name].task}, and the task here is classify: set task")


def _published(recipe: Recipe, imgsz: int) -> Published | None:
    if timm_models.is_timm(recipe.model):
        return partial(timm_models.published, recipe.model, imgsz)
    return partial(torchvision_weights, recipe.model) if recipe.model in model_names() else None


def torchvision_weights(name: str) -> tuple[dict[str, Tensor], Normalization]:
    """torchvision's published weights of one of its models, by its names, and the normalisation that they expect.

    Of a detector: those for COCO. Raises ValueError where they cannot be downloaded.
    """
    weights = torchvision_models.get_model_weights(name).DEFAULT
    try:
        # not the file alone: some builders rename what is in it
        with weights_only():
            model = torchvision_models.get_model(name, weights=weights, progress=False)
    except (OSError, http.client.HTTPException, RuntimeError) as error:  # a broken download has another hash
        raise ValueError(
            f"pretrained: true needs {weights.url}, which cannot be downloaded ({error}); "
            "set pretrained to a file that you have, or to false"
        ) from error
    # classifiers name it beside the weights, detectors do it themselves
    transforms: Any = getattr(model, "transform", None) or weights.transforms()
    mean, std = (getattr(transforms, f"image_{key}", None) or getattr(transforms, key) for key in ("mean", "std"))
    return model.state_dict(), Normalization(tuple(mean), tuple(std))


@contextmanager
def weights_only() -> Iterator[None]:
    """Let torch read tensors alone, also where a library leaves the choice to torch's hub, which would run pickles."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _brief(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
