"""Searchers: who proposes the configuration of the next trial."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from orchestrator.sweeps.combinations import Space
from orchestrator.sweeps.domains import Conditional, Leaf, Range, same
from orchestrator.sweeps.records import Params
from trainables.contracts import Mode
from trainables.order import draws, sample_keys, seed_of
from trainables.registry import lookup

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial, Trial

Values = Sequence[tuple[int, float]]
"""The metric by epoch: (epoch, value)."""


class Searcher(Protocol):
    """Proposes configurations; the driver calls it. Numbers are those of the trials, each used once."""

    def ask(self, number: int) -> Params | None:
        """The configuration of a new trial; None where nothing is left to try."""

    def take(self, number: int, params: Params) -> None:
        """A configuration proposed elsewhere: the config's own, one of start_from, an earlier session's."""

    def tell(self, number: int, values: Values, finished: bool) -> None:
        """What came of a trial that has ended; without values it failed. A later call replaces an earlier one."""


def build_searcher(name: str, space: Space, seed: int, mode: Mode) -> Searcher:
    """A searcher of SEARCHERS, or of ``package.module:function`` with the same arguments. Raises ValueError."""
    searcher: Searcher = lookup(SEARCHERS, name, "searcher")(space, seed, mode)
    return searcher


class RandomSearcher:
    """Independent draws: each value depends on the seed, the trial's number and its key alone."""

    def __init__(self, space: Space, seed: int, mode: Mode) -> None:
        self._space, self._seed = space, seed

    def ask(self, number: int) -> Params | None:
        return self._space.sample(lambda key: float(draws(self._seed, number, sample_keys([key]), 1)[0, 0]))

    def take(self, number: int, params: Params) -> None:
        pass

    def tell(self, number: int, values: Values, finished: bool) -> None:
        pass


class GridSearcher:
    """All combinations in order, without those that were taken. Raises ValueError for a space with ranges."""

    def __init__(self, space: Space, seed: int, mode: Mode) -> None:
        if space.infinite:
            raise ValueError(
                f"searcher = grid: {', '.join(space.infinite)} cannot be listed: use grid, choice, int or a uniform "
                "with step for each, or another searcher"
            )
        self._space = space
        self._left = space.grid()
        self._taken: list[Params] = []

    def ask(self, number: int) -> Params | None:
        return next((params for params in self._left if not self._is_taken(params)), None)

    def take(self, number: int, params: Params) -> None:
        if self._space.holds(params):
            self._taken.append(params)

    def tell(self, number: int, values: Values, finished: bool) -> None:
        pass

    def _is_taken(self, params: Params) -> bool:
        return any(all(same(taken[key], value) for key, value in params.items()) for taken in self._taken)


class OptunaSearcher:
    """Optuna's tree-structured Parzen estimator (TPE): ten random trials, then near the best and far from the rest.

    Its study is made anew for each proposal from the trials that are known, in the order of their numbers. So a
    proposal depends on those and the seed alone, and a resumed sweep goes on as the uninterrupted one would have.
    A range is searched by probability, from 0 to 1, which is the same for each scale; values by their position.
    """

    def __init__(self, space: Space, seed: int, mode: Mode) -> None:
        self._space, self._seed, self._mode = space, seed, mode
        self._params: dict[int, Params] = {}
        self._results: dict[int, tuple[Values, bool]] = {}

    def ask(self, number: int) -> Params | None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        sampler = optuna.samplers.TPESampler(seed=seed_of(self._seed, number) % 2**32)
        study = optuna.create_study(sampler=sampler, direction="maximize" if self._mode == "max" else "minimize")
        study.add_trials([self._known(known) for known in sorted(self._params)])
        trial = study.ask()
        params: Params = {}
        for key in self._space.domains:
            leaf = self._space.leaf(key, params)
            assert leaf is not None
            params[key] = _suggest(trial, self._name(key, params), leaf)
        self._params[number] = params
        return params

    def take(self, number: int, params: Params) -> None:
        if self._space.holds(params):
            self._params[number] = params

    def tell(self, number: int, values: Values, finished: bool) -> None:
        self._results[number] = [(epoch, value) for epoch, value in values if math.isfinite(value)], finished

    def _name(self, key: str, params: Params) -> str:
        """Of the parameter in the study: one for each case of a condition, as "lr|optimizer=SGD"."""
        domain = self._space.domains[key]
        return f"{key}|{domain.case(params[domain.by])}" if isinstance(domain, Conditional) else key

    def _known(self, number: int) -> FrozenTrial:
        """A trial of the study. Stopped ones tell how far they came, those that run are kept away from."""
        from optuna.trial import TrialState, create_trial

        params = self._params[number]
        positions: dict[str, Any] = {}
        distributions: dict[str, BaseDistribution] = {}
        for key in self._space.domains:
            leaf = self._space.leaf(key, params)
            assert leaf is not None
            name = self._name(key, params)
            positions[name], distributions[name] = _position(leaf, params[key]), _distribution(leaf)
        values, finished = self._results.get(number, ([], False))
        best = (max if self._mode == "max" else min)((value for _, value in values), default=None)
        if number not in self._results:
            state = TrialState.RUNNING
        elif best is None:
            state = TrialState.FAIL
        else:
            state = TrialState.COMPLETE if finished else TrialState.PRUNED
        return create_trial(
            state=state,
            value=best if state == TrialState.COMPLETE else None,
            params=positions,
            distributions=distributions,
            # All that TPE reads of a stopped trial is the last of them.
            intermediate_values={values[-1][0]: best} if best is not None and state == TrialState.PRUNED else {},
        )


def _distribution(leaf: Leaf) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(leaf, Range):
        return FloatDistribution(0.0, 1.0)
    if leaf.scale == "category":
        return CategoricalDistribution(range(leaf.count))
    return IntDistribution(0, leaf.count - 1)


def _suggest(trial: Trial, name: str, leaf: Leaf) -> Any:
    """The value that the study proposes; the parameter is of `_distribution`."""
    if isinstance(leaf, Range):
        return leaf.at(trial.suggest_float(name, 0.0, 1.0))
    if leaf.scale == "category":
        return leaf.nth(trial.suggest_categorical(name, range(leaf.count)))
    return leaf.nth(trial.suggest_int(name, 0, leaf.count - 1))


def _position(leaf: Leaf, value: Any) -> float | int | None:
    """The inverse of `_suggest`: where in the domain a value is."""
    return min(max(leaf.cdf(value), 0.0), 1.0) if isinstance(leaf, Range) else leaf.index(value)


SEARCHERS: dict[str, Callable[[Space, int, Mode], Searcher]] = {
    "random": RandomSearcher,
    "grid": GridSearcher,
    "optuna": OptunaSearcher,
}
