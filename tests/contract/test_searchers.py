"""Every searcher keeps the contract: its proposals lie in the space, and a replay leaves it where it was."""

from __future__ import annotations

import json

import pytest

from orchestrator.sweeps.combinations import Space
from orchestrator.sweeps.domains import Choice, Conditional, Grid, Integer, LogUniform, Normal, Stepped, Uniform
from orchestrator.sweeps.records import Params
from orchestrator.sweeps.searchers import SEARCHERS, Searcher, build_searcher
from trainables.contracts import Mode

FINITE = Space(
    {
        "optimizer": Choice(("SGD", "AdamW")),
        "lr": Conditional("optimizer", (("SGD", Grid((0.1, 0.2))),), Choice((0.001,))),
        "freeze": Choice((0, None, True, ["a.*", "b.*"])),
        "warmup_epochs": Integer(0, 4),
        "lrf": Stepped(0.0, 1.0, 0.25),
    }
)
RANGES = Space(
    {
        **FINITE.domains,
        "momentum": Uniform(0.8, 0.99),
        "weight_decay": LogUniform(1e-5, 1e-2),
        "batch": LogUniform(8, 512, 8),
        "clip_grad": Normal(5, 1),
        "ema": Normal(0.5, 0.1, 0.1),
        "scale": Conditional("optimizer", (("SGD", Uniform(0, 0.5)), ("AdamW", LogUniform(0.1, 0.5)))),
    }
)
SPACES = {"random": RANGES, "grid": FINITE, "optuna": RANGES}
TRIALS = 16


def build(name: str, seed: int = 3, mode: Mode = "max") -> Searcher:
    return build_searcher(name, SPACES[name], seed, mode)


def tell(searcher: Searcher, number: int) -> None:
    """Some finish, some are stopped, some fail, some still run."""
    values = [(epoch, (number * 7 % 5) + epoch / 10) for epoch in range(1, 4)]
    if number % 5 != 4:
        searcher.tell(number, [] if number % 5 == 3 else values, finished=number % 2 == 0)


def play(searcher: Searcher, count: int = TRIALS) -> list[Params | None]:
    proposed = []
    for number in range(count):
        proposed.append(searcher.ask(number))
        tell(searcher, number)
    return proposed


def test_every_searcher_has_a_space() -> None:
    assert set(SPACES) == set(SEARCHERS)


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("name", SEARCHERS)
def test_proposals_lie_in_the_space_and_can_be_journaled(name: str, mode: Mode) -> None:
    for params in play(build(name, mode=mode)):
        assert params is not None
        assert list(params) == list(SPACES[name].domains)
        assert SPACES[name].holds(params)
        assert json.loads(json.dumps(params)) == params
        assert type(params["warmup_epochs"]) is int


@pytest.mark.parametrize("name", SEARCHERS)
def test_the_same_seed_proposes_the_same(name: str) -> None:
    assert play(build(name)) == play(build(name))


@pytest.mark.parametrize("name", set(SEARCHERS) - {"grid"})
def test_another_seed_proposes_others(name: str) -> None:
    first, second = play(build(name)), play(build(name, seed=4))
    assert all(a != b for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("known", [1, 5, 13])
@pytest.mark.parametrize("name", SEARCHERS)
def test_a_resumed_sweep_goes_on_as_the_uninterrupted_one(name: str, known: int) -> None:
    """The trials come from the journal, so through JSON; what was told comes in another order."""
    proposed = play(build(name))
    resumed = build(name)
    for number in range(known):
        resumed.take(number, json.loads(json.dumps(proposed[number])))
    for number in reversed(range(known)):
        tell(resumed, number)
    for number in range(known, TRIALS):
        assert resumed.ask(number) == proposed[number]
        tell(resumed, number)


@pytest.mark.parametrize("name", SEARCHERS)
def test_a_configuration_outside_the_space_is_no_trouble(name: str) -> None:
    searcher = build(name)
    searcher.take(0, {"optimizer": "RMSProp", "lr": None})
    searcher.take(1, {})
    searcher.tell(0, [(1, 0.5)], finished=True)
    searcher.tell(1, [(1, float("nan"))], finished=False)
    assert searcher.ask(2) is not None


@pytest.mark.parametrize("name", SEARCHERS)
def test_a_trial_may_end_again_after_it_was_revived(name: str) -> None:
    searcher = build(name)
    first = searcher.ask(0)
    searcher.tell(0, [(1, 0.5)], finished=False)
    searcher.tell(0, [(1, 0.5), (2, 0.6)], finished=True)
    assert searcher.ask(1) not in (None, first)


def test_an_unknown_searcher_is_told_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown searcher 'optun': did you mean optuna\?"):
        build_searcher("optun", FINITE, 0, "max")
