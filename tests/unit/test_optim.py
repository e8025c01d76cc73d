from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.tiny import recipe
from trainables.optim import AUTO_STEPS, OPTIMIZERS, Choice, build_optimizer, choose


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2), nn.LayerNorm(2))


@pytest.mark.parametrize(("steps", "name", "lr"), [(AUTO_STEPS - 1, "AdamW", 1e-3), (AUTO_STEPS, "SGD", 0.01)])
def test_auto_goes_by_the_length_of_the_run(steps: int, name: str, lr: float) -> None:
    assert choose(recipe(optimizer="auto", lr=None), steps) == Choice(name, lr, 0.9, "auto")


@pytest.mark.parametrize("steps", [1, AUTO_STEPS])
@pytest.mark.parametrize("optimizer", ["auto", *OPTIMIZERS])
def test_an_explicit_lr_and_momentum_always_win(optimizer: str, steps: int) -> None:
    choice = choose(recipe(optimizer=optimizer, lr=0.123, momentum=0.7), steps)
    built = build_optimizer(choice, model(), 0.0)
    assert built.param_groups[0]["lr"] == 0.123
    assert 0.7 in (built.param_groups[0].get("momentum"), built.param_groups[0].get("betas", [None])[0])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_named_optimizer_is_taken_with_its_own_lr(optimizer: str) -> None:
    choice = choose(recipe(optimizer=optimizer, lr=None), AUTO_STEPS)
    assert choice == Choice(optimizer, OPTIMIZERS[optimizer].lr, 0.9, "config")
    assert type(build_optimizer(choice, model(), 0.0)).__name__.lower() == optimizer.lower()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_weight_decay_shrinks_weights_but_neither_biases_nor_norms(optimizer: str) -> None:
    decayed = model()
    before = {name: p.detach().clone() for name, p in decayed.named_parameters()}
    built = build_optimizer(Choice(optimizer, 1e-3, 0.0, "config"), decayed, weight_decay=0.5)
    for p in decayed.parameters():
        p.grad = torch.zeros_like(p)
    built.step()
    shrunk = {name for name, p in decayed.named_parameters() if p.detach().abs().sum() < before[name].abs().sum()}
    assert shrunk == {"0.weight", "3.weight"}
    assert all(torch.equal(p, before[name]) for name, p in decayed.named_parameters() if name not in shrunk)


def test_frozen_parameters_are_left_out() -> None:
    partly = model()
    partly[0].requires_grad_(False)  # type: ignore[index]
    built = build_optimizer(Choice("SGD", 0.1, 0.9, "config"), partly, 0.1)
    held = {id(p) for group in built.param_groups for p in group["params"]}
    assert held == {id(p) for p in partly.parameters() if p.requires_grad}
