"""Models: torchvision's classifiers by name, or ``package.module:function`` of the user's own.

A function of the user's own is called with ``num_classes=`` and returns a module that maps (n, 3, imgsz, imgsz)
float images to (n, num_classes) logits.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision import models as torchvision_models

from trainables.pixels import Normalization
from trainables.recipe import Recipe
from trainables.registry import lookup

_BUILDER_OPTIONS: dict[str, Callable[[int], dict[str, Any]]] = {
    # their published weights take other pixels than ImageNet's normalised ones, and transform them themselves
    **{name: lambda imgsz: {"init_weights": True, "transform_input": True} for name in ("googlenet", "inception_v3")},
    "maxvit_t": lambda imgsz: {"input_size": (imgsz, imgsz)},
    **{f"vit_{name}": lambda imgsz: {"image_size": imgsz} for name in ("b_16", "b_32", "l_16", "l_32", "h_14")},
}
"""What some builders must be told beyond the number of classes, given imgsz."""


@dataclass(frozen=True)
class Loaded:
    """What became of a file of weights: names of the model's tensors, and of the file's."""

    source: str
    loaded: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    """In both, with another shape (as a head for another number of classes): left as initialised."""
    missing: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} tensors loaded from {self.source}"]
        for label in ("resized", "missing", "unused"):
            names: list[str] = getattr(self, label)
            if names:
                shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
                parts.append(f"{len(names)} {label} ({shown})")
        return "; ".join(parts)


def model_names() -> list[str]:
    """The names of torchvision's classifiers."""
    return list(torchvision_models.list_models(module=torchvision_models))


def default_imgsz(model: str) -> int:
    """The size that the model's published weights were trained for, else 224."""
    if model not in model_names():
        return 224
    transforms: partial[Any] = torchvision_models.get_model_weights(model).DEFAULT.transforms
    return int(transforms.keywords.get("crop_size", 224))


def build_classifier(recipe: Recipe, classes: int, imgsz: int) -> tuple[nn.Module, Normalization]:
    """The model with a head for `classes`, with the weights that ``pretrained`` asks for, and their normalisation."""
    model = _build(recipe.model, classes, imgsz)
    if recipe.pretrained is False:
        return model, Normalization()
    weights, normalization = _pretrained(recipe)
    own = model.state_dict()
    fits = {k: v for k, v in weights.items() if k in own and own[k].shape == v.shape}
    model.load_state_dict(fits, strict=False)
    return model, normalization


def check_classifier(recipe: Recipe, classes: int, imgsz: int) -> tuple[int, Loaded | None]:
    """Build the model without memory and run one batch through it: the number of parameters, and what would be loaded.

    Raises ValueError that says what to change where the name, the size of the images, the output or the weights are
    wrong. Downloads published weights into torch's cache.
    """
    with _NoMemory():
        model = _build(recipe.model, classes, imgsz).to("meta")
    images = torch.empty(2, 3, imgsz, imgsz, device="meta")
    try:
        with torch.no_grad():
            model.train()(images)  # auxiliary heads need larger images than the rest
            logits = model.eval()(images)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ValueError(f"model {recipe.model} does not take images of imgsz={imgsz}: {_brief(error)}") from error
    if not isinstance(logits, Tensor) or logits.shape != (2, classes):
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"model {recipe.model} must map 2 images to logits (2, {classes}), but gave {got}")
    parameters = sum(p.numel() for p in model.parameters())
    return parameters, None if recipe.pretrained is False else _match(model, _pretrained(recipe)[0], recipe)


class _NoMemory(TorchFunctionMode):
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
    table = {known: partial(torchvision_models.get_model, known, weights=None) for known in model_names()}
    builder = lookup(table, name, "model")
    options: dict[str, Any] = {"num_classes": classes}
    if name in _BUILDER_OPTIONS:
        options |= _BUILDER_OPTIONS[name](imgsz)
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


def _pretrained(recipe: Recipe) -> tuple[dict[str, Tensor], Normalization]:
    if recipe.pretrained is not True:
        return read_weights(Path(str(recipe.pretrained)).expanduser()), Normalization()
    if recipe.model not in model_names():
        raise ValueError(f"model {recipe.model} has no published weights: set pretrained to false or to a file")
    weights = torchvision_models.get_model_weights(recipe.model).DEFAULT
    try:
        model = torchvision_models.get_model(recipe.model, weights=weights, progress=False)
    except OSError as error:  # urllib's errors are OSErrors
        raise ValueError(
            f"pretrained: true needs {weights.url}, which cannot be downloaded ({error}); "
            "set pretrained to a file that you have, or to false"
        ) from error
    transforms = weights.transforms()
    return model.state_dict(), Normalization(tuple(transforms.mean), tuple(transforms.std))


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict in a .safetensors file or in a PyTorch file (read with weights_only), as float tensors on the CPU.

    Dicts under "state_dict" or "model" are unwrapped, "module." prefixes dropped. Raises ValueError.
    """
    if not path.is_file():
        raise ValueError(f"pretrained: there is no file {path}")
    try:
        content: Any = load_file(path) if path.suffix == ".safetensors" else _torch_load(path)
    except Exception as error:
        raise ValueError(f"pretrained: {path} is not a readable file of weights: {_brief(error)}") from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise ValueError(f"pretrained: {path} holds a {type(content).__name__}, not a state dict")
    tensors = {str(k).removeprefix("module."): v for k, v in content.items() if isinstance(v, Tensor)}
    return {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}


def _torch_load(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _brief(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _match(model: nn.Module, weights: dict[str, Tensor], recipe: Recipe) -> Loaded:
    own = model.state_dict()
    source = "torchvision" if recipe.pretrained is True else str(recipe.pretrained)
    shared = [k for k in own if k in weights]
    result = Loaded(
        source,
        loaded=[k for k in shared if own[k].shape == weights[k].shape],
        resized=[k for k in shared if own[k].shape != weights[k].shape],
        missing=[k for k in own if k not in weights],
        unused=[k for k in weights if k not in own],
    )
    if not result.loaded:
        keys = ", ".join(list(weights)[:3]) or "nothing"
        raise ValueError(f"pretrained: no tensor of {source} fits {recipe.model} (the file has {keys}, ...)")
    return result
