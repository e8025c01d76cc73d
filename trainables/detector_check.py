"""What can be wrong with a detector, found before anything is started."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trainables.detectors import Built, assemble, build_detector, find_detector, start_from
from trainables.models import NoMemory
from trainables.recipe import Recipe
from trainables.weights import Loaded


def check_detector(recipe: Recipe, classes: int, sizes: Sequence[int]) -> tuple[int, Loaded | None]:
    """The number of parameters, and what would be loaded, of a detector for images of each of `sizes`.

    One of the table is built without memory; one of the user's own is tried on two images of the least and the largest
    size. Raises ValueError that says what to change. Downloads published weights into torch's cache.
    """
    if ":" in recipe.model:
        built = build_detector(recipe, classes)
        for size in {sizes[0], sizes[-1]}:
            _try(built, recipe, classes, size)
    else:
        entry = find_detector(recipe)
        with NoMemory():
            built = assemble(entry, recipe, classes)
        built.model.to("meta")
        for size in sizes:
            _run_without_memory(built.model, recipe.model, size, entry.imgsz)
        built = start_from(built, entry, recipe)
    return sum(p.numel() for p in built.model.parameters()), built.loaded


@torch.no_grad()
def _run_without_memory(model: Any, name: str, size: int, known: int) -> None:
    """Backbone and head on images of `size`: what comes after them takes any. `known` is a size that does."""
    try:
        _forward(model, size)
    except (RuntimeError, ValueError) as error:
        least = bisect_left(range(size, known), True, key=lambda other: _takes(model, other)) + size
        raise ValueError(f"model {name} does not take images of imgsz={size}: it needs {least} or more") from error


def _forward(model: Any, size: int) -> None:
    images, _ = model.transform(torch.empty(2, 3, size, size, device="meta"))
    features = list(model.backbone(images.tensors).values())
    (model.head if hasattr(model, "head") else model.rpn.head)(features)


def _takes(model: Any, size: int) -> bool:
    try:
        _forward(model, size)
    except (RuntimeError, ValueError):
        return False
    return True


@torch.no_grad()
def _try(built: Built, recipe: Recipe, classes: int, size: int) -> None:
    """Train and predict once, as the loop would, on an image with an object of the last class and on one without."""
    images, masks = torch.zeros(2, 3, size, size), torch.zeros(1, size, size, dtype=torch.uint8)
    masks[:, size // 4 : size // 2, size // 4 : size // 2] = 1
    box, label = torch.tensor([[size / 4, size / 4, size / 2, size / 2]]), classes - 1 + built.first_label
    targets = [{"boxes": box, "labels": torch.tensor([label])}, {"boxes": box[:0], "labels": torch.tensor([label])[:0]}]
    if recipe.task == "segment":
        targets = [{**target, "masks": masks[: len(target["boxes"])]} for target in targets]
    try:
        losses = built.model.train()(images, targets)
        found = built.model.eval()(images)
    except (RuntimeError, ValueError, AssertionError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"model {recipe.model} does not take a batch and targets as torchvision's detectors do "
            f"(imgsz={size}): {type(error).__name__}: {_brief(error)}"
        ) from error
    if not isinstance(losses, dict) or not losses or not all(_is_scalar(loss) for loss in losses.values()):
        raise ValueError(
            f"model {recipe.model} must give a dict of scalar losses in training, but gave {_kind(losses)}"
        )
    keys = ("boxes", "labels", "scores", *(("masks",) if recipe.task == "segment" else ()))
    if not isinstance(found, list | tuple) or len(found) != 2 or not all(isinstance(f, dict) for f in found):
        raise ValueError(f"model {recipe.model} must give a list with a dict per image, but gave {_kind(found)}")
    if missing := [key for key in keys if not all(isinstance(item.get(key), Tensor) for item in found)]:
        raise ValueError(
            f"model {recipe.model} must give tensors {', '.join(keys)} for each image; it lacks {', '.join(missing)}"
        )
    if any(len({len(item[key]) for key in keys}) > 1 or item["boxes"].shape[1:] != (4,) for item in found):
        shapes = {key: tuple(found[0][key].shape) for key in keys}
        raise ValueError(f"model {recipe.model} must give (k, 4) boxes and k of all else, but gave {shapes}")


def _is_scalar(value: Any) -> bool:
    return isinstance(value, Tensor) and value.numel() == 1


def _kind(value: Any) -> str:
    if isinstance(value, list | tuple | dict):
        return f"{type(value).__name__} of {len(value)}"
    return f"tensor {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _brief(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
