"""The tune command in the driver, and resume and extend of a sweep: check everything, decide where to run, run."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

from orchestrator import launch
from orchestrator.config import Config, ConfigError, Problem
from orchestrator.environment import environment
from orchestrator.reading import Source, read_source, validate
from orchestrator.run import Result
from orchestrator.stop import Impatience, Stop, interruptible
from orchestrator.sweeps.capacity import Capacity, capacity_here, capacity_of_cluster
from orchestrator.sweeps.folder import SweepFolder
from orchestrator.sweeps.journal import FORMAT_VERSION, Event, Journal, read_journal
from orchestrator.sweeps.planned import SAMPLES, Planned, earlier_of, plan_sweep
from orchestrator.sweeps.screen import SweepScreen
from orchestrator.sweeps.state import BUDGET, Plan, State
from orchestrator.sweeps.sweep import Sweep
from orchestrator.tracking import Dataset, Tracker, resolve_tracking_uri

EXTENDABLE = {"samples": "samples", "epochs": "max_epochs", "hours": "hours", "total_epochs": "epochs"}
"""What `extend` may change, and the keys of `tune` that it stands for."""


def tune(config: Config, *, verbose: bool = False) -> Result:
    """Search as `config` says. Raises ConfigError where it cannot run, RunError where every trial failed."""
    return tune_source(Source(config.model_dump()), verbose=verbose)


def resume_sweep(sweep: str | Path, overrides: Sequence[str] = (), *, verbose: bool = False) -> Result:
    """Go on with an interrupted sweep: its trials continue from their checkpoints, and new ones follow.

    `overrides` may set scaling.*, tune.concurrent, tune.cpus, tune.gpus and tune.retries only.
    """
    allowed = ("scaling.", "tune.concurrent", "tune.cpus", "tune.gpus", "tune.retries")
    for override in overrides:
        if not override.startswith(allowed):
            raise ConfigError(f"{override}: a resumed sweep keeps its settings; only scaling.* can be set")
    folder = SweepFolder.open(Path(sweep))
    return tune_source(read_source(folder.config, overrides), verbose=verbose, folder=folder)


def extend_sweep(sweep: str | Path, overrides: Sequence[str] = (), *, verbose: bool = False) -> Result:
    """Give a sweep more trials, epochs per trial or time, and go on with it.

    Values are numbers (40), more (+20) or multiples (2x). With more epochs per trial, finished trials go on, and those
    stopped early that are among the best of their rung.
    """
    folder = SweepFolder.open(Path(sweep))
    before = validate(read_source(folder.config))[0]
    if before is None:
        raise ConfigError(f"{folder.config} is damaged")
    others = [o for o in overrides if o.startswith("scaling.")]
    changes = _changes([o for o in overrides if o not in others], before)
    keys = [f"tune.{key}={value}" for key, value in changes.items()]
    return tune_source(read_source(folder.config, [*keys, *others]), verbose=verbose, folder=folder, changes=changes)


def tune_source(
    source: Source,
    *,
    verbose: bool = False,
    folder: SweepFolder | None = None,
    changes: dict[str, Any] | None = None,
    early: Future[bool] | None = None,
    screen: SweepScreen | None = None,
) -> Result:
    """The tune command: check, place, run. `folder`: of a sweep that goes on, with `changes` of what `tune` says.

    early: Ray that is being started already (`launch.connect_early`).
    """
    connected = False
    with screen or SweepScreen(verbose) as screen, interruptible() as stop:
        try:
            screen.waiting("checking the config, the space, the data and the model")
            events = _read(folder) if folder else []
            planned, capacity, address = _check(source, events)
            if folder:
                _refuse_done(planned, folder, events, changes)
            where = f"connecting to the Ray cluster {address}" if address else "starting Ray on this machine"
            screen.waiting(where)
            connected = early.result() if early else launch.connect(address, verbose)
            stop.install()
            if capacity is None:
                assert address is not None
                capacity, problems = capacity_of_cluster(planned.config, address)
                if capacity is None:
                    raise source.report(problems)
            result = _run(planned, capacity, folder, events, changes, screen, stop, verbose)
        except KeyboardInterrupt as error:
            if not stop.urgent:
                raise
            connected, early = False, None
            raise Impatience from error
        finally:
            if early:
                wait([early])
            if early or connected:
                launch.disconnect()
    if planned.config.tune.continue_best and result.summary["status"] in ("finished", "stopped"):
        _continue_best(result, source, verbose)
    return result


def _check(source: Source, events: list[Event]) -> tuple[Planned, Capacity | None, str | None]:
    """Find everything that is wrong before anything starts. The capacity is None where a cluster must be asked."""
    config, problems = validate(source)
    planned = capacity = None
    address = launch.named_cluster(config) if config else None
    if config is not None:
        planned, more = plan_sweep(config, earlier_of(events[0]) if events else None)
        problems = [*problems, *more]
        if not address:
            capacity, more = capacity_here(config)
            problems += more
        if planned and not events and config.name:
            path = planned.checked.storage / _experiment(planned) / config.name
            if path.exists():
                told = f"name = {config.name}: {path} exists already: choose another name, or continue it: "
                problems.append(Problem("name", f"{told}orchestrator resume {path}"))
    if problems or planned is None:
        raise source.report(problems)
    return planned, capacity, address


def _experiment(planned: Planned) -> str:
    return planned.config.tracking.experiment or planned.checked.manifest.name


def _run(
    planned: Planned,
    capacity: Capacity,
    folder: SweepFolder | None,
    events: list[Event],
    changes: dict[str, Any] | None,
    screen: SweepScreen,
    stop: Stop,
    verbose: bool,
) -> Result:
    config = planned.config
    if folder is None:
        name = config.name or f"sweep-{time.strftime('%Y%m%d-%H%M%S')}"
        folder = SweepFolder.create(planned.checked.storage, _experiment(planned), name)
    try:
        journal = Journal(folder.journal)
    except BlockingIOError as error:
        raise ConfigError(f"{folder.path} is being run by another process: wait for it, or stop it") from error
    try:
        state, key = _state(planned, folder, journal, events, changes)
        folder.write_config(planned.stored.model_copy(update={"name": folder.name}))
        if not events:
            folder.write_environment(environment())
        uri, notice = resolve_tracking_uri(config.tracking.uri, config.storage)
        if notice:
            screen.note(notice)
        tracker = _tracker(planned, folder, key, uri, screen)
        return Sweep(planned, capacity, folder, state, tracker, screen, stop, verbose, key, uri).execute()
    finally:
        journal.close()


def _state(
    planned: Planned, folder: SweepFolder, journal: Journal, events: list[Event], changes: dict[str, Any] | None
) -> tuple[State, str]:
    """The state of a new sweep, or of one that goes on, and the key of the sweep."""
    config = planned.config
    if events:
        state, extend = _replayed(planned, events)
        state.journal = journal
        state.record("session")
        if changes:
            state.extend(changes, extend(changes))
        return state, str(events[0]["id"])
    state, key = State(planned.plan(config), journal), uuid.uuid4().hex
    settings = {name: getattr(config.tune, name) for name in EXTENDABLE.values()} | {"max_epochs": config.total_epochs}
    state.record(
        "sweep",
        format_version=FORMAT_VERSION,
        id=key,
        name=folder.name,
        settings=settings,
        fingerprint=planned.checked.manifest.fingerprint,
        earlier=[earlier.event() for earlier in planned.earlier],
    )
    state.record("session")
    return state, key


def _replayed(planned: Planned, events: list[Event]) -> tuple[State, Callable[[dict[str, Any]], Plan]]:
    """What the journal says, and what makes the plan of a further extension."""
    settings = dict(events[0]["settings"])

    def extend(changes: dict[str, Any]) -> Plan:
        settings.update(changes)
        return planned.plan(_with_settings(planned.config, settings))

    state = State(extend({}))
    state.replay(events, extend)
    return state, extend


def _refuse_done(planned: Planned, folder: SweepFolder, events: list[Event], changes: dict[str, Any] | None) -> None:
    """Raises ConfigError where a sweep cannot go on, or has nothing left to do; before anything is written."""
    path = folder.path
    if events[0]["fingerprint"] != planned.checked.manifest.fingerprint:
        raise ConfigError(f"the data of {path} have changed since it was started; begin a new sweep on them")
    state, extend = _replayed(planned, events)
    if not state.over and not changes:
        return
    if changes:
        state.change(extend(changes))
        longer = "max_epochs" in changes
        if not state.over or (state.over != BUDGET and longer):
            return
    limits = state.plan.limits
    used = [
        f"{limits.epochs} epochs in all (total_epochs)"
        if limits.epochs and state.epochs_spent >= limits.epochs
        else "",
        f"{limits.seconds / 3600:g} hours" if limits.seconds and state.seconds >= limits.seconds else "",
    ]
    if why := " and ".join(filter(None, used)):
        raise ConfigError(f"{path} has used its budget of {why}: extend that too")
    raise ConfigError(
        f"{path} is finished: {len(state.trials)} trials; for more: "
        f"orchestrator extend {path} samples=+20, or epochs=2x"
    )


def _with_settings(config: Config, settings: dict[str, Any]) -> Config:
    tune = config.tune.model_copy(update=settings)
    return config.model_copy(update={"tune": tune, "epochs": settings["max_epochs"] or config.total_epochs})


def _read(folder: SweepFolder) -> list[Event]:
    try:
        return read_journal(folder.journal)
    except (ValueError, OSError) as error:
        raise ConfigError(str(error)) from error


def _tracker(planned: Planned, folder: SweepFolder, key: str, uri: str, screen: SweepScreen) -> Tracker:
    """The parent run in MLflow."""
    config, manifest = planned.config, planned.checked.manifest
    return Tracker(
        uri,
        experiment=folder.path.parent.name,
        run_name=folder.name,
        run_folder=str(folder.path),
        params=config.model_dump(mode="json"),
        tags={"task": config.task, "model": config.model, "sweep": folder.name},
        dataset=Dataset(manifest.name, manifest.fingerprint, config.data),
        on_warning=screen.warn,
        key=key,
    )


def _changes(overrides: Sequence[str], before: Config) -> dict[str, Any]:
    """What `extend` is asked to change, as values of `tune`. Raises ConfigError."""
    changes: dict[str, Any] = {}
    for override in overrides:
        name, _, text = override.partition("=")
        key = EXTENDABLE.get(name.removeprefix("tune."))
        match = re.fullmatch(r"(\+?)(\d+(?:\.\d+)?)(x?)", text.strip())
        if key is None:
            raise ConfigError(f"{override}: extend can change {', '.join(EXTENDABLE)} and scaling.* of a sweep")
        if match is None or (match[1] and match[3]):
            raise ConfigError(f"{override}: write a number, more of it or a multiple, as {name}=40, +20 or 2x")
        now = getattr(before.tune, key)
        if now is None and key == "max_epochs":
            now = before.total_epochs
        if now is None and key == "samples" and before.tune.searcher != "grid":
            now = SAMPLES
        if now is None and (match[1] or match[3]):
            raise ConfigError(f"{override}: the sweep has no limit of {name} to add to: give a number")
        number = float(match[2])
        value = now + number if match[1] else now * number if match[3] else number
        if now is not None and value <= now:
            raise ConfigError(f"{override}: the sweep has {name} = {now:g} already; set it to more")
        changes[key] = value if key == "hours" else int(value)
    if not changes:
        raise ConfigError("extend needs what to change, as samples=+20 or epochs=2x")
    return changes


def _continue_best(result: Result, source: Source, verbose: bool) -> None:
    """Train the winner on, in its folder and its MLflow run, to the whole of `epochs`."""
    from orchestrator.train import extend

    config = validate(source)[0]
    best = result.summary["best"]
    if config is None or best is None:
        return
    if config.epochs == "auto" or best["epochs"] < config.total_epochs:
        extend(result.folder / best["folder"], (f"epochs={config.epochs}",), verbose=verbose)
