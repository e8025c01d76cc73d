"""The train and resume commands in the driver: check everything, decide where to run, run."""

from __future__ import annotations

import time
from concurrent.futures import Future, wait
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
            problems += more
    if problems or checked is None:
        raise source.report(problems)
    return checked, placement


def _place(source: Source, config: Config, address: str | None) -> Placement:
    assert address is not None
    placement, problems = launch.place_on_cluster(config, address)
    if placement is None:
        raise source.report(problems)
    return placement
