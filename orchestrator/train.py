"""The train and resume commands in the driver: check everything, decide where to run, run."""

from __future__ import annotations

import time
from concurrent.futures import Future, wait
from dataclasses import replace
from pathlib import Path

import torch

from orchestrator import launch
from orchestrator.config import Config, ConfigError
from orchestrator.console import Screen
from orchestrator.launch import Placement
from orchestrator.preflight import Checked, preflight
from orchestrator.reading import Source, read_source, validate
from orchestrator.run import Result, Run
from orchestrator.stop import Impatience, interruptible
from orchestrator.storage import RunFolder, Saved


def train(config: Config, *, local: bool = False, verbose: bool = False) -> Result:
    """Train as `config` says. Raises ConfigError where it cannot run, RunError where it failed."""
    return train_source(Source(config.model_dump()), local=local, verbose=verbose)


def resume(
    run: str | Path,
    overrides: tuple[str, ...] = (),
    *,
    local: bool = False,
    verbose: bool = False,
    screen: Screen | None = None,
) -> Result:
    """Go on with an interrupted run from its last checkpoint, in the same folder and the same MLflow run.

    `overrides` may set `scaling` only: the machines may change, the training may not. Raises as `train` does.
    """
    other = [o for o in overrides if not o.startswith("scaling.")]
    if other:
        raise ConfigError(f"{other[0]}: a resumed run keeps its settings; only scaling.* can be set")
    saved = RunFolder.open(Path(run))
    source = read_source(saved.folder.path / "config.yaml", overrides)
    return train_source(source, local=local, verbose=verbose, saved=saved, screen=screen)


EXTENDABLE = ("epochs", "time", "patience", "min_delta", "extend_lr")
"""What `extend` may change, beside scaling.*."""


def extend(
    run: str | Path,
    overrides: tuple[str, ...] = (),
    *,
    local: bool = False,
    verbose: bool = False,
    screen: Screen | None = None,
) -> Result:
    """Give a run more epochs, time or patience, and go on with it in the same folder and the same MLflow run.

    The run may be finished, stopped early or interrupted. `extend_lr` says what the learning rate of added epochs is:
    the schedule anew (restart), or the last rate (hold). Raises as `train` does.
    """
    keys = [o.partition("=")[0] for o in overrides]
    other = [key for key in keys if key not in EXTENDABLE and not key.startswith("scaling.")]
    if other:
        raise ConfigError(f"{other[0]}: extend can change {', '.join(EXTENDABLE)} and scaling.*, nothing else of a run")
    path = Path(run)
    saved = RunFolder.open(path, done=True)
    if saved.checkpoint is None:
        raise ConfigError(f"{path} has no checkpoint to go on from")
    config_file = saved.folder.path / "config.yaml"
    source = read_source(config_file, overrides)
    before, after = validate(read_source(config_file, ()))[0], validate(source)[0]
    if before and after:
        saved = replace(saved, changes=_extension(saved, before, after))
    return train_source(source, local=local, verbose=verbose, saved=saved, screen=screen)


def _extension(saved: Saved, before: Config, after: Config) -> str:
    """What an extension changes, in words. Raises ConfigError where it gives the run nothing to do."""
    old, new = before.model_dump(include=set(EXTENDABLE)), after.model_dump(include=set(EXTENDABLE))
    path, summary = saved.folder.path, saved.summary
    done, because = summary["epochs_completed"], summary["stopped_because"]
    more = after.epochs == "auto" or after.total_epochs > done
    if not more:
        raise ConfigError(f"epochs = {after.epochs}: {path} has done {done} already; set epochs to more")
    stays = {"patience": old["patience"] == new["patience"], "time": old["time"] == new["time"]}
    longer = after.epochs == "auto" or after.total_epochs > before.total_epochs
    if stays.get(because) and (because == "time" or not longer):
        raise ConfigError(
            f"{path} was stopped by {because}: set {because} to more" + (" or 0" * (because == "patience"))
        )
    changed = [f"{key} {old[key]} -> {new[key]}" for key in EXTENDABLE if old[key] != new[key]]
    if after.epochs != before.epochs:
        changed.append(f"learning rate of the added epochs: {after.extend_lr}")
    return "; ".join(changed) or "as it was"


def train_source(
    source: Source,
    *,
    local: bool = False,
    verbose: bool = False,
    saved: Saved | None = None,
    started: float | None = None,
    early: Future[bool] | None = None,
    screen: Screen | None = None,
) -> Result:
    """The train command: check, place, run.

    started: wall-clock time of the command. early: Ray that is being started already (`launch.connect_early`).
    """
    started = started or time.time()
    connected = False
    with screen or Screen(verbose) as screen, interruptible() as stop:
        try:
            checked, placement = check(source, local)
            if placement is None or not placement.in_process:
                address = launch.named_cluster(checked.config)
                where = f"connecting to the Ray cluster {address}" if address else "starting Ray on this machine"
                screen.waiting(where)
                connected = early.result() if early else launch.connect(address, verbose)
                stop.install()
                placement = placement or _place(source, checked.config, address)
            return Run(checked, placement, screen, stop, verbose, started, saved).execute()
        except KeyboardInterrupt as error:
            if not stop.urgent:
                raise
            # Ray ends with this process: shut down under a thread that waits in it, it would abort the process
            connected, early = False, None
            raise Impatience from error  # out of a call into Ray it comes as a plain KeyboardInterrupt
        finally:
            if early:
                wait([early])  # where a check failed it may still be starting
            if early or connected:
                launch.disconnect()


def check(source: Source, local: bool) -> tuple[Checked, Placement | None]:
    """Find everything that is wrong before anything starts. The placement is None where a cluster must be asked."""
    config, problems = validate(source)
    placement = checked = None
    if config is not None:
        checked, more = preflight(config)
        problems = [*problems, *more]
        if local or not launch.named_cluster(config):
            placement, more = launch.place_here(config, local, torch.cuda.device_count())
            problems += more or launch.check_batch(config, placement)
    if problems or checked is None:
        raise source.report(problems)
    return checked, placement


def _place(source: Source, config: Config, address: str | None) -> Placement:
    assert address is not None
    placement, problems = launch.place_on_cluster(config, address)
    problems = problems or launch.check_batch(config, placement)
    if placement is None or problems:
        raise source.report(problems)
    return placement
