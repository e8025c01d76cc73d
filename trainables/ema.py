"""An exponential moving average of the weights: what is validated and saved beside them."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from trainables import checkpoint


class Ema:
    """A second model that follows the first: shadow = d x shadow + (1 - d) x weights after each optimizer step.

    The decay d rises to its value as (1 + n) / (10 + n) in step n (as TensorFlow's ExponentialMovingAverage does), so
    that a short training is not held back by its random start.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._follows = [
            (mine, theirs.detach())
            for mine, theirs in zip(self.model.parameters(), model.parameters(), strict=True)
            if theirs.is_floating_point() and theirs.requires_grad
        ]
        self._buffers = list(zip(self.model.buffers(), model.buffers(), strict=True))

    @torch.no_grad()
    def update(self, updates: int) -> None:
        """Follow the weights; `updates`: optimizer steps up to now, this one included."""
        decay = min(self.decay, (1 + updates) / (10 + updates))
        if self._follows:
            mine, theirs = zip(*self._follows, strict=True)
            torch._foreach_lerp_(list(mine), list(theirs), 1 - decay)

    @torch.no_grad()
    def copy_buffers(self) -> None:
        """Take over the buffers (running statistics), which are averages already."""
        for mine, theirs in self._buffers:
            mine.copy_(theirs)

    def tensors(self) -> dict[str, Tensor]:
        return self.model.state_dict()

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Raises DamagedCheckpoint where they are another model's."""
        checkpoint.load_model(self.model, tensors)
