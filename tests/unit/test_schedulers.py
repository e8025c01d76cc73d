from __future__ import annotations

import random

import pytest

from orchestrator.config import Tune
from orchestrator.sweeps.records import Decision
from orchestrator.sweeps.schedulers import SCHEDULERS, Asha, Median, Never, build_scheduler, default_grace
from tests.tiny import recipe
from trainables.contracts import Mode


def told(scheduler: Asha, values: dict[int, float], epoch: int) -> dict[int, Decision | None]:
    return {trial: scheduler.judge(trial, epoch, value) for trial, value in values.items()}


# ------------------------------------------------------------------------------------------------------- asha


def test_the_rungs_are_powers_of_the_reduction_below_the_last_epoch() -> None:
    assert Asha(81, 1, 3, "max").rungs == [1, 3, 9, 27]
    assert Asha(82, 1, 3, "max").rungs == [1, 3, 9, 27, 81]
    assert Asha(100, 5, 4, "max").rungs == [5, 20, 80]
    assert Asha(3, 5, 3, "max").rungs == []


def test_one_in_three_goes_on_and_the_decision_says_why() -> None:
    decisions = told(Asha(9, 1, 3, "max"), {0: 0.5, 1: 0.4, 2: 0.3, 3: 0.6, 4: 0.45, 5: 0.7}, 1)
    assert decisions[0] == Decision(0, 1, 1, 0.5, None, 1, stop=False)
    assert decisions[1] == Decision(1, 1, 1, 0.4, None, 2, stop=False), "too few to compare with"
    assert decisions[2] == Decision(2, 1, 1, 0.3, 0.5, 3, stop=True)
    assert decisions[3] == Decision(3, 1, 1, 0.6, 0.5, 4, stop=False), "two of four"
    assert decisions[4] == Decision(4, 1, 1, 0.45, 0.5, 5, stop=True)
    assert decisions[5] == Decision(5, 1, 1, 0.7, 0.6, 6, stop=False)


def test_a_metric_that_is_to_be_small_turns_everything_round() -> None:
    decisions = told(Asha(9, 1, 3, "min"), {0: 0.5, 1: 0.4, 2: 0.6, 3: 0.3}, 1)
    assert [decision.stop for decision in decisions.values() if decision] == [False, False, True, False]


def test_nothing_is_decided_between_rungs_and_once_at_each() -> None:
    scheduler = Asha(27, 2, 3, "max")
    told(scheduler, {1: 0.9, 2: 0.8}, 2)
    assert scheduler.judge(0, 1, 0.1) is None
    assert scheduler.judge(0, 2, 0.1) is not None
    assert scheduler.judge(0, 3, 0.1) is None
    decision = scheduler.judge(0, 7, 0.2)
    assert decision is not None, "validated at epoch 7 for the first time since the rung at 6"
    assert (decision.epoch, decision.rung) == (7, 6)


def test_equal_values_go_on_together() -> None:
    decisions = told(Asha(9, 1, 3, "max"), dict.fromkeys(range(6), 0.5), 1)
    assert not any(decision.stop for decision in decisions.values() if decision)


def test_who_was_stopped_too_early_survives_once_all_are_known() -> None:
    scheduler = Asha(9, 1, 3, "max")
    told(scheduler, {0: 0.9, 1: 0.8, 2: 0.7, 3: 0.1, 4: 0.2, 5: 0.3, 6: 0.15, 7: 0.11, 8: 0.12}, 1)
    assert scheduler.survives(2), "third of nine"
    assert not scheduler.survives(5)
    assert scheduler.survives(99), "it has not been compared yet"


def test_the_order_of_arrival_changes_how_many_go_on_by_little() -> None:
    """Of 60 trials asha lets a third on, plus those that came before their betters."""
    for seed in range(5):
        values = dict(enumerate(random.Random(seed).sample(range(1000), 60)))
        decisions = told(Asha(9, 1, 3, "max"), {t: float(v) for t, v in values.items()}, 1)
        on = [trial for trial, decision in decisions.items() if decision and not decision.stop]
        assert 10 <= len(on) <= 35
        assert max(values, key=lambda t: values[t]) in on, "the best is never stopped"


def test_brackets_of_hyperband_differ_in_their_first_rung() -> None:
    scheduler = SCHEDULERS["hyperband"](Tune(brackets=3), 27, 1, "max")
    assert list(scheduler.rungs) == [1, 3, 9]
    first = {trial: scheduler.judge(trial, 1, 0.5) for trial in range(3)}
    assert first[0] is not None
    assert first[1] is None
    assert first[2] is None
    second = scheduler.judge(1, 3, 0.5)
    assert second is not None
    assert (second.bracket, second.peers) == (1, 1), "compared within its bracket"
    assert scheduler.judge(2, 3, 0.5) is None


# ------------------------------------------------------------------------------------------------------ others


def test_median_stops_below_the_median_of_the_others_means() -> None:
    scheduler = Median(2, "max")
    for trial, value in enumerate((0.2, 0.4, 0.6)):
        assert scheduler.judge(trial, 1, value) is None
        scheduler.judge(trial, 2, value)
    assert scheduler.judge(3, 1, 0.1) is None, "within the grace"
    decision = scheduler.judge(3, 2, 0.39)
    assert decision == Decision(3, 2, 2, 0.39, 0.4, 4, stop=True)
    better = scheduler.judge(4, 2, 0.41)
    assert better is not None
    assert not better.stop


def test_median_compares_with_those_that_have_come_as_far() -> None:
    scheduler = Median(1, "max")
    for trial in range(3):
        scheduler.judge(trial, 1, 0.9)
    assert scheduler.judge(3, 2, 0.1) is None


def test_never_stops_nobody() -> None:
    assert all(Never().judge(trial, epoch, 0.0) is None for trial in range(9) for epoch in range(1, 9))


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("mode", ["max", "min"])
def test_every_scheduler_replays_to_the_same_decisions(name: str, mode: Mode) -> None:
    made = recipe(epochs=20)
    tune = Tune(scheduler=name)
    draws = random.Random(0)
    events = [(trial, epoch, draws.random()) for epoch in range(1, 20) for trial in range(8)]
    first, second = (build_scheduler(tune, made, mode) for _ in range(2))
    assert [first.judge(*event) for event in events] == [second.judge(*event) for event in events]
    stops = [d for event in events for d in [build_scheduler(tune, made, mode).judge(*event)] if d and d.stop]
    assert not stops, "a trial alone has nobody to lose to"


@pytest.mark.parametrize(
    ("epochs", "warmup", "grace"), [(300, 3.0, 11), (100, 3.0, 4), (12, 3.0, 3), (6, 3.0, 1), (300, 0.0, 11), (1, 3, 1)]
)
def test_the_grace_is_a_27th_and_more_than_the_warm_up(epochs: int, warmup: float, grace: int) -> None:
    assert default_grace(recipe(epochs=epochs, warmup_epochs=warmup)) == grace


def test_an_unknown_scheduler_is_told() -> None:
    with pytest.raises(ValueError, match="did you mean asha"):
        build_scheduler(Tune(scheduler="ahsa"), recipe(), "max")
