"""Everything that can be wrong with a sweep is found here, before anything is started or written."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.config import Config, Problem
from orchestrator.errors import describe
from orchestrator.preflight import Checked, preflight
from orchestrator.sweeps.combinations import Space
from orchestrator.sweeps.folder import is_sweep
from orchestrator.sweeps.journal import read_journal
from orchestrator.sweeps.records import Params, Trial
from orchestrator.sweeps.schedulers import build_scheduler
from orchestrator.sweeps.searchers import build_searcher
from orchestrator.sweeps.space import CACHED, default_space, parse_space, with_params
from orchestrator.sweeps.state import Limits, Plan
from trainables.optim import choose

SAMPLES = 16
MODEL_KEYS = ("model", "pretrained", "freeze")
"""Searched keys whose every value is tried on the model before anything starts."""
MEASURED_KEYS = ("batch", "micro_batch", "amp", "channels_last", "compile")
"""What is measured once, for all trials."""


@dataclass(frozen=True)
class Earlier:
    """The trials of a sweep that this one learns from."""

    trials: Sequence[Trial]
    best: Params


@dataclass(frozen=True)
class Planned:
    """A sweep that can run."""

    config: Config
    """With the epochs of a trial, imgsz filled in and paths made absolute."""
    checked: Checked
    """Of the config's own values."""
    space: Space
    variants: Mapping[str, Checked]
    """A check per way to cache the data, by `variant_of`."""
    earlier: Sequence[Earlier]

    @property
    def measures_each(self) -> bool:
        """Whether trials differ in what was measured of one: then each measures for itself."""
        return any(key in self.space.domains for key in ("model", "freeze", *CACHED, *MEASURED_KEYS[2:]))

    @property
    def largest_batch(self) -> int:
        domain = self.space.domains.get("batch")
        return max([self.config.batch, *(v for v in domain.ends() if isinstance(v, int))] if domain else [0])

    def plan(self, config: Config) -> Plan:
        """How the sweep goes on under a config, whose `tune` may have been extended. Raises ValueError."""
        tune, checked = config.tune, self.checked
        searcher = build_searcher(tune.searcher, self.space, config.seed, checked.mode)
        samples = tune.samples or (None if tune.searcher == "grid" else SAMPLES)
        for known, earlier in enumerate(self.earlier):
            for number, trial in enumerate(earlier.trials):
                place = -1 - number - 10**6 * known  # numbers that no trial of this sweep has
                searcher.take(place, trial.params)
                best = trial.best(checked.metric, checked.mode)
                searcher.tell(place, [(best[1], best[0])] if best else [], finished=True)
        return Plan(
            metric=checked.metric,
            mode=checked.mode,
            max_epochs=config.total_epochs,
            limits=Limits(samples, tune.hours and tune.hours * 3600, tune.epochs),
            searcher=searcher,
            scheduler=build_scheduler(tune, config, checked.mode),
            scheduler_name=tune.scheduler,
            searcher_name=tune.searcher,
            starts=self.starts,
        )

    @property
    def starts(self) -> list[tuple[str, Params]]:
        """The config's own values, then those of `start_from`, then the best of earlier sweeps; each once."""
        given = [("start_from", values) for values in self.config.tune.start_from if isinstance(values, dict)]
        found = [("start_from", earlier.best) for earlier in self.earlier]
        starts: list[tuple[str, Params]] = []
        for by, values in [("default", {}), *given, *found]:
            params = self.defaults | values
            if params not in [other for _, other in starts]:
                starts.append((by, params))
        return starts

    @property
    def defaults(self) -> Params:
        """What the config says of the searched keys, with what it leaves open filled in."""
        config = self.config
        choice = choose(config, config.total_epochs * -(-len(self.checked.selection.train) // max(config.batch, 1)))
        known = {"optimizer": choice.name, "lr": choice.lr}
        values = config.model_dump()
        return {key: known.get(key, _at(values, key)) for key in self.space.domains}


def plan_sweep(config: Config) -> tuple[Planned | None, list[Problem]]:
    """Check the config, its space and every end of it, searcher, scheduler and what to start from."""
    problems: list[Problem] = []
    tune = config.tune
    config = config.model_copy(update={"epochs": tune.max_epochs or config.total_epochs})
    checked, found = preflight(config)
    problems += found
    if not config.val_interval:
        problems.append(Problem("val_interval", "val_interval = 0: a sweep compares trials by their validation"))
    if checked is None:
        return None, problems
    config = checked.config
    train, workers = len(checked.selection.train), config.scaling.workers
    least = workers if isinstance(workers, int) else 1
    values = tune.space if tune.space is not None else default_space(max(config.batch, 1), train, least)
    space, found = parse_space(values, config)
    problems += found
    if space is None:
        return None, problems
    problems += _check_batches(space, config, train, least)
    problems += _check_models(space, checked)
    variants, found = _variants(space, checked)
    problems += found
    earlier: list[Earlier] = []
    for entry in tune.start_from:
        try:
            if isinstance(entry, dict):
                _check_start(entry, space, config)
            else:
                earlier.append(_read_earlier(Path(entry), checked, space))
        except (ValueError, OSError) as error:
            problems.append(Problem("tune.start_from", f"tune.start_from: {error}"))
    planned = Planned(config, checked, space, variants, earlier)
    for key in ("searcher", "scheduler"):
        if problem := _check_build(planned, key):
            problems.append(problem)
    return (None if problems else planned), problems


def variant_of(config: Config) -> str:
    """What of a config changes what is cached, as text."""
    return json.dumps([getattr(config, key) for key in CACHED])


def _check_build(planned: Planned, key: str) -> Problem | None:
    """Whether the searcher or scheduler can be built."""
    config, name = planned.config, getattr(planned.config.tune, key)
    try:
        if key == "searcher":
            build_searcher(name, planned.space, config.seed, planned.checked.mode)
        else:
            build_scheduler(config.tune, config, planned.checked.mode)
    except Exception as error:  # also of a user's own
        return Problem(f"tune.{key}", f"tune.{key} = {name}: {error if ':' not in name else describe(error)}")
    return None


def _check_batches(space: Space, config: Config, train: int, workers: int) -> list[Problem]:
    domain = space.domains.get("batch")
    sizes = domain.ends() if domain else []
    problems = []
    for size in (s for s in sizes if isinstance(s, int) and s != -1):
        if size > train:
            told = f"{size} is more than the {train} training images"
        elif size < workers:
            told = f"{size} is less than the {workers} workers of a trial, each of which needs an image of it"
        else:
            continue
        problems.append(Problem("tune.space.batch", f"tune.space.batch: {told}"))
    if config.tune.space is not None and "seed" in space.domains and "val" not in _splits(config):
        problems.append(Problem("tune.space.seed", "tune.space.seed: it would change which images are held back"))
    return problems


def _splits(config: Config) -> set[str]:
    from orchestrator.data.manifest import read_manifest

    return set(read_manifest(config.data, config.format).table["split"].unique().to_pylist())


def _check_models(space: Space, checked: Checked) -> list[Problem]:
    """Build the model with each value of the keys that change it."""
    problems = []
    for key in (key for key in MODEL_KEYS if key in space.domains):
        for value in space.variants(key):
            changed = with_params(checked.config, {key: value})
            _, found = preflight(changed, checked)
            problems += [Problem(f"tune.space.{key}", f"tune.space.{key}: {p.message}") for p in found]
    return problems


def _variants(space: Space, checked: Checked) -> tuple[dict[str, Checked], list[Problem]]:
    """A check of the data for each way to cache them, the config's own included."""
    keys = [key for key in CACHED if key in space.domains]
    own = {variant_of(checked.config): checked}
    problems: list[Problem] = []
    for values in itertools.product(*map(space.variants, keys)):
        changed = with_params(checked.config, dict(zip(keys, values, strict=True)))
        found, more = preflight(changed, checked)
        if found:
            own[variant_of(found.config)] = found
        problems += [Problem(f"tune.space.{keys[0]}", f"tune.space.{keys[0]}: {p.message}") for p in more]
    return own, problems


def _check_start(entry: Mapping[str, Any], space: Space, config: Config) -> None:
    """Raises ValueError where a configuration to start from is none of this space."""
    for key in entry:
        if key not in space.domains:
            raise ValueError(f"{key} is not searched: add it to tune.space, or set it in the config itself")
    with_params(config, dict(entry))


def _read_earlier(path: Path, checked: Checked, space: Space) -> Earlier:
    """The trials of another sweep, as far as they lie in this space. Raises ValueError, OSError."""
    if not is_sweep(path):
        raise ValueError(f"{path} is not the folder of a sweep")
    from orchestrator.sweeps.folder import JOURNAL

    trials: dict[int, Trial] = {}
    for event in read_journal(path.expanduser() / JOURNAL):
        if event["kind"] == "trial":
            trials[event["trial"]] = Trial(event["trial"], event["params"], event["by"])
        elif event["kind"] == "epoch":
            trials[event["trial"]].rows.append(event["row"])
    metric, mode = checked.metric, checked.mode
    told = [t for t in trials.values() if t.best(metric, mode) and space.holds(t.params)]
    if not told:
        raise ValueError(f"{path}: none of its trials has the keys of tune.space, with values in it, and {metric}")
    sign = 1 if mode == "max" else -1
    best = max(told, key=lambda trial: sign * (trial.best(metric, mode) or (0.0, 0))[0])
    return Earlier(told, best.params)


def _at(values: Mapping[str, Any], key: str) -> Any:
    for part in key.split("."):
        values = values[part]
    return values
