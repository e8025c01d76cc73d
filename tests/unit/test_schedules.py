from __future__ import annotations

import math
from typing import Any

import pytest

from trainables.recipe import Recipe
from trainables.schedules import SCHEDULES, Phase, lr_at, lr_factor, warmup_steps


def factors(name: str, total: int, warmup: int, lrf: float) -> list[float]:
    return [lr_factor(name, step, total, warmup, lrf) for step in range(total)]


@pytest.mark.parametrize(
    ("name", "warmup", "expected"),
    [
        ("cosine", 0, [1.0, 0.86819805, 0.55, 0.23180195, 0.1]),
        ("cosine", 2, [1 / 3, 0.57879870, 0.55, 0.23180195, 0.1]),
        ("linear", 0, [1.0, 0.775, 0.55, 0.325, 0.1]),
        ("linear", 2, [1 / 3, 0.51666667, 0.55, 0.325, 0.1]),
        ("constant", 0, [1.0, 1.0, 1.0, 1.0, 1.0]),
        ("constant", 2, [1 / 3, 2 / 3, 1.0, 1.0, 1.0]),
        ("step", 0, [1.0, 1.0, 0.31622777, 0.1, 0.1]),
        ("step", 2, [1 / 3, 2 / 3, 0.31622777, 0.1, 0.1]),
        ("one_cycle", 0, [0.04, 0.93569219, 0.83057041, 0.35475232, 0.1]),
        ("one_cycle", 2, [0.04, 0.93569219, 0.83057041, 0.35475232, 0.1]),
    ],
)
def test_factors_equal_the_written_out_list(name: str, warmup: int, expected: list[float]) -> None:
    assert factors(name, 5, warmup, 0.1) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "constant"])
@pytest.mark.parametrize("lrf", [0.0, 0.01, 0.3, 1 / 3, 0.1 + 0.2, 1.0])
def test_the_last_factor_is_lrf_exactly(name: str, lrf: float) -> None:
    for total in (2, 3, 10, 997, 30_000):
        assert lr_factor(name, total - 1, total, total // 10, lrf) == lrf


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "one_cycle"])
def test_the_rate_rises_during_warmup_and_never_after(name: str) -> None:
    rates = factors(name, 200, 20, 0.05)
    assert rates[0] < 0.05
    assert rates[:20] == sorted(rates[:20])
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert max(rates) <= 1


def test_one_cycle_rises_and_falls_by_itself() -> None:
    rates = factors("one_cycle", 101, 20, 0.05)
    assert rates[0] == pytest.approx(1 / 25)
    assert max(rates) == rates[30] == 1
    assert rates[:31] == sorted(rates[:31])
    assert rates[30:] == sorted(rates[30:], reverse=True)


def test_steps_with_lrf_0_fall_to_nothing_in_the_very_last_step_only() -> None:
    assert factors("step", 9, 0, 0.0) == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01, 0])


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "one_cycle"])
def test_a_training_of_one_step_takes_the_first_rate(name: str) -> None:
    assert lr_factor(name, 0, 1, 0, 0.01) == 1


def rates_of(phases: list[Phase], **settings: Any) -> list[float]:
    made = Recipe.model_validate({"lrf": 0.1, "warmup_epochs": 0, "schedule": "linear", **settings})
    return [lr_at(made, phases, epoch, step, 2) for epoch in range(phases[-1].last) for step in range(2)]


def test_added_epochs_start_the_schedule_anew_or_hold_the_last_rate() -> None:
    first = [1, 0.7, 0.4, 0.1]
    assert rates_of([Phase(0, 2)]) == pytest.approx(first)
    assert rates_of([Phase(0, 2), Phase(2, 3)]) == pytest.approx([*first, 1, 0.1])
    assert rates_of([Phase(0, 2), Phase(2, 4, "hold")]) == pytest.approx([*first, *[0.1] * 4])
    assert rates_of([Phase(0, 2), Phase(2, 3, "hold"), Phase(3, 4)]) == pytest.approx([*first, 0.1, 0.1, 1, 0.1])
    assert rates_of([Phase(0, 2), Phase(2, 3), Phase(3, 4, "hold")]) == pytest.approx([*first, 1, 0.1, 0.1, 0.1])


def test_with_a_constant_rate_held_epochs_are_those_of_a_longer_run() -> None:
    longer = rates_of([Phase(0, 6)], schedule="constant")
    assert rates_of([Phase(0, 2), Phase(2, 6, "hold")], schedule="constant") == longer


@pytest.mark.parametrize(
    ("warmup_epochs", "epochs", "steps", "expected"),
    [(3, 300, 100, 300), (3, 10, 100, 100), (0.5, 300, 100, 50), (0, 300, 100, 0), (3, 1, 4, 0), (100, 100, 7, 70)],
)
def test_warmup_takes_at_most_a_tenth_of_the_training(
    warmup_epochs: float, epochs: int, steps: int, expected: int
) -> None:
    assert warmup_steps(warmup_epochs, epochs, steps) == expected


def test_an_unknown_schedule_answers_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown schedule 'cosin': did you mean cosine"):
        lr_factor("cosin", 0, math.ceil(10), 0, 0.1)
