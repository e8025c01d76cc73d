"""The one training loop. It runs the same in process, in a Ray Train worker and in a trial."""

from __future__ import annotations

import math
from typing import Any

from trainables.contracts import Data, Metrics, Runtime, Task
from trainables.evaluate import evaluate
from trainables.meter import Meter
from trainables.progress import Progress
from trainables.recipe import Recipe
from trainables.schedules import Phase
from trainables.step import train_step
from trainables.training import Training, next_stage, start

__all__ = ["Progress", "evaluate", "fit"]

PROGRESS_STEPS = 10
"""Progress is reported at least every so many steps."""


def fit(recipe: Recipe, task: Task, data: Data, runtime: Runtime) -> Progress:
    """Train until the epochs or the time are over, the metric stays below its best for `patience` epochs, or the
    runtime says stop.

    Runs in every rank. Raises FloatingPointError, with step and sample ids, where the loss stays not finite, and
    torch.OutOfMemoryError where not even one image fits.
    """
    training = start(recipe, task, data, runtime)
    progress, world = training.progress, training.world
    progress.stopped_because = _why_stop(training) if progress.epoch else ""
    while not progress.stopped_because:
        meter = Meter()
        if because := _train_epoch(training, meter):
            progress.stopped_because = because
            runtime.report({"epoch": progress.epoch}, training.state())
            break
        progress.last_loss = progress.loss_sum / max(progress.counted, 1)
        row = {
            "epoch": progress.epoch + 1,
            "step": (progress.epoch + 1) * data.steps,
            "train_loss": progress.last_loss,
            "lr": training.optimizer.param_groups[0]["lr"],
            **meter.row(world),
        }
        world.broadcast_(training.model.buffers())
        if training.ema:
            training.ema.copy_buffers()
        progress.epoch, progress.samples, progress.counted, progress.loss_sum = progress.epoch + 1, 0, 0, 0.0
        because = _why_end(training)
        better, scores, details = _score(training, because in ("epochs", "time"))
        row |= scores | {"skipped_steps": len(progress.skipped), "seconds": meter.seconds}
        progress.remember(row)
        row |= {"details": details} if better else {}
        progress.stopped_because = because if because != "epochs" else _next_stage(training)
        progress.stopped_because = progress.stopped_because or _out_of_patience(training)
        runtime.report(row, training.state(better))
    return progress


