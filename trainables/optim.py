"""Optimizers: one table of builders with the default learning rate beside each, and the rule of ``auto``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn, optim

from trainables.recipe import Recipe
from trainables.registry import lookup

AUTO_STEPS = 10_000
"""Optimizer steps from which ``auto`` takes SGD: long runs reward its generalisation, short ones AdamW's pace."""


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
    """The optimizer over the trainable parameters; biases and norms (one dimension or none) take no weight decay."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return OPTIMIZERS[choice.name].build([g for g in groups if g["params"]], choice.lr, choice.momentum)
