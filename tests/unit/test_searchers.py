"""What each searcher does of its own: random is keyed, grid complete, Optuna learns."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from statistics import fmean, pstdev

import pytest

from orchestrator.sweeps.combinations import Space
from orchestrator.sweeps.domains import Choice, Conditional, Grid, Integer, LogUniform, Uniform
from orchestrator.sweeps.records import Params
from orchestrator.sweeps.searchers import GridSearcher, OptunaSearcher, RandomSearcher, build_searcher
from trainables.contracts import Mode

PLANE = Space({"lr": LogUniform(1e-5, 1.0), "lrf": Uniform(0.0, 1.0)})
CASES = Space(
    {
        "optimizer": Choice(("SGD", "AdamW")),
        "lr": Conditional("optimizer", (("SGD", LogUniform(1e-4, 1.0)), ("AdamW", LogUniform(1e-5, 0.1)))),
        "lrf": Uniform(0.0, 1.0),
    }
)


def on_plane(params: Params) -> float:
    """Best, with 0, at lr = 0.01, lrf = 0.3."""
    return float(-((math.log10(params["lr"]) + 2) ** 2) - 4 * (params["lrf"] - 0.3) ** 2)


def by_case(params: Params) -> float:
    """Best, with 0, for AdamW at lr = 0.001, lrf = 0.3; SGD has its best at lr = 0.1."""
    sgd = params["optimizer"] == "SGD"
    miss = (math.log10(params["lr"]) + (1 if sgd else 3)) ** 2 + 4 * (params["lrf"] - 0.3) ** 2
    return float(-miss - 0.5 * sgd)


def play(name: str, space: Space, function: Callable[[Params], float], seed: int, count: int = 40) -> list[float]:
    """The values of what it proposes one after the other, best first."""
    searcher = build_searcher(name, space, seed, "max")
    values = []
    for number in range(count):
        params = searcher.ask(number)
        assert params is not None
        values.append(function(params))
        searcher.tell(number, [(1, values[-1])], finished=True)
    return sorted(values, reverse=True)


@pytest.mark.parametrize(("space", "function"), [(PLANE, on_plane), (CASES, by_case)], ids=["plane", "cases"])
def test_optuna_comes_clearly_nearer_to_the_best_than_random(space: Space, function: Callable[[Params], float]) -> None:
    """Both miss 0; over five seeds Optuna's best misses it by less, its best five by less than half."""
    random, optuna = ([play(name, space, function, seed) for seed in range(5)] for name in ("random", "optuna"))
    assert fmean(values[0] for values in optuna) > 0.7 * fmean(values[0] for values in random)
    assert fmean(fmean(values[:5]) for values in optuna) > 0.5 * fmean(fmean(values[:5]) for values in random)


def test_to_minimize_is_to_maximize_the_negative() -> None:
    higher, lower = OptunaSearcher(PLANE, 0, "max"), OptunaSearcher(PLANE, 0, "min")
    for number in range(20):
        params = higher.ask(number)
        assert params
        assert params == lower.ask(number)
        value = on_plane(params)
        higher.tell(number, [(1, value - 1), (2, value), (3, value - 1)], finished=number % 3 > 0)
        lower.tell(number, [(1, 1 - value), (2, -value), (3, 1 - value)], finished=number % 3 > 0)


def taught(seed: int) -> OptunaSearcher:
    """A searcher that was told of twenty rates, of which those about 0.01 are the best."""
    searcher = OptunaSearcher(PLANE, seed, "max")
    for number in range(20):
        params = {"lr": 10 ** (-number / 4), "lrf": 0.5}
        searcher.take(number, params)
        searcher.tell(number, [(1, on_plane(params))], finished=True)
    return searcher


def rate(searcher: OptunaSearcher, number: int) -> float:
    """The decimal logarithm of the proposed learning rate."""
    return math.log10((searcher.ask(number) or {})["lr"])


def test_optuna_learns_from_trials_that_were_proposed_elsewhere() -> None:
    """Of random rates the mean distance is 1.3."""
    assert fmean(abs(rate(taught(seed), 20) + 2) for seed in range(5)) < 0.6


