"""Batch norms: in eval mode for single images, and with the statistics of all ranks, on any device.

torch.nn.SyncBatchNorm hangs where one rank runs out of memory between two of its collectives, or has no samples at
all. Here each rank knows the sequence of collectives that one micro-batch takes, and a rank that cannot go on
contributes zeros to the rest of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@contextmanager
def norms_in_eval(model: nn.Module, when: bool) -> Iterator[None]:
    """Batch norms in eval mode, when a micro-batch has one image: its own variance would be undefined."""
    norms: list[nn.Module] = []
    if when:
        kinds = nn.modules.batchnorm._BatchNorm
        norms = [m for m in model.modules() if isinstance(m, kinds) and m.training]
    for norm in norms:
        norm.eval()
    try:
        yield
    finally:
        for norm in norms:
            norm.train()


class Sequence:
    """The collectives of one micro-batch, forward and backward: recorded once, then counted."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.steps: list[tuple[int, SyncedBatchNorm | None]] = []
        """Numbers that are summed; and in forward, the norm that they are the statistics of."""
        self.recording = False
        self._done = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Sequence:
        return self

    def sum_(self, values: Tensor, norm: SyncedBatchNorm | None = None) -> None:
        """Sum over the ranks, in place; while recording, only take note."""
        if self.recording:
            self.steps.append((values.numel(), norm))
            return
        self._done += 1
        dist.all_reduce(values)

    def finish(self) -> None:
        """End a micro-batch: whatever of the sequence this rank did not come to, it joins with zeros."""
        for size, norm in self.steps[self._done :]:
            values = torch.zeros(size, dtype=torch.float64, device=self.device)
            dist.all_reduce(values)
            if norm is not None:
                norm.follow(values)
        self._done = 0


class _Sum(torch.autograd.Function):
    """Sum the statistics of a norm over the ranks; so is their gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, norm: SyncedBatchNorm) -> Tensor:
        ctx.sequence = norm.sequence
        total = values.clone()
        norm.sequence.sum_(total, norm)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.contiguous().clone()
        ctx.sequence.sum_(gradient)
        return gradient, None


class SyncedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """A batch norm over the samples of all ranks. Made by `synchronise` out of a plain one, in place."""

    sequence: Sequence

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            plain: Tensor = super().forward(input)
            return plain
        axes = [0, *range(2, input.ndim)]
        shape = [1, -1] + [1] * (input.ndim - 2)
        x = input.float()
        count = x.numel() // x.shape[1]
        if count:
            mean = x.mean(axes).double()
            square = x.var(axes, unbiased=False).double() + mean * mean
        else:  # as a mask head without a proposal
            mean = square = x.sum(axes).double()
        # sums of each rank's means and squares: their difference is taken in float64, where it loses nothing
        total = _Sum.apply(torch.cat([count * mean, count * square, mean.new_tensor([float(count)])]), self)
        self.follow(total.detach())
        mean, variance, _ = _moments(total)
        scale = torch.rsqrt(variance + self.eps)
        weight = self.weight.double() if self.weight is not None else torch.ones_like(scale)
        bias = self.bias.double() if self.bias is not None else torch.zeros_like(scale)
        factor = (weight * scale).float().view(shape)
        shift = (bias - mean * weight * scale).float().view(shape)
        out: Tensor = (x * factor + shift).to(input.dtype)
        return out

    @torch.no_grad()
    def follow(self, total: Tensor) -> None:
        """Move the running statistics, as torch's batch norm does (with the unbiased variance)."""
        if self.running_mean is None or self.running_var is None or self.sequence.recording or not total[-1]:
            return
        assert self.num_batches_tracked is not None
        mean, variance, samples = _moments(total)
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        unbiased = variance * (samples / (samples - 1).clamp(min=1))
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)


def _moments(total: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance per channel, and the number of samples, from the sums of means, squares and counts."""
    channels = len(total) // 2
    samples = total[-1].detach().clamp(min=1)
    mean = total[:channels] / samples
    return mean, (total[channels:-1] / samples - mean * mean).clamp(min=0), samples


def norms_of(model: nn.Module) -> list[nn.Module]:
    """The batch norms that take their statistics from the batch: those that are not frozen.

    Only torch's own: a class that builds on them (timm's have an activation inside) does more than to normalise.
    """
    model.train()
    return [m for m in model.modules() if type(m) in NORMS and m.training]


def synchronise(model: nn.Module, device: torch.device) -> Sequence:
    """Turn the model's batch norms into synchronised ones, in place: names and tensors stay.

    The sequence must be recorded before the first step.
    """
    sequence = Sequence(device)
    for norm in norms_of(model):
        norm.__class__ = SyncedBatchNorm
        norm.sequence = sequence  # type: ignore[assignment]
    return sequence
