"""The one training loop. It runs the same in process, in a Ray Train worker and in a trial."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from trainables import checkpoint
from trainables.collectives import World
from trainables.contracts import Batch, Data, Metrics, Runtime, State, Task
from trainables.meter import Meter
from trainables.optim import build_optimizer, choose
from trainables.order import seed_of
from trainables.recipe import Recipe
from trainables.schedules import lr_factor, warmup_steps

PROGRESS_STEPS = 10
"""Progress is reported at least every so many steps."""


@dataclass
class Progress:
    """Where a training is: what a checkpoint stores beside the tensors. `samples` are those consumed of `epoch`."""

    epoch: int = 0
    samples: int = 0
    loss_sum: float = 0.0
    best: float | None = None
    best_epoch: int = 0
    stopped_because: str = ""

    def is_better(self, value: float, mode: str) -> bool:
        if math.isnan(value):
            return False
        return self.best is None or (value > self.best if mode == "max" else value < self.best)


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
    precision: torch.dtype
    progress: Progress = field(default_factory=Progress)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.runtime.device.type, dtype=torch.bfloat16, enabled=self.precision == torch.bfloat16)

    def state(self, best: bool = False) -> State:
        tensors = checkpoint.optimizer_tensors(self.optimizer, self.model)
        return State(self.model.state_dict(), tensors, asdict(self.progress), best)


def fit(recipe: Recipe, task: Task, data: Data, runtime: Runtime) -> Progress:
    """Train until the epochs are done, the metric stays below its best for `patience` epochs, or the runtime says stop.

    Runs in every rank. Raises FloatingPointError, with step and sample ids, where the loss is not finite.
    """
    training = _start(recipe, task, data, runtime)
    progress, world = training.progress, training.world
    while progress.epoch < recipe.total_epochs and not progress.stopped_because:
        meter = Meter()
        if not _train_epoch(training, meter):
            progress.stopped_because = "interruption"
            runtime.report({"epoch": progress.epoch}, training.state())
            break
        row = {
            "epoch": progress.epoch + 1,
            "step": (progress.epoch + 1) * data.steps,
            "train_loss": progress.loss_sum / max(progress.samples, 1),
            "lr": training.optimizer.param_groups[0]["lr"],
            **meter.row(world),
        }
        world.broadcast_(training.model.buffers())
        validated, details = _validate(training)
        row |= validated
        better = progress.is_better(row[task.primary], task.mode)
        progress.epoch, progress.samples, progress.loss_sum = progress.epoch + 1, 0, 0.0
        if better:
            progress.best, progress.best_epoch = row[task.primary], progress.epoch
        row |= {"seconds": meter.seconds} | ({"details": details} if better else {})
        progress.stopped_because = _stop(training)
        runtime.report(row, training.state(better))
    return progress


def _start(recipe: Recipe, task: Task, data: Data, runtime: Runtime) -> Training:
    """Build everything, equal on all ranks, and restore the checkpoint if there is one."""
    torch.manual_seed(seed_of(recipe.seed))
    world = World(runtime.rank, runtime.world_size, runtime.device)
    model = task.build_model(data.info).to(runtime.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    choice = choose(recipe, recipe.total_epochs * data.steps)
    optimizer = build_optimizer(choice, model, recipe.weight_decay)
    precision = choose_precision(recipe, runtime.device)
    training = Training(recipe, task, data, runtime, world, model, optimizer, choice.lr, precision)
    if (folder := runtime.restore()) is not None:
        saved = checkpoint.load(folder)
        checkpoint.load_model(model, saved.model)
        checkpoint.load_optimizer(optimizer, model, saved.optimizer)
        training.progress = Progress(**saved.progress)
        training.progress.stopped_because = _stop(training)
    world.broadcast_([*model.parameters(), *model.buffers()])
    runtime.report(
        {
            "device": _device_name(runtime.device),
            "precision": str(precision).removeprefix("torch."),
            "parameters": sum(p.numel() for p in model.parameters()),
            "threads": torch.get_num_threads(),
        },
        None,
    )
    return training


def choose_precision(recipe: Recipe, device: torch.device) -> torch.dtype:
    """bfloat16 where `amp` asks for it, or leaves it open on a GPU that has it; else float32."""
    auto = device.type == "cuda" and torch.cuda.is_bf16_supported()
    wanted = auto if recipe.amp == "auto" else recipe.amp in (True, "bf16")
    return torch.bfloat16 if wanted else torch.float32


def _train_epoch(training: Training, meter: Meter) -> bool:
    """The rest of the current epoch. False when interrupted: `progress` then says how far it came."""
    recipe, data, progress = training.recipe, training.data, training.progress
    first = progress.samples // recipe.batch
    every = max(1, min(data.steps // 100, PROGRESS_STEPS))
    training.model.train()
    for step, batch in enumerate(meter.batches(data.train(progress.epoch, first)), first):
        lr = training.lr * _lr_factor(training, step)
        loss, interrupted = _train_step(training, batch, step, lr)
        progress.samples += batch.global_size
        progress.loss_sum += loss * batch.global_size
        last = step + 1 == data.steps
        if (step == first or (step + 1) % every == 0) and not last:
            meter.read_gpu(training.runtime.device)
            _report_progress(training, meter, step, loss)
        if interrupted and not last:
            return False
    return True


def _lr_factor(training: Training, step: int) -> float:
    recipe, steps = training.recipe, training.data.steps
    warmup = warmup_steps(recipe.warmup_epochs, recipe.total_epochs, steps)
    total = recipe.total_epochs * steps
    return lr_factor(recipe.schedule, training.progress.epoch * steps + step, total, warmup, recipe.lrf)


def _train_step(training: Training, batch: Batch, step: int, lr: float) -> tuple[float, bool]:
    """One optimizer step on the global batch: its mean loss, and whether any rank is to stop.

    Each rank's loss is weighted by its share of the global batch and the gradients are summed, so uneven (also empty)
    shares give the gradient of the whole batch. Before the sum, one small all-reduce lets the ranks agree.
    """
    recipe, model, world, epoch = training.recipe, training.model, training.world, training.progress.epoch
    training.optimizer.zero_grad(set_to_none=True)
    total = 0.0
    for micro, part in enumerate(batch.split(len(batch))):
        torch.manual_seed(seed_of(recipe.seed, epoch, step, micro, world.rank))
        inputs = training.task.prepare(part, training.runtime.device, train=True)
        with _SingleSample(model, len(part)), training.autocast():
            loss = training.task.loss(model, inputs)["loss"]
        weighted = loss * (len(part) / batch.global_size)
        weighted.backward()
        total += float(weighted.detach())
    mean, interrupted = world.sum([total, float(training.runtime.interrupted())])
    if not math.isfinite(mean):
        names = [training.data.id_of(int(s)) for s in batch.samples] if not math.isfinite(total) else []
        affected = [name for part in world.gather(names) for name in part]
        raise FloatingPointError(
            f"the loss is {mean} at epoch {epoch + 1}, step {step + 1}; lower lr or check these samples: "
            + ", ".join(affected[:8])
            + (f" and {len(affected) - 8} more" if len(affected) > 8 else "")
        )
    world.sum_gradients(model)
    for group in training.optimizer.param_groups:
        group["lr"] = lr
    training.optimizer.step()
    return mean, interrupted > 0


@torch.no_grad()  # not inference_mode: its tensors, kept in a buffer, could not be trained on
def _validate(training: Training) -> tuple[Metrics, Metrics]:
    """The metrics over the whole validation set, the same on every rank, and the details for reports."""
    training.model.eval()
    metric = training.task.metrics()
    for batch in training.data.validation():
        inputs = training.task.prepare(batch, training.runtime.device, train=False)
        with training.autocast():
            output = training.task.predict(training.model, inputs)
        metric.update(output, inputs)
    metric.reduce(training.world)
    return metric.compute(), metric.details()


def _stop(training: Training) -> str:
    """Why to stop after the epoch just finished, or an empty text; the ranks agree."""
    progress, recipe = training.progress, training.recipe
    (interrupted,) = training.world.sum([float(training.runtime.interrupted())])
    if progress.epoch >= recipe.total_epochs:
        return "epochs"
    if interrupted:
        return "interruption"
    if recipe.patience and progress.epoch - progress.best_epoch >= recipe.patience:
        return "patience"
    return ""


def _report_progress(training: Training, meter: Meter, step: int, loss: float) -> None:
    training.runtime.report(
        {
            "epoch": training.progress.epoch + 1,
            "step": step + 1,
            "steps": training.data.steps,
            "loss": loss,
            "images_per_second": meter.images_per_second,
        },
        None,
    )


class _SingleSample:
    """Batch norms in eval mode while a micro-batch has one sample: its own variance would be undefined."""

    def __init__(self, model: nn.Module, samples: int) -> None:
        norms = nn.modules.batchnorm._BatchNorm
        self.norms = [m for m in model.modules() if isinstance(m, norms) and m.training] if samples == 1 else []

    def __enter__(self) -> None:
        for norm in self.norms:
            norm.eval()

    def __exit__(self, *error: Any) -> None:
        for norm in self.norms:
            norm.train()


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
