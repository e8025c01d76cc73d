"""One optimizer step on a global batch, and what happens when it does not fit or is not finite.

All micro-batches go forward and backward first; then one small all-reduce lets the ranks agree; only then are the
gradients summed. So no rank ever waits for one that has given up, and all of them act alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from trainables.contracts import Batch
from trainables.headroom import is_out_of_memory, release_memory
from trainables.norms import norms_in_eval
from trainables.order import seed_of
from trainables.precision import loss_of, total_norm
from trainables.training import Training

MOST_SKIPPED = 3
"""Steps that may be left out because they are not finite; one more ends the run."""
MOST_OVERFLOWS = 20
"""Steps in a row that float16 may not hold: its scale halves with each, so that it is not the scale any more."""


@dataclass(frozen=True)
class Step:
    """What a step came to: the mean loss over the global batch (NaN where it was skipped)."""

    loss: float
    interrupted: bool
    time_over: bool


def train_step(training: Training, batch: Batch, step: int, lr: float) -> Step:
    """One optimizer step on the global batch, of which `batch` is this rank's share (perhaps empty).

    Where a rank runs out of memory, the micro-batch is halved for all and the step repeated. Where the loss or the
    gradient is not finite, the step is repeated in float32; if that does not help, its samples are skipped.
    Raises torch.OutOfMemoryError where one image is too much, FloatingPointError after MOST_SKIPPED steps.
    """
    mixed = True
    while True:
        training.share_buffers(batch.global_size)
        training.keep_buffers()
        total, exhausted = _backward(training, batch, step, mixed)
        told = [total, exhausted, training.runtime.interrupted(), training.time_is_over]
        loss, exhausted_ranks, interrupted, over = training.world.sum([float(value) for value in told])
        outcome = Step(loss, interrupted > 0, over > 0)
        if exhausted_ranks:
            _give_way(training)
            continue
        if math.isfinite(loss):
            training.world.sum_gradients(training.model)
            if _update(training, lr, mixed):
                return outcome
        _discard(training)
        if training.scaler and mixed and math.isfinite(loss) and training.overflows < MOST_OVERFLOWS:
            return outcome  # the scale was too large for these gradients, and has been halved
        if not mixed:
            _skip(training, batch, step, loss, math.isfinite(total))
            return Step(math.nan, outcome.interrupted, outcome.time_over)
        mixed = False


def _backward(training: Training, batch: Batch, step: int, mixed: bool) -> tuple[float, bool]:
    """Forward and backward of this rank's micro-batches: the weighted sum of their losses, and whether memory ran out.

    Each loss is weighted by its share of the global batch, and the gradients are summed over the ranks, so uneven
    (also empty) shares give the gradient of the whole batch.
    """
    recipe, world, sequence, device = training.recipe, training.world, training.sequence, training.runtime.device
    training.optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=device)
    parts = list(batch.split(training.micro))
    # with synchronised batch norms, every rank takes part in as many rounds as the rank with the largest share
    rounds = -(-_largest_share(batch, world.size) // training.micro) if sequence else len(parts)
    exhausted = False
    for micro in range(rounds):
        if micro < len(parts) and not exhausted:
            torch.manual_seed(seed_of(recipe.seed, training.progress.epoch, step, micro, world.rank))
            try:
                total += _one(training, parts[micro], mixed)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                exhausted = True
        if sequence:
            sequence.finish()
    return (math.nan if exhausted else float(total)), exhausted


def _one(training: Training, part: Batch, mixed: bool) -> torch.Tensor:
    """Forward and backward of one micro-batch: its weighted loss."""
    alone = len(part) == 1 and training.sequence is None
    with norms_in_eval(training.model, alone):
        loss = loss_of(training.task, training.compiled, part, training.precision, mixed)
    weighted = loss * (len(part) / part.global_size)
    (training.scaler.scale(weighted) if training.scaler and mixed else weighted).backward()
    return weighted.detach()


def _largest_share(batch: Batch, ranks: int) -> int:
    return -(-batch.global_size // ranks)


def _update(training: Training, lr: float, mixed: bool) -> bool:
    """Clip, step and follow with the moving average, unless a gradient is not finite. The same on every rank."""
    recipe, optimizer, scaler = training.recipe, training.optimizer, training.scaler if mixed else None
    if scaler:
        scaler.unscale_(optimizer)
    gradients = [p.grad for p in training.model.parameters() if p.grad is not None]
    norm = float(total_norm(gradients))
    if not math.isfinite(norm):
        training.overflows += 1
        if scaler:
            scaler.update()
        return False
    if recipe.clip_grad and norm > recipe.clip_grad:
        torch._foreach_mul_(gradients, recipe.clip_grad / norm)
    for group in optimizer.param_groups:
        group["lr"] = lr
    if scaler:
        scaler.step(optimizer)
        scaler.update()
    else:
        optimizer.step()
    training.overflows = 0
    training.progress.updates += 1
    if training.ema:
        training.ema.update(training.progress.updates)
    return True


def _discard(training: Training) -> None:
    """Back to the last good state: the weights have not moved, the running statistics go back."""
    training.optimizer.zero_grad(set_to_none=True)
    training.restore_buffers()


def _give_way(training: Training) -> None:
    """Halve the micro-batch, on all ranks alike."""
    _discard(training)
    release_memory()
    largest = training.micro
    if largest <= 1:
        raise torch.OutOfMemoryError(
            f"one image of {training.data.info.largest or training.data.info.imgsz} pixels is more than the memory of "
            "a worker holds: lower imgsz, or take a smaller model"
        )
    training.progress.micro = -(-largest // 2)
    training.tell(
        "memory",
        f"out of memory: a worker takes {training.micro} images at a time now, no longer {largest}; the batch stays "
        f"{training.recipe.batch}",
        micro=training.micro,
    )


def _skip(training: Training, batch: Batch, step: int, loss: float, mine_is_finite: bool) -> None:
    """Leave the step out and record its samples, or end the run."""
    progress, data = training.progress, training.data
    # where the loss is finite it is the gradient of all of them that is not
    blamed = math.isfinite(loss) or not mine_is_finite
    names = [data.id_of(int(sample)) for sample in batch.samples] if blamed else []
    affected = [name for part in training.world.gather(names) for name in part]
    what = f"the loss is {loss}" if not math.isfinite(loss) else "the gradient is not finite"
    shown = ", ".join(affected[:8]) + (f" and {len(affected) - 8} more" if len(affected) > 8 else "")
    where = f"{what} at epoch {progress.epoch + 1}, step {step + 1}, also in float32"
    if len(progress.skipped) >= MOST_SKIPPED:
        raise FloatingPointError(
            f"{where}; {MOST_SKIPPED} steps were skipped already: "
            f"lower lr, set clip_grad, or check these samples: {shown}"
        )
    progress.skipped.append({"epoch": progress.epoch + 1, "step": step + 1, "samples": affected})
    training.tell(
        "not finite", f"{where}: skipped, with its samples {shown}", step=step + 1, samples=affected, skipped=True
    )
