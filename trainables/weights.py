"""Weights to start from: published ones or a file's, what became of each tensor, and the pixels that they expect."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from trainables.pixels import Normalization
from trainables.recipe import Recipe
from trainables.weight_files import is_remote, local_file, read_file, read_weights
from trainables.weight_matching import Loaded, match

__all__ = ["Loaded", "Published", "is_remote", "load_pretrained", "local_file", "match", "read_weights"]

Published = Callable[[], tuple[dict[str, Tensor], Normalization]]
"""Fetches the library's published weights, and the normalisation that they expect. Raises ValueError."""


def load_pretrained(
    model: nn.Module,
    recipe: Recipe,
    published: Published | None,
    default: Normalization | None = None,
    rename: Callable[[str], str] = str,
) -> tuple[Loaded | None, Normalization]:
    """Put the weights that ``pretrained`` asks for into the model, and say what became of them.

    model: may be on the meta device: then everything is checked as it would be, and nothing is loaded.
    published: fetches what ``pretrained: true`` stands for; None: the model has no published weights.
    default: the normalisation of a model from scratch, and of a file of its own that names none; ImageNet's if None,
    and for a classifier's file in a detector's backbone.
    rename: the model's name for a tensor that older files call otherwise.

    Returns the report (None for ``pretrained: false``) and the normalisation that the weights expect. Raises
    ValueError, which begins with "pretrained" or "model".
    """
    if recipe.pretrained is False:
        return None, default or Normalization()
    stored: Normalization | None
    if recipe.pretrained is True:
        if published is None:
            raise ValueError(f"model {recipe.model} has no published weights: set pretrained to false or to a file")
        source = "timm" if recipe.model.startswith("timm/") else "torchvision"
        weights, stored = published()
    else:
        source = str(recipe.pretrained)
        file = read_file(source)
        weights, stored = file.tensors, stored_normalization(file.metadata)
    loaded, tensors = match(model, {rename(key): tensor for key, tensor in weights.items()}, source, recipe.model)
    normalization = stored or (Normalization() if loaded.prefix else default or Normalization())
    with torch.no_grad():
        for name, tensor in model.state_dict(keep_vars=True).items():
            if name in tensors and tensor.device.type != "meta":
                tensor.copy_(tensors[name])
    return loaded, normalization


def stored_normalization(metadata: Mapping[str, str]) -> Normalization | None:
    """What the metadata of a file say under "normalization": {"mean": [r, g, b], "std": [r, g, b]}."""
    try:
        stored = json.loads(metadata["normalization"])
        mean, std = (tuple(float(value) for value in stored[key]) for key in ("mean", "std"))
    except (KeyError, TypeError, ValueError):
        return None
    return Normalization(mean, std) if len(mean) == len(std) == 3 and min(std) > 0 else None
