"""Every optimizer takes the steps of torch's own, every schedule has the factors that are written out here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim

from tests.tiny import recipe
from trainables.optim import OPTIMIZERS, Choice, build_optimizer, choose
from trainables.schedules import SCHEDULES, lr_factor, warmup_steps

STEPS = 6
LR, MOMENTUM, DECAY = 0.02, 0.8, 0.1

REFERENCES: dict[str, Callable[..., optim.Optimizer]] = {
    "SGD": lambda p, decay: optim.SGD(p, lr=LR, momentum=MOMENTUM, nesterov=True, weight_decay=decay),
    "Adam": lambda p, decay: optim.Adam(p, lr=LR, betas=(MOMENTUM, 0.999), eps=1e-8, weight_decay=decay),
    "AdamW": lambda p, decay: optim.AdamW(p, lr=LR, betas=(MOMENTUM, 0.999), eps=1e-8, weight_decay=decay),
    "NAdam": lambda p, decay: optim.NAdam(
        p, lr=LR, betas=(MOMENTUM, 0.999), momentum_decay=4e-3, weight_decay=decay, decoupled_weight_decay=True
    ),
    "RAdam": lambda p, decay: optim.RAdam(
        p, lr=LR, betas=(MOMENTUM, 0.999), weight_decay=decay, decoupled_weight_decay=True
    ),
    "RMSProp": lambda p, decay: optim.RMSprop(p, lr=LR, alpha=0.99, momentum=MOMENTUM, weight_decay=decay),
}


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 2))


def train(net: nn.Module, optimizers: list[optim.Optimizer]) -> list[list[Tensor]]:
    """The parameters after each step, with gradients of changing sign and size."""
    torch.manual_seed(1)
    trace = []
    for step in range(STEPS):
        for optimizer in optimizers:
            optimizer.zero_grad()
        (net(torch.randn(8, 5)).sin() * (-1) ** step * (step + 1)).sum().backward()
        for optimizer in optimizers:
            optimizer.step()
        trace.append([p.detach().clone() for p in net.parameters()])
    return trace


def test_every_optimizer_has_a_reference() -> None:
    assert set(REFERENCES) == set(OPTIMIZERS)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_step_is_that_of_torchs_own_optimizer(name: str) -> None:
    ours, theirs = model(), model()
    weights = [p for p in theirs.parameters() if p.ndim == 2]
    others = [p for p in theirs.parameters() if p.ndim == 1]
    references = [REFERENCES[name](weights, DECAY), REFERENCES[name](others, 0.0)]
    ours_trace = train(ours, [build_optimizer(Choice(name, LR, MOMENTUM, "config"), ours, DECAY)])
    for mine, reference in zip(ours_trace, train(theirs, references), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, reference, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(ours_trace[-1], model().parameters(), strict=True))


def first_steps(name: str, gradients: list[float], momentum: float, decay: float) -> list[float]:
    """One weight that begins at 1, under given gradients."""
    net = nn.Linear(1, 1, bias=False)
    nn.init.ones_(net.weight)
    optimizer = build_optimizer(Choice(name, 0.1, momentum, "config"), net, decay)
    values = []
    for gradient in gradients:
        net.weight.grad = torch.tensor([[gradient]])
        optimizer.step()
        values.append(net.weight.item())
    return values


@pytest.mark.parametrize(
    ("name", "momentum", "decay", "expected"),
    [
        # w -= lr (g + m v) with v = m v + g: v = 1, 1.5; 0.1 (1 + 0.5), 0.1 (1 + 0.75)
        ("SGD", 0.5, 0.0, [0.85, 0.675]),
        ("SGD", 0.0, 0.0, [0.9, 0.8]),
        # g + 0.5 w: 1.5; 1 + 0.425
        ("SGD", 0.0, 0.5, [0.85, 0.7075]),
        # equal gradients: the corrected moments are g and g^2, so each step is lr
        ("Adam", 0.9, 0.0, [0.9, 0.8]),
        ("AdamW", 0.9, 0.0, [0.9, 0.8]),
        # first w (1 - lr decay): 0.95 - 0.1; 0.85 x 0.95 - 0.1
        ("AdamW", 0.9, 0.5, [0.85, 0.7075]),
        # the decay is part of the gradient, whose size Adam divides away
        ("Adam", 0.9, 0.5, [0.9, 0.80000]),
        # below five steps RAdam trusts no second moment: lr times the corrected mean
        ("RAdam", 0.9, 0.0, [0.9, 0.8]),
        ("RAdam", 0.9, 0.5, [0.85, 0.7075]),
        # square average 0.01, then 0.0199: 0.1 / 0.1; 0.1 / 0.141067
        ("RMSProp", 0.0, 0.0, [0.0, -0.70888]),
    ],
)
def test_first_steps_equal_numbers_by_hand(name: str, momentum: float, decay: float, expected: list[float]) -> None:
    assert first_steps(name, [1.0, 1.0], momentum, decay) == pytest.approx(expected, abs=2e-3 if decay else 1e-4)


@pytest.mark.parametrize("setting", [{"lr": 0.3}, {"momentum": 0.4}, {"lr": 0.3, "momentum": 0.4}, {}])
@pytest.mark.parametrize(("steps", "name"), [(100, "AdamW"), (10_000, "SGD")])
def test_auto_fills_only_what_is_open_and_tells_what_it_took(steps: int, name: str, setting: dict[str, float]) -> None:
    choice = choose(recipe(**({"optimizer": "auto", "lr": None} | setting)), steps)
    assert (choice.name, choice.chosen_by) == (name, "auto")
    assert choice.lr == setting.get("lr", OPTIMIZERS[name].lr)
    assert choice.momentum == setting.get("momentum", 0.9)


# ------------------------------------------------------------------------------------------- weight decay


class Scale(nn.Module):
    """What vision transformers and their kin learn beside the weights of their layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer_scale = nn.Parameter(torch.ones(4, 1, 1))
        self.class_token = nn.Parameter(torch.ones(1, 1, 4))
        self.pos_embedding = nn.Parameter(torch.ones(1, 9, 4))
        self.relative_position_bias_table = nn.Parameter(torch.ones(25, 3))
        self.kernel = nn.Parameter(torch.ones(4, 4))
        self.wide_bias = nn.Parameter(torch.ones(4, 4))


class SquareNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 4))


@pytest.mark.parametrize(
    ("module", "decayed"),
    [
        (nn.Linear(4, 3), {"weight"}),
        (nn.Linear(4, 1), {"weight"}),
        (nn.Conv2d(3, 1, 1), {"weight"}),
        (nn.MultiheadAttention(4, 2), {"in_proj_weight", "out_proj.weight"}),
        (nn.BatchNorm2d(4), set()),
        (nn.GroupNorm(2, 4), set()),
        (nn.LayerNorm((4, 3, 3)), set()),  # its weight has three dimensions
        (SquareNorm(), set()),
        (Scale(), {"kernel"}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_weight_decay_is_for_weights_that_multiply_features(module: nn.Module, decayed: set[str]) -> None:
    net = nn.Sequential(module, nn.Linear(2, 2))
    optimizer = build_optimizer(Choice("SGD", 0.1, 0.0, "config"), net, 0.5)
    names = {id(p): name for name, p in net.named_parameters()}
    with_decay, without = ([names[id(p)] for p in group["params"]] for group in optimizer.param_groups)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0]
    assert set(with_decay) == {f"0.{name}" for name in decayed} | {"1.weight"}
    assert set(with_decay) | set(without) == set(names.values())
    assert len(with_decay) + len(without) == len(names)


def test_a_shared_parameter_is_stepped_once() -> None:
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    net = nn.Sequential(first, second)
    optimizer = build_optimizer(Choice("AdamW", 0.1, 0.9, "config"), net, 0.5)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 3


# ---------------------------------------------------------------------------------------------- schedules

COSINE = [1, 0.97577298, 0.90546341, 0.79595370, 0.65796341, 0.505, 0.35203659, 0.21404630, 0.10453659, 0.03422702]
DOWN = [1, 0.95097959, 0.81362745, 0.61514786, 0.39485214, 0.19637255, 0.05902041]
"""Half a cosine in seven steps, from 1 towards 0.01."""

WRITTEN: list[tuple[str, int, float, list[float]]] = [
    # name, steps of warm-up, lrf, the factors of eleven steps
    ("cosine", 0, 0.01, [*COSINE, 0.01]),
    ("cosine", 2, 0.01, [1 / 3, 0.65051532, *COSINE[2:], 0.01]),
    ("cosine", 0, 1.0, [1.0] * 11),
    ("linear", 0, 0.01, [1, 0.901, 0.802, 0.703, 0.604, 0.505, 0.406, 0.307, 0.208, 0.109, 0.01]),
    ("linear", 3, 0.0, [0.25, 0.45, 0.6, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0]),
    ("linear", 0, 1.0, [1.0] * 11),
    ("constant", 0, 0.01, [1.0] * 11),
    ("constant", 4, 0.0, [0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1, 1, 1, 1]),
    ("step", 0, 0.01, [1, 1, 1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01]),
    ("step", 1, 0.04, [0.5, 1, 1, 1, 1, 0.2, 0.2, 0.2, 0.04, 0.04, 0.04]),
    ("step", 0, 0.0, [1, 1, 1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.0]),
    ("one_cycle", 0, 0.01, [0.04, 0.28, 0.76, *DOWN, 0.01]),
    ("one_cycle", 3, 0.01, [0.04, 0.28, 0.76, *DOWN, 0.01]),
    ("one_cycle", 0, 1.0, [0.04, 0.28, 0.76, 1, 1, 1, 1, 1, 1, 1, 1]),
]


def test_every_schedule_is_written_out() -> None:
    assert {name for name, *_ in WRITTEN} == set(SCHEDULES)


@pytest.mark.parametrize(("name", "warmup", "lrf", "expected"), WRITTEN)
def test_a_schedule_has_the_factors_that_are_written_out(
    name: str, warmup: int, lrf: float, expected: list[float]
) -> None:
    factors = [lr_factor(name, step, 11, warmup, lrf) for step in range(11)]
    assert factors == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("lrf", [0, 0.01, 1])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_last_step_of_a_run_has_lr_times_lrf_exactly(name: str, lrf: float) -> None:
    for epochs, steps in ((1, 2), (3, 7), (300, 31)):
        warmup = warmup_steps(3.0, epochs, steps)
        last = lr_factor(name, epochs * steps - 1, epochs * steps, warmup, lrf)
        assert last == (1 if name == "constant" else lrf)


@pytest.mark.parametrize("name", sorted(set(SCHEDULES) - {"one_cycle"}))
def test_warm_up_rises_in_equal_steps_to_the_schedule(name: str) -> None:
    def factors(warmup: int) -> list[Any]:
        return [lr_factor(name, step, 100, warmup, 0.1) for step in range(100)]

    plain, warmed = factors(0), factors(9)
    assert warmed[9:] == plain[9:]
    assert [w / p for w, p in zip(warmed[:9], plain[:9], strict=True)] == pytest.approx([k / 10 for k in range(1, 10)])
