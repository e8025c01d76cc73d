"""timm's classifiers, as ``timm/NAME``. timm is an extra: it is imported where one of them is asked for."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from trainables.pixels import Normalization
from trainables.registry import did_you_mean

PREFIX = "timm/"


def is_timm(model: str) -> bool:
    return model.startswith(PREFIX)


def default_imgsz(model: str) -> int | None:
    """The size that the model's published weights were trained for; None where there is no such model, or no timm."""
    try:
        config = _config(model)
    except ValueError:
        return None
    return int(config["input_size"][-1]) if config.get("input_size") else None


def builder(model: str, imgsz: int, pretrained: bool = False) -> Callable[..., nn.Module]:
    """Builds the model for images of imgsz and for ``num_classes`` (by default those of its published weights).

    Raises ValueError where timm is missing or has no such model.
    """
    config, timm = _config(model), _timm()
    # models with a table of positions are built for one size
    size: dict[str, Any] = {"img_size": imgsz} if config.get("fixed_input_size") else {}
    create = partial(timm.create_model, model.removeprefix(PREFIX), pretrained=pretrained)

    def build(**options: Any) -> nn.Module:
        try:
            built: nn.Module = create(**options, **size)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            built = create(**options)
        return built

    return build


def published(model: str, imgsz: int) -> tuple[dict[str, Tensor], Normalization]:
    """The published weights, their tables of positions resized for imgsz, and the normalisation that they expect.

    Raises ValueError where there are none, or where they cannot be downloaded.
    """
    config = _config(model)
    place = config.get("hf_hub_id") or config.get("url") or config.get("file")
    if not place:
        raise ValueError(f"model {model} has no published weights: set pretrained to false or to a file")
    place = f"https://huggingface.co/{place}" if place == config.get("hf_hub_id") else place
    try:
        built = builder(model, imgsz, pretrained=True)()
    except Exception as error:  # the hub's client has errors of several HTTP libraries
        text = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(
            f"pretrained: true needs {place}, which cannot be downloaded ({text}); "
            "set pretrained to a file that you have, or to false"
        ) from error
    used: dict[str, Any] = getattr(built, "pretrained_cfg", config)
    return built.state_dict(), Normalization(tuple(used["mean"]), tuple(used["std"]))


def _config(model: str) -> dict[str, Any]:
    """What timm knows about a model's weights. Raises ValueError for an unknown name or weights."""
    timm, name = _timm(), model.removeprefix(PREFIX)
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise ValueError(f"unknown model {model!r}: {did_you_mean(architecture, timm.list_models())}")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise ValueError(f"unknown model {model!r}: the published weights of {architecture}: {did_you_mean(tag, tags)}")
    config: dict[str, Any] = timm.get_pretrained_cfg(name).to_dict()
    return config


def _timm() -> Any:
    # read by the hub's client when timm imports it
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import timm
    except ModuleNotFoundError as error:
        raise ValueError("model timm/NAME needs the package timm: pip install 'orchestrator[timm]'") from error
    return timm
