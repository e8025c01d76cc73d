"""The search space of a config: which keys can be searched, and the checks before anything starts."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from typing import Any

from pydantic import ValidationError

from orchestrator.config import Config, Problem, yaml_text
from orchestrator.reading import explain
from orchestrator.schema import schema_keys
from orchestrator.sweeps.combinations import Space, cases
from orchestrator.sweeps.domains import REACH, Choice, Conditional, Domain, Normal
from orchestrator.sweeps.records import Params
from orchestrator.sweeps.syntax import parse_domain
from trainables.registry import did_you_mean

_DATA = "trials would be measured on different data"
_OUTCOME = "it does not change what is learnt"
_GOAL = "trials could not be compared"
_BUDGET = "it belongs to the budget, which is the same for all trials: set it beside tune, or tune.max_epochs"

LOCKED: dict[str, str] = {
    **dict.fromkeys(("data", "format", "exif_labels", "fraction", "val_fraction", "max_bad_fraction"), _DATA),
    **dict.fromkeys(("cache", "cache_dir", "cache_quota", "storage", "name", "record_samples", "profile"), _OUTCOME),
    **dict.fromkeys(("memory", "deterministic", "scaling", "tracking", "tune"), _OUTCOME),
    **dict.fromkeys(("task", "metric"), _GOAL),
    **dict.fromkeys(("epochs", "time", "patience", "min_delta", "val_interval", "extend_lr"), _BUDGET),
}
"""Keys, and groups of keys, that cannot be searched, each with the reason."""
CACHED = ("imgsz", "multi_scale")
"""Keys that change what is cached: their values must be listed, since each is cached once."""
LR_DECADES = 1.5
"""That the default space reaches to either side of an optimizer's default learning rate."""