def _train_epoch(training: Training, meter: Meter) -> str:
    """The rest of the current epoch. Why it was left early, or nothing; `progress` then says how far it came."""
    data, progress = training.data, training.progress
    first = progress.samples // training.recipe.batch
    every = max(1, min(data.steps // 100, PROGRESS_STEPS))
    training.model.train()
    for step, batch in enumerate(meter.batches(data.train(progress.epoch, first)), first):
        done = train_step(training, batch, step, training.lr * training.lr_factor(step))
        if math.isfinite(done.loss):
            progress.loss_sum += done.loss * batch.global_size
            progress.counted += batch.global_size
        progress.samples += batch.global_size
        last = step + 1 == data.steps
        if (step == first or (step + 1) % every == 0) and not last:
            meter.read_gpu(training.runtime.device)
            _report_progress(training, meter, step, done.loss)
        if (done.interrupted or done.time_over) and not last:
            return "interruption" if done.interrupted else "time"
    return ""


def _score(training: Training, is_last: bool) -> tuple[bool, Metrics, Metrics]:
    """Validate, where the epoch just finished is to be: whether it is the best, its metrics, and details."""
    recipe, task, progress = training.recipe, training.task, training.progress
    due = recipe.val_interval and (progress.epoch % recipe.val_interval == 0 or is_last)
    if not due:
        nothing: Metrics = dict.fromkeys(task.scores) if recipe.val_interval else {}
        if not recipe.val_interval:
            progress.best_epoch = progress.epoch  # without validation, the last is the best
        return not recipe.val_interval, nothing, {}
    scores, details = evaluate(
        task, training.scored, training.data, training.world, training.precision, training.most_at_once
    )
    progress.validated = progress.epoch
    value = scores[task.primary]
    if progress.has_improved(value, task.mode, recipe.min_delta):
        progress.improved, progress.improved_epoch, progress.improved_loss = value, progress.epoch, progress.last_loss
    better = progress.is_better(value, task.mode)
    if better:
        progress.best, progress.best_epoch = value, progress.epoch
    return better, scores, details


def _why_stop(training: Training) -> str:
    """Why to stop between two epochs, or nothing."""
    because = _why_end(training)
    return (because if because != "epochs" else _next_stage(training)) or _out_of_patience(training)


def _why_end(training: Training) -> str:
    """Why the epoch just finished is the last, whatever its metric is, or nothing; the ranks agree."""
    told = [float(training.runtime.interrupted()), float(training.time_is_over)]
    interrupted, over_time = training.world.sum(told)
    if training.progress.epoch >= training.last_epoch:
        return "epochs"
    if interrupted:
        return "interruption"
    return "time" if over_time else ""


def _stale(training: Training) -> int:
    """Epochs without a better metric; those of a new phase count anew."""
    progress = training.progress
    return progress.epoch - max(progress.improved_epoch, training.phases[-1].first)


def _overfits(progress: Progress) -> bool:
    """Whether the training loss has gone on falling since the metric was at its best."""
    then, now = progress.improved_loss, progress.last_loss
    return then is not None and now is not None and now < then


def _out_of_patience(training: Training) -> str:
    progress, patience = training.progress, training.recipe.patience
    if not patience or _stale(training) < patience or progress.validated < progress.epoch:
        return ""
    also = ""
    if _overfits(progress):
        fall = f"{progress.improved_loss:.4g} to {progress.last_loss:.4g}"
        also = f"; the training loss went on falling ({fall}): it overfits"
    since = f", since {progress.improved:.4g} at epoch {progress.improved_epoch}" if progress.improved else ""
    training.tell("patience", f"{training.task.primary} has not improved for {_stale(training)} epochs{since}{also}")
    return "patience"


def _next_stage(training: Training) -> str:
    """At the end of the epochs that are planned: with ``epochs: auto`` go on, where the metric still improves.

    It still improves where it has within the last tenth of the stage, or within `patience` if that is longer.
    """
    progress, recipe, phase = training.progress, training.recipe, training.phases[-1]
    following = next_stage(phase.last) if recipe.epochs == "auto" else None
    if following is None:
        return "epochs"
    window = max((phase.last - phase.first) // 10, recipe.patience, recipe.val_interval)
    stale = _stale(training)
    numbers: dict[str, Any] = {"best": progress.improved, "best_epoch": progress.improved_epoch, "stale": stale}
    numbers |= {"train_loss": progress.last_loss, "train_loss_at_best": progress.improved_loss, "window": window}
    since = f"{training.task.primary} was at its best {stale} epochs ago ({progress.improved}), limit {window}"
    if not progress.improved_epoch or stale >= window:
        overfits = ", and the training loss still fell: it overfits" if _overfits(progress) else ""
        training.tell("epochs", f"epochs: auto ends after {phase.last}: {since}{overfits}", decision="end", **numbers)
        return "epochs"
    progress.phases.append(list(Phase(phase.last, following, recipe.extend_lr)))
    training.tell(
        "epochs",
        f"epochs: auto goes on from {phase.last} to {following}: {since}; the learning rate: {recipe.extend_lr}",
        decision="extend",
        epochs=following,
        **numbers,
    )
    return ""


def _report_progress(training: Training, meter: Meter, step: int, loss: float) -> None:
    training.runtime.report(
        {
            "epoch": training.progress.epoch + 1,
            "step": step + 1,
            "steps": training.data.steps,
            "epochs": training.last_epoch,
            "loss": loss,
            "images_per_second": meter.images_per_second,
        },
        None,
    )
