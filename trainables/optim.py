"""Optimizers: one table of builders with the default learning rate beside each, and the rule of ``auto``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn, optim

from trainables.recipe import Recipe
from trainables.registry import lookup

AUTO_STEPS = 10_000
"""Optimizer steps from which ``auto`` takes SGD: long runs reward its generalisation, short ones AdamW's pace."""
POSITIONS = ("token", "pos_embed", "position", "relative_")
"""In the names of parameters that are learned inputs, not weights of a layer: class tokens, tables of positions."""


@dataclass(frozen=True)
class Choice:
    """What is used, and who chose it: "config" or "auto"."""

    name: str
    lr: float
    momentum: float
    chosen_by: str


@dataclass(frozen=True)
class Entry:
    build: Callable[..., optim.Optimizer]
    lr: float
    """Used where the config leaves lr open, for a batch of 64."""


OPTIMIZERS: dict[str, Entry] = {
    "SGD": Entry(lambda p, lr, m: optim.SGD(p, lr, momentum=m, nesterov=m > 0), 0.01),
    "Adam": Entry(lambda p, lr, m: optim.Adam(p, lr, betas=(m, 0.999)), 1e-3),
    "AdamW": Entry(lambda p, lr, m: optim.AdamW(p, lr, betas=(m, 0.999)), 1e-3),
    "NAdam": Entry(lambda p, lr, m: optim.NAdam(p, lr, betas=(m, 0.999), decoupled_weight_decay=True), 1e-3),
    "RAdam": Entry(lambda p, lr, m: optim.RAdam(p, lr, betas=(m, 0.999), decoupled_weight_decay=True), 1e-3),
    "RMSProp": Entry(lambda p, lr, m: optim.RMSprop(p, lr, momentum=m), 1e-3),
}


def choose(recipe: Recipe, total_steps: int) -> Choice:
    """Resolve ``optimizer: auto`` and an open lr. Only what the config leaves open is filled."""
    auto = recipe.optimizer == "auto"
    name = ("AdamW" if total_steps < AUTO_STEPS else "SGD") if auto else recipe.optimizer
    entry: Entry = lookup(OPTIMIZERS, name, "optimizer")
    lr = entry.lr if recipe.lr is None else recipe.lr
    return Choice(name, lr, recipe.momentum, "auto" if auto else "config")


def build_optimizer(choice: Choice, model: nn.Module, weight_decay: float) -> optim.Optimizer:
    """The optimizer over the trainable parameters, in two groups: with weight decay, and without (`decays`)."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for module, name, parameter in _parameters(model):
        if parameter.requires_grad:
            (decayed if decays(module, name, parameter) else plain).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return OPTIMIZERS[choice.name].build([g for g in groups if g["params"]], choice.lr, choice.momentum)


def decays(module: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay pulls a module's own parameter to zero: only where it multiplies features of the image.

    Not biases, anything of a norm, vectors (a scale per channel, in whatever shape), class tokens and positions: for
    them zero is no simpler than any other value (torchvision's and timm's convention).
    """
    if parameter.ndim <= 1 or name.endswith("bias") or _is_norm(module):
        return False
    if name == "weight":  # of a layer, also where it has a single output
        return True
    return parameter.numel() > max(parameter.shape) and not any(part in name for part in POSITIONS)


def _is_norm(module: nn.Module) -> bool:
    kinds = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
    return isinstance(module, kinds) or type(module).__name__.lower().removesuffix("2d").endswith("norm")


def _parameters(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """Each parameter once, in the model's order, with the module that it belongs to."""
    seen: set[int] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield module, name, parameter