def default_space(batch: int, train: int, workers: int) -> dict[str, Any]:
    """The space of a config that names none: optimizer, lr, lrf and batch, as YAML gives it.

    `batch` is the config's (resolved, not -1), `train` the size of the training set. A learning rate counts by its
    order of magnitude, and so does the last one: of a uniform lrf in [0, 1] nine in ten trials would end above a tenth
    of the first rate, where schedules hardly decay. The optimizers with the same default rate share one range, so that
    what is learnt of one serves the others.
    """
    from trainables.optim import OPTIMIZERS  # imports torch

    assert batch > 0, "a batch that is still to be measured has no halves"

    def around(lr: float) -> dict[str, Any]:
        return {"loguniform": [float(f"{lr * 10**decades:.0e}") for decades in (-LR_DECADES, LR_DECADES)]}

    common = OPTIMIZERS["AdamW"].lr
    special = {name: around(entry.lr) for name, entry in OPTIMIZERS.items() if entry.lr != common}
    batches = [max(min(max(size, workers), train), 1) for size in (batch // 4, batch // 2, batch, 2 * batch)]
    return {
        "optimizer": list(OPTIMIZERS),
        "lr": {"by": "optimizer", "cases": special, "else": around(common)},
        "lrf": {"loguniform": [0.001, 1.0]},
        "batch": list(dict.fromkeys(batches)),
    }


def parse_space(values: Mapping[str, Any], config: Config) -> tuple[Space | None, list[Problem]]:
    """The space of `tune.space`, or all that is wrong with it. Conditions on keys that it lacks are resolved."""
    if not values:
        return None, [Problem("tune.space", "tune.space is empty: name a key and its domain, or leave it out")]
    problems: list[Problem] = []
    domains: dict[str, Domain] = {}
    for key, value in values.items():
        try:
            _refuse_key(key)
            domains[key] = parse_domain(value)
            _check_cached(key, domains[key])
        except ValueError as error:
            problems.append(_problem(key, str(error)))
    broken = {problem.key.removeprefix("tune.space.") for problem in problems}
    for key in list(domains):
        try:
            domains[key] = _resolved(key, domains, broken, config)
        except ValueError as error:
            problems.append(_problem(key, str(error)))
            broken.add(key)
    ordered, more = _ordered({key: domain for key, domain in domains.items() if key not in broken})
    problems += more
    for key in ordered:
        problems += _wrong_values(key, ordered, config)
    return (None, problems) if problems else (Space(ordered), [])


def with_params(config: Config, params: Params) -> Config:
    """The config with dotted keys set. Raises ValueError that tells all that is wrong."""
    known = _key_names()
    for key in params:
        if key not in known:
            raise ValueError(f"unknown key {key!r}: {did_you_mean(key, known)}")
    changed, problems = _changed(config, params)
    if changed is None:
        raise ValueError("; ".join(problem.message for problem in problems))
    return changed


def _changed(config: Config, params: Params) -> tuple[Config | None, list[Problem]]:
    """The config with dotted keys set, or what is wrong with it; the keys must be known."""
    values = config.model_dump()
    for key, value in params.items():
        *groups, last = key.split(".")
        node = values
        for group in groups:
            node = node[group]
        node[last] = value
    try:
        return Config.model_validate(values), []
    except ValidationError as error:
        return None, explain(error)


def _problem(key: str, message: str) -> Problem:
    return Problem(f"tune.space.{key}", f"tune.space.{key}: {message}")


@cache
def _key_names() -> tuple[str, ...]:
    return tuple(key.name for key in schema_keys())


def _reason(key: str) -> str | None:
    """Why a key, or its group, is locked."""
    return LOCKED.get(key, LOCKED.get(key.split(".")[0]))


def _refuse_key(key: str) -> None:
    if reason := _reason(key):
        raise ValueError(f"cannot be searched: {reason}")
    known = _key_names()
    if key not in known:
        raise ValueError(f"unknown key: {did_you_mean(key, [name for name in known if not _reason(name)])}")


def _check_cached(key: str, domain: Domain) -> None:
    if key in CACHED and not _is_listed(domain):
        raise ValueError("is cached once per variant, so that its values must be listed: use choice or grid")


def _resolved(key: str, domains: Mapping[str, Domain], broken: Container[str], config: Config) -> Domain:
    """The domain of a key; a condition on a key that is not searched is replaced by its case. Raises ValueError."""
    domain = domains[key]
    if not isinstance(domain, Conditional):
        return domain
    by = domain.by
    if by == key:
        raise ValueError("by names the key itself: name the key that it depends on")
    if by not in (known := _key_names()):
        raise ValueError(f"by: unknown key {by!r}: {did_you_mean(by, known)}")
    for value, _ in domain.cases:
        try:
            with_params(config, {by: value})
        except ValueError as error:
            raise ValueError(f"case {yaml_text(value)}: {error}") from error
    if by in domains and not _is_listed(domains[by]):
        raise ValueError(f"by: {by} has a range: a condition must be on listed values, a choice or grid")
    if by in domains or by in broken:
        return domain
    value = config.model_dump()
    for part in by.split("."):
        value = value[part]
    leaf = domain.given(value)
    if leaf is None:
        raise ValueError(_no_case(by, value))
    return leaf


def _no_case(by: str, value: Any) -> str:
    return f"there is no case for {by} = {yaml_text(value)}: add one, or else"


def _is_listed(domain: Domain) -> bool:
    return all(isinstance(leaf, Choice) for leaf in (domain.leaves if isinstance(domain, Conditional) else [domain]))


def _ordered(domains: Mapping[str, Domain]) -> tuple[dict[str, Domain], list[Problem]]:
    """The domains, each after the one that it depends on; without those that depend on one that is not there."""
    conditions = {key: domain.by for key, domain in domains.items() if isinstance(domain, Conditional)}
    try:
        TopologicalSorter({key: [by] for key, by in conditions.items()}).prepare()
    except CycleError as error:
        circle: list[str] = error.args[1]
        return {}, [_problem(circle[0], f"{' -> '.join(circle)} depend on each other in a circle")]
    ordered: dict[str, Domain] = {}

    def place(key: str) -> None:
        by = conditions.get(key)
        if by:
            place(by)
        if key in domains and (by is None or by in ordered):
            ordered.setdefault(key, domains[key])

    for key in domains:
        place(key)
    return ordered, []


def _wrong_values(key: str, domains: Mapping[str, Domain], config: Config) -> Iterator[Problem]:
    """The ends of a key's domains that its config would refuse, and the conditions without a case."""
    found: dict[str, Params] = {}
    for settings, leaf in cases(key, domains):
        if leaf is None:
            by = list(settings)[-1]
            found.setdefault(f"tune.space.{key}: {_no_case(by, settings[by])}", {})
            continue
        for value in leaf.ends():
            for problem in _changed(config, {**settings, key: value})[1]:
                if problem.key in settings:
                    continue  # told where that key is checked
                message = problem.message if problem.key == key else f"{key} = {yaml_text(value)}: {problem.message}"
                reach = f" (a normal reaches {REACH} standard deviations)" if isinstance(leaf, Normal) else ""
                found.setdefault(f"tune.space.{message}{reach}", settings)
    for message, settings in found.items():
        given = ", ".join(f"{by} = {yaml_text(value)}" for by, value in settings.items())
        yield Problem(f"tune.space.{key}", f"{message} (with {given})" if given else message)
