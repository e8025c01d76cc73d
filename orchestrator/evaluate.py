"""The val command in the driver: a checkpoint of a run, measured on its own validation set or on other data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import torch

from orchestrator import launch
from orchestrator.config import Config, ConfigError, Problem
from orchestrator.data.files import is_remote
from orchestrator.evaluating.evaluator import Evaluation, Evaluator
from orchestrator.evaluating.screen import ValScreen
from orchestrator.evaluating.subject import Subject, choose_subject
from orchestrator.launch import Placement
from orchestrator.reading import Source, read_source, validate
from orchestrator.stop import Impatience, Stop, interruptible
from orchestrator.trained import Trained, Weights, open_trained
from trainables.registry import did_you_mean
from trainables.tasks import build_task

KEYS = (
    *("data", "format", "exif_labels", "max_bad_fraction", "cache", "cache_dir", "cache_quota"),
    *("batch", "imgsz", "amp", "channels_last", "metric"),
)
"""What of a run's config an evaluation may set, beside scaling.*."""


def evaluate_run(
    target: str | Path,
    overrides: Sequence[str] = (),
    *,
    split: str = "val",
    weights: Weights = "auto",
    verbose: bool = False,
    screen: ValScreen | None = None,
) -> Evaluation:
    """Evaluate the best checkpoint of a run, or RUN/checkpoints/best or last, and write RUN/val/NAME.

    overrides: as "data=PATH" or "scaling.workers=2"; without scaling it runs in this process. split: of the data set.
    weights: the moving average where there is one (auto), "ema" or "raw". Nothing else of the run is touched.
    Raises ConfigError where it cannot be done, RunError where it failed, KeyboardInterrupt where it was stopped.
    """
    if weights not in get_args(Weights):
        raise ConfigError(f"weights = {weights}: {did_you_mean(weights, get_args(Weights))}")
    trained = open_trained(target)
    source, own = _source(trained, overrides)
    config = _config(source)
    connected = False
    screen = screen or ValScreen(verbose)
    with screen, interruptible() as stop:
        try:
            subject = choose_subject(config, split, own, trained.classes)
            _warn(screen, trained, subject, own and split != "test")
            placement = launch.place_here(config, True, torch.cuda.device_count())[0]
            if source.values["scaling"]:
                placement, connected = _connect(source, config, screen, stop, verbose)
            assert placement is not None
            return Evaluator(trained, config, subject, split, weights, placement, screen, stop).run(verbose)
        except KeyboardInterrupt as error:
            if not stop.urgent:
                raise
            connected = False  # Ray ends with this process
            raise Impatience from error
        finally:
            if connected:
                launch.disconnect()


def _source(trained: Trained, overrides: Sequence[str]) -> tuple[Source, bool]:
    """The run's config with the overrides, and whether its data set is the run's own."""
    keys = [override.partition("=")[0] for override in overrides]
    for key in keys:
        if key not in KEYS and not key.startswith("scaling."):
            raise ConfigError(
                f"{key}: val takes split, weights, {', '.join(KEYS)} and scaling.*, nothing else of a run"
            )
    before = read_source(trained.config)
    source = read_source(trained.config, overrides)
    source.values["data"] = _absolute(str(source.values.get("data", "")))
    if not any(key.startswith("scaling.") for key in keys):
        source.values["scaling"] = {}
    if "batch" not in keys:
        workers = source.values["scaling"].get("workers")
        source.values["batch"] = trained.share * (workers if isinstance(workers, int) else 1)
    own = source.values["data"] == before.values.get("data")
    if not own and "format" not in keys:
        source.values["format"] = "auto"
    return source, own


def _absolute(data: str) -> str:
    path = Path(data).expanduser()
    return str(path.absolute()) if data and data != "digits" and not is_remote(data) and path.exists() else data


def _config(source: Source) -> Config:
    config, problems = validate(source)
    if config is None or problems:
        raise source.report(problems)
    if config.batch < 1:
        raise ConfigError(f"batch = {config.batch}: name the images that the model sees at once")
    try:
        build_task(config)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return config


def _connect(
    source: Source, config: Config, screen: ValScreen, stop: Stop, verbose: bool
) -> tuple[Placement | None, bool]:
    """Where the workers are, and whether Ray was started for them."""
    address = launch.named_cluster(config)
    placement, connected = None, False
    problems: list[Problem] = []
    if address is None:
        placement, problems = launch.place_here(config, False, torch.cuda.device_count())
    if not problems and (placement is None or not placement.in_process):
        screen.waiting(f"connecting to the Ray cluster {address}" if address else "starting Ray on this machine")
        connected = launch.connect(address, verbose)
        stop.install()
    if address is not None:
        placement, problems = launch.place_on_cluster(config, address)
    problems = problems or launch.check_batch(config, placement)
    if problems:
        if connected:
            launch.disconnect()
        raise source.report(problems)
    return placement, connected


def _warn(screen: ValScreen, trained: Trained, subject: Subject, same: bool) -> None:
    """What makes the figures differ from those that one would expect."""
    if same and subject.whole.fingerprint != trained.summary["dataset"]["fingerprint"]:
        screen.warn("the data have changed since the run was started: its figures are of other images or labels")
    if subject.absent:
        shown = ", ".join(subject.absent[:5]) + (", ..." if len(subject.absent) > 5 else "")
        screen.warn(f"classes of the run that the data set does not have: {shown}")
