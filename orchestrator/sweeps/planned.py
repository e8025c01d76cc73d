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
from orchestrator.sweeps.journal import JOURNAL, is_sweep, read_journal
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

    trials: Sequence[tuple[Params, int, float]]
    """The configuration, best epoch and best value of each."""
    best: Params

    def event(self) -> dict[str, Any]:
        """As the journal keeps it: the folder may be gone when the sweep is resumed."""
        return {"trials": self.trials, "best": self.best}


@dataclass(frozen=True)
class Planned:
    """A sweep that can run."""

    config: Config
    """With the epochs of a trial, imgsz filled in and paths made absolute."""
    stored: Config
    """The same with the user's own epochs: what sweep.yaml says."""
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
            for number, (params, epoch, value) in enumerate(earlier.trials):
                place = -1 - number - 10**6 * known  # numbers that no trial of this sweep has
                searcher.take(place, params)
                searcher.tell(place, [(epoch, value)], finished=True)
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


def plan_sweep(config: Config, known: Sequence[Earlier] | None = None) -> tuple[Planned | None, list[Problem]]:
    """Check the config, its space and every end of it, searcher, scheduler and what to start from.

    known: the earlier sweeps that are learnt from, where this one has read them before.
    """
    problems: list[Problem] = []
    tune, epochs = config.tune, config.epochs
    config = config.model_copy(update={"epochs": tune.max_epochs or config.total_epochs})
    checked, found = preflight(config)
    problems += found
    if not config.val_interval:
        problems.append(Problem("val_interval", "val_interval = 0: a sweep compares trials by their validation"))
    if tune.grace and tune.scheduler != "none" and tune.grace >= config.total_epochs:
        told = f"tune.grace = {tune.grace}: a trial has {config.total_epochs} epochs, so that none could be stopped"
        problems.append(Problem("tune.grace", f"{told}: lower it, or set tune.scheduler to none"))
    if checked is None:
        return None, problems
    config = checked.config
    train, workers = len(checked.selection.train), config.scaling.workers
    least = workers if isinstance(workers, int) else 1
    values = tune.space if tune.space is not None else _default_space(config.batch, train, least)
    space, found = parse_space(values, config)
    problems += found
    if space is None:
        return None, problems
    problems += _check_batches(space, checked, train, least)
    problems += _check_models(space, checked)
    variants, found = _variants(space, checked)
    problems += found
    earlier = list(known or ())
    for entry in tune.start_from:
        try:
            if isinstance(entry, dict):
                _check_start(entry, space, checked, variants)
            elif known is None:
                earlier.append(_read_earlier(Path(entry), checked, space))
        except (ValueError, OSError) as error:
            problems.append(Problem("tune.start_from", f"tune.start_from: {error}"))
    places = [
        entry if isinstance(entry, dict) else str(Path(entry).expanduser().absolute()) for entry in tune.start_from
    ]
    config = config.model_copy(update={"tune": tune.model_copy(update={"start_from": places})})
    planned = Planned(config, config.model_copy(update={"epochs": epochs}), checked, space, variants, earlier)
    for key in ("searcher", "scheduler"):
        if problem := _check_build(planned, key):
            problems.append(problem)
    return (None if problems else planned), problems


def _default_space(batch: int, train: int, workers: int) -> dict[str, Any]:
    """The default space; a batch that is to be measured is not searched."""
    space = default_space(batch if batch > 0 else 64, train, workers)
    return space if batch > 0 else {key: domain for key, domain in space.items() if key != "batch"}


def earlier_of(event: Mapping[str, Any]) -> list[Earlier]:
    """The earlier sweeps that a sweep has read, from the first event of its journal."""
    return [
        Earlier([(params, epoch, value) for params, epoch, value in told["trials"]], told["best"])
        for told in event["earlier"]
    ]


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


def _check_batches(space: Space, checked: Checked, train: int, workers: int) -> list[Problem]:
    config, splits = checked.config, checked.manifest.table["split"].unique().to_pylist()
    domain = space.domains.get("batch")
    sizes = [("tune.space.batch", size) for size in domain.ends()] if domain else []
    problems = []
    for key, size in [("batch", config.batch), *sizes]:
        if told := _why_not_batch(size, train, workers):
            problems.append(Problem(key, f"{key}: {told}"))
    if config.tune.space is not None and "seed" in space.domains and "val" not in splits:
        problems.append(Problem("tune.space.seed", "tune.space.seed: it would change which images are held back"))
    return problems


def _why_not_batch(size: Any, train: int, workers: int) -> str:
    """What is wrong with a batch of this size, or nothing."""
    if not isinstance(size, int) or size == -1:
        return ""
    if size > train:
        return f"{size} is more than the {train} training images"
    if size < workers:
        return f"{size} is less than the {workers} workers of a trial, each of which needs an image of it"
    return ""


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


def _check_start(entry: Mapping[str, Any], space: Space, checked: Checked, variants: Mapping[str, Checked]) -> None:
    """Raises ValueError where a configuration to start from cannot be tried, or is none of this space."""
    for key in entry:
        if key not in space.domains:
            raise ValueError(f"{key} is not searched: add it to tune.space, or set it in the config itself")
    config = with_params(checked.config, dict(entry))
    workers = config.scaling.workers
    least = workers if isinstance(workers, int) else 1
    if told := _why_not_batch(config.batch, len(checked.selection.train), least):
        raise ValueError(f"batch = {told}")
    if variant_of(config) not in variants:
        raise ValueError(f"{', '.join(CACHED)}: only the values of tune.space are cached, and this is none of them")
    if any(key in entry for key in MODEL_KEYS):
        for problem in preflight(config, checked)[1]:
            raise ValueError(problem.message)


def _read_earlier(path: Path, checked: Checked, space: Space) -> Earlier:
    """The trials of another sweep, as far as they lie in this space. Raises ValueError, OSError."""
    if not is_sweep(path):
        raise ValueError(f"{path} is not the folder of a sweep")
    trials: dict[int, Trial] = {}
    for event in read_journal(path.expanduser() / JOURNAL):
        if event["kind"] == "trial":
            trials[event["trial"]] = Trial(event["trial"], event["params"], event["by"])
        elif event["kind"] == "epoch":
            trials[event["trial"]].rows.append(event["row"])
    metric, sign = checked.metric, 1 if checked.mode == "max" else -1
    told = [
        (trial.params, best[1], best[0])
        for trial in trials.values()
        if (best := trial.best(metric, checked.mode)) and space.holds(trial.params)
    ]
    if not told:
        raise ValueError(f"{path}: none of its trials has the keys of tune.space, with values in it, and {metric}")
    return Earlier(told, max(told, key=lambda trial: sign * trial[2])[0])


def _at(values: Mapping[str, Any], key: str) -> Any:
    for part in key.split("."):
        values = values[part]
    return values
