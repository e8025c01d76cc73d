"""What changes while a model is trained, and how it begins: the same on all ranks, from nothing or a checkpoint."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from trainables import checkpoint, norms
from trainables.collectives import World
from trainables.contracts import Data, Metrics, Runtime, State, Task
from trainables.ema import Ema
from trainables.optim import build_optimizer, choose
from trainables.order import seed_of, share
from trainables.precision import (
    Precision,
    choose_precision,
    loss_of,
    scaler_state,
    set_deterministic,
)
from trainables.progress import Progress, most_at_once
from trainables.recipe import AUTO_EPOCHS, Recipe
from trainables.schedules import Phase, lr_at
from trainables.trials import sample_batch

SMALL_SHARE = 16
"""``sync_bn: auto`` synchronises where a rank has fewer images than this at a time."""


@dataclass
class Training:
    """Everything that changes while `fit` runs, in one place."""

    recipe: Recipe
    task: Task
    data: Data
    runtime: Runtime
    world: World
    model: nn.Module
    optimizer: torch.optim.Optimizer
    lr: float
    precision: Precision
    scaler: torch.amp.GradScaler | None
    compiled: nn.Module
    """The model as it is called in training: itself, or compiled."""
    ema: Ema | None
    sequence: norms.Sequence | None
    """The collectives of synchronised batch norms."""
    progress: Progress = field(default_factory=Progress)
    overflows: int = 0
    """Steps in a row that float16 could not hold."""
    started: float = field(default_factory=time.monotonic)
    buffers: list[Tensor] = field(default_factory=list)
    kept: list[Tensor] = field(default_factory=list)
    """Copies of the buffers, as they were before the step."""

    def __post_init__(self) -> None:
        self.buffers = list(self.model.buffers())
        self.kept = [buffer.clone() for buffer in self.buffers]
        self._before = self.progress.seconds

    @property
    def share(self) -> int:
        """The most images that a rank has of a global batch."""
        return -(-self.recipe.batch // self.world.size)

    @property
    def micro(self) -> int:
        """The most images that go through the model at once."""
        return min(self.share, self.most_at_once or self.share)

    @property
    def most_at_once(self) -> int | None:
        """What a setting or memory limits the micro-batch to; None: nothing does."""
        return most_at_once(self.recipe.micro_batch, self.progress.micro)

    @property
    def phases(self) -> list[Phase]:
        return [Phase(*phase) for phase in self.progress.phases]

    @property
    def last_epoch(self) -> int:
        """The epoch that ends the training, as it is planned now."""
        return self.phases[-1].last

    @property
    def scored(self) -> nn.Module:
        """What is validated."""
        return self.ema.model if self.ema else self.model

    def lr_factor(self, step: int) -> float:
        return lr_at(self.recipe, self.phases, self.progress.epoch, step, self.data.steps)

    def share_buffers(self, images: int) -> None:
        """Copy rank 0's running statistics to all ranks before a step on so many images that is normalised by them.

        That is a step in which some rank has a single image left. A checkpoint holds rank 0's, so a resumed run would
        go on differently without.
        """
        if self.world.size == 1 or self.sequence:
            return
        shares = [len(range(images)[share(images, rank, self.world.size)]) for rank in range(self.world.size)]
        if any(size % self.micro == 1 or (self.micro == 1 and size) for size in shares):
            self.world.broadcast_(self.buffers)

    def keep_buffers(self) -> None:
        if self.buffers:
            torch._foreach_copy_(self.kept, self.buffers)

    def restore_buffers(self) -> None:
        """Undo what the step did to the running statistics."""
        if self.buffers:
            torch._foreach_copy_(self.buffers, self.kept)

    def begin(self) -> None:
        """Start the clock of this session."""
        self.started, self._before = time.monotonic(), self.progress.seconds

    @property
    def seconds(self) -> float:
        """Of training, over all sessions."""
        return self._before + time.monotonic() - self.started

    @property
    def time_is_over(self) -> bool:
        limit = self.recipe.time
        return limit is not None and self.seconds >= limit * 3600

    def state(self, best: bool = False) -> State:
        self.progress.seconds, self.progress.scaler = self.seconds, scaler_state(self.scaler)
        tensors = checkpoint.optimizer_tensors(self.optimizer, self.model)
        ema = self.ema.tensors() if self.ema else {}
        metadata = {"normalization": json.dumps(asdict(self.task.normalization))}
        return State(self.model.state_dict(), tensors, asdict(self.progress), best, ema, metadata)

    def tell(self, kind: str, text: str, **numbers: Any) -> None:
        """Report something that happened, for the screen and the summary."""
        epoch = {"epoch": self.progress.epoch + 1}
        self.runtime.report({"event": kind, "text": text} | epoch | numbers, None)


def start(recipe: Recipe, task: Task, data: Data, runtime: Runtime) -> Training:
    """Build everything, equal on all ranks, and restore the checkpoint if there is one."""
    if recipe.batch < runtime.world_size:
        raise ValueError(
            f"batch = {recipe.batch}: it is global, and each of {runtime.world_size} workers needs an image"
        )
    # a search for the fastest kernels pays where the shapes stay the same
    set_deterministic(recipe.deterministic, search=recipe.task == "classify" and not recipe.multi_scale)
    torch.manual_seed(seed_of(recipe.seed))
    world = World(runtime.rank, runtime.world_size, runtime.device)
    precision = choose_precision(recipe, runtime.device)
    model = task.build_model(data.info).to(runtime.device, memory_format=precision.memory_format)  # type: ignore[call-overload]
    choice = choose(recipe, recipe.total_epochs * data.steps)
    training = Training(
        recipe,
        task,
        data,
        runtime,
        world,
        model,
        optimizer=build_optimizer(choice, model, recipe.weight_decay),
        lr=choice.lr,
        precision=precision,
        scaler=precision.scaler(),
        compiled=model,
        ema=Ema(model, recipe.ema) if recipe.ema else None,
        sequence=None,
    )
    _restore(training)
    world.broadcast_([*model.parameters(), *model.buffers()])
    if training.ema:
        world.broadcast_(training.ema.tensors().values())
    if _synchronises(training):
        training.sequence = norms.synchronise(model, runtime.device)
        _record_sequence(training)
    if recipe.compile:
        training.compiled = cast(nn.Module, torch.compile(model))
    runtime.report(_facts(training), None)
    if training.progress.recent:
        runtime.report({"recent": training.progress.recent}, None)
    training.begin()
    return training


def _restore(training: Training) -> None:
    """Take up the checkpoint, and plan the epochs from there."""
    recipe, runtime = training.recipe, training.runtime
    if (folder := runtime.restore()) is not None:
        saved = checkpoint.load(folder)
        checkpoint.load_model(training.model, saved.model)
        checkpoint.load_optimizer(training.optimizer, training.model, saved.optimizer)
        first = {"counted": saved.progress["samples"], "validated": saved.progress["epoch"]}  # of format 1
        training.progress = Progress(**first | saved.progress)
        if training.ema:
            training.ema.load(saved.ema or saved.model)
        if training.scaler and training.progress.scaler:
            training.scaler.load_state_dict(training.progress.scaler)
    if training.scaler:
        training.scaler.scale(torch.zeros((), device=runtime.device))  # else a rank without a share could not step
    _plan(recipe, training.progress)


def _plan(recipe: Recipe, progress: Progress) -> None:
    """The phases of a new run, of one that goes on, or of one that was given more epochs.

    What was stopped early goes on in a new phase at once; what was interrupted first ends the phase that it is in.
    """
    if not progress.phases:
        progress.phases = [list(Phase(0, recipe.total_epochs))]
    last = Phase(*progress.phases[-1])
    wanted = recipe.total_epochs
    if recipe.epochs == "auto":
        wanted = max(last.last, wanted)
    if wanted < last.last:
        progress.phases[-1] = list(last._replace(last=wanted))
    elif wanted > last.last:
        early = progress.stopped_because == "patience" and last.first < progress.epoch < last.last
        first = progress.epoch if early else last.last
        progress.phases[-1] = list(last._replace(last=first, planned=last.planned or last.last))
        progress.phases.append(list(Phase(first, wanted, recipe.extend_lr)))


def next_stage(epochs: int) -> int | None:
    """The stage of ``epochs: auto`` that follows the one that ends after so many epochs."""
    return next((stage for stage in AUTO_EPOCHS if stage > epochs), None)


def _synchronises(training: Training) -> bool:
    """What `sync_bn` stands for."""
    recipe = training.recipe
    wanted = recipe.sync_bn is True or (recipe.sync_bn == "auto" and training.micro < SMALL_SHARE)
    return training.world.size > 1 and wanted and bool(norms.norms_of(training.model))


def _record_sequence(training: Training) -> None:
    """Let each synchronised batch norm note its collectives, in a pass over one made-up image that leaves no trace."""
    sequence, task, info = training.sequence, training.task, training.data.info
    assert sequence is not None
    training.keep_buffers()
    training.model.train()
    sequence.recording = True
    loss_of(task, training.model, sample_batch(info, 1, training.recipe.task), training.precision).backward()
    sequence.recording = False
    training.optimizer.zero_grad(set_to_none=True)
    training.restore_buffers()


def _facts(training: Training) -> Metrics:
    device, model, recipe = training.runtime.device, training.model, training.recipe
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "precision": str(training.precision),
        "channels_last": training.precision.memory_format == torch.channels_last,
        "compile": bool(recipe.compile),
        "sync_bn": training.sequence is not None,
        "micro": training.micro,
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "threads": torch.get_num_threads(),
    }