def test_optuna_learns_from_trials_that_were_stopped() -> None:
    """Stopped ones rank by the epoch that they came to: here those at low rates were stopped first."""
    rates = []
    for seed in range(5):
        searcher = OptunaSearcher(PLANE, seed, "max")
        for number in range(20):
            searcher.take(number, {"lr": 10 ** (-number / 4), "lrf": 0.5})
            searcher.tell(number, [(epoch, 0.5) for epoch in range(1, 21 - number)], finished=False)
        rates.append(rate(searcher, 20))
    assert fmean(rates) > -1.25


def test_optuna_keeps_away_from_trials_that_still_run() -> None:
    """The same questions, once with all the earlier ones open, once each for itself."""
    searcher = taught(0)
    together = [rate(searcher, number) for number in range(20, 32)]
    alone = [rate(taught(0), number) for number in range(20, 32)]
    assert together[0] == alone[0]
    assert pstdev(together) > 1.3 * pstdev(alone), (together, alone)


def test_optuna_learns_nothing_from_trials_that_failed() -> None:
    known, fresh = OptunaSearcher(PLANE, 0, "max"), OptunaSearcher(PLANE, 0, "max")
    for number in range(20):
        known.take(number, {"lr": 1e-5, "lrf": 0.5})
        known.tell(number, [], finished=False)
    assert known.ask(20) == fresh.ask(20)


def test_optuna_is_quiet(capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder) -> None:
    play("optuna", CASES, by_case, 0, 15)
    assert capfd.readouterr() == ("", "")
    assert not list(recwarn)


def test_a_new_key_does_not_change_the_random_draws_of_the_others() -> None:
    larger = Space({"seed": Integer(0, 10**9), **PLANE.domains})
    for number in range(5):
        proposed = RandomSearcher(larger, 7, "max").ask(number)
        assert proposed
        assert {key: proposed[key] for key in PLANE.domains} == RandomSearcher(PLANE, 7, "max").ask(number)


def test_random_draws_fill_the_space_evenly() -> None:
    searcher = RandomSearcher(PLANE, 0, "max")
    rates = [math.log10((searcher.ask(number) or {})["lr"]) for number in range(500)]
    counts = [sum(low <= rate < low + 1 for rate in rates) for low in range(-5, 0)]
    assert all(75 < count < 125 for count in counts), counts


GRID = Space({"optimizer": Grid(("SGD", "AdamW")), "warmup_epochs": Integer(0, 2)})


def test_the_grid_gives_what_was_not_taken_and_then_nothing() -> None:
    searcher = GridSearcher(GRID, 0, "max")
    searcher.take(0, {"optimizer": "SGD", "warmup_epochs": 1})
    searcher.take(1, {"optimizer": "AdamW", "warmup_epochs": 2.0})
    searcher.take(2, {"optimizer": "Adam", "warmup_epochs": 2})
    proposed = [searcher.ask(number) for number in range(3, 9)]
    left = [("SGD", 0), ("SGD", 2), ("AdamW", 0), ("AdamW", 1)]
    assert proposed == [{"optimizer": o, "warmup_epochs": w} for o, w in left] + [None, None]


def test_a_grid_over_a_range_is_refused_with_its_keys() -> None:
    with pytest.raises(ValueError, match="searcher = grid: lr, lrf cannot be listed: use grid, choice"):
        GridSearcher(PLANE, 0, "max")


def test_a_searcher_of_ones_own() -> None:
    found = build_searcher("tests.unit.test_searchers:fixed", PLANE, 5, "min")
    assert found.ask(0) == {"lr": 0.1, "lrf": 5}


def fixed(space: Space, seed: int, mode: Mode) -> RandomSearcher:
    class Fixed(RandomSearcher):
        def ask(self, number: int) -> Params | None:
            return {"lr": 0.1, "lrf": seed}

    return Fixed(space, seed, mode)


def test_searchers_are_imported_without_optuna_and_torch() -> None:
    code = (
        "import sys, orchestrator.sweeps.searchers, orchestrator.sweeps.space\n"
        "print({'optuna', 'torch', 'ray'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
