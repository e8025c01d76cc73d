"""A trained model as a run left it: its config, its classes, one of its checkpoints."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from orchestrator.config import ConfigError
from trainables import checkpoint
from trainables.checkpoint import BEST, LAST, DamagedCheckpoint
from trainables.contracts import DataInfo, State, Task

Weights = Literal["auto", "ema", "raw"]
"""Which weights of a checkpoint: the moving average, the raw ones, or the average where there is one."""


@dataclass(frozen=True)
class Trained:
    """A run and one of its checkpoints, read and verified."""

    run: Path
    checkpoint: Path
    state: State
    """Tensors on the CPU."""
    summary: dict[str, Any]

    @property
    def config(self) -> Path:
        return self.run / "config.yaml"

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.summary["dataset"]["classes"])

    @property
    def epoch(self) -> int:
        """Epochs that the weights have been trained for."""
        return int(self.state.progress["epoch"])

    @property
    def share(self) -> int:
        """Images that a worker of the run saw of a batch."""
        return int(self.summary["batch"]["per_worker"])

    def has_ema(self, weights: Weights) -> bool:
        """Whether these weights are the moving average. Raises ConfigError where that is asked for and is not there."""
        if weights == "ema" and not self.state.ema:
            raise ConfigError(f"weights = ema: {self.run} was trained without a moving average of the weights (ema: 0)")
        return weights != "raw" and bool(self.state.ema)


def build_trained(task: Task, info: DataInfo, tensors: dict[str, Tensor]) -> nn.Module:
    """A model of the task with these weights, on the CPU. Raises ValueError where they do not fit it."""
    model = task.build_model(info)
    checkpoint.load_model(model, tensors)
    return model


def open_trained(target: str | Path) -> Trained:
    """Read RUN, whose best checkpoint is taken, or RUN/checkpoints/best or last. Raises ConfigError."""
    folder = Path(target).expanduser().absolute()
    if not folder.exists():
        raise ConfigError(f"{target}: there is no such folder (looked for {folder})")
    run: Path = folder
    names: tuple[str, ...] = (BEST, LAST)
    if folder.parent.name == "checkpoints" and not (folder / "config.yaml").exists():
        run, names = folder.parent.parent, (folder.name,)
    if not (run / "config.yaml").exists():
        raise ConfigError(
            f"{target} is not the folder of a run, which has a config.yaml, nor one of its checkpoints "
            "(RUN/checkpoints/best, RUN/checkpoints/last)"
        )
    found = [(name, run / "checkpoints" / name) for name in names]
    there = [(name, path) for name, path in found if _exists(path)]
    if not there:
        raise ConfigError(f"{target}: the run has no checkpoint yet: the first is written after its first epoch")
    name, path = there[0]
    try:
        state = load_checkpoint(path)
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    except DamagedCheckpoint as error:
        other = LAST if name == BEST else BEST
        raise ConfigError(f"{target}: {error}; try {run / 'checkpoints' / other}") from error
    except (OSError, json.JSONDecodeError) as error:
        raise ConfigError(f"{target} is not the folder of a run: its summary.json cannot be read: {error}") from error
    return Trained(run, path, state, summary)


def _previous(path: Path) -> Path:
    """Where a checkpoint is while a run that goes on puts the next one in its place."""
    return path.with_name(f".{path.name}.previous")


def _exists(path: Path) -> bool:
    return path.is_dir() or _previous(path).is_dir()


def load_checkpoint(path: Path) -> State:
    """Read a checkpoint of a run that may be going on. Raises DamagedCheckpoint."""
    try:
        return checkpoint.load(path)
    except DamagedCheckpoint:
        for other in (_previous(path), path):  # a run that goes on may have replaced it meanwhile
            with suppress(DamagedCheckpoint):
                return checkpoint.load(other)
        raise
