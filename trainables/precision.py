"""Mixed precision and memory format: what a device does, and the scaler that fp16 needs."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from trainables.contracts import Batch, Task
from trainables.recipe import Recipe

NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


@dataclass(frozen=True)
class Precision:
    """In which type the model computes; its weights stay float32."""

    dtype: torch.dtype
    device: torch.device
    memory_format: torch.memory_format = torch.channels_last
    """Of images and weights."""

    def __str__(self) -> str:
        return NAMES[self.dtype]

    def autocast(self, enabled: bool = True) -> torch.autocast:
        """The context of every forward pass; not `enabled`: that of a step repeated in float32."""
        mixed = enabled and self.dtype != torch.float32
        return torch.autocast(self.device.type, dtype=self.dtype if mixed else torch.bfloat16, enabled=mixed)

    def lay_out(self, batch: Batch) -> Batch:
        """The batch with its images (n, 3, H, W) in the memory format."""
        return replace(batch, images=batch.images.contiguous(memory_format=self.memory_format))

    def scaler(self) -> torch.amp.GradScaler | None:
        """float16 alone needs its loss scaled: small gradients would be rounded to zero."""
        return torch.amp.GradScaler(self.device.type) if self.dtype == torch.float16 else None


def loss_of(task: Task, model: nn.Module, batch: Batch, precision: Precision, mixed: bool = True) -> Tensor:
    """The loss of one micro-batch, a scalar, as every training step takes it: on the device, laid out, in precision."""
    inputs = precision.lay_out(task.prepare(batch, precision.device, train=True))
    with precision.autocast(mixed):
        return task.loss(model, inputs)["loss"]


def choose_precision(recipe: Recipe, device: torch.device) -> Precision:
    """What `amp` stands for on a device where nothing is measured.

    On a GPU auto and true are bfloat16 where it has that, else float16. On a CPU auto is float32, true is bfloat16.
    `channels_last: auto` is NHWC, but not in float32 on a GPU.
    """
    cuda = device.type == "cuda"
    if recipe.amp in ("bf16", "fp16"):
        dtype = torch.bfloat16 if recipe.amp == "bf16" else torch.float16
    elif cuda and recipe.amp:
        dtype = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    else:
        dtype = torch.bfloat16 if recipe.amp is True else torch.float32
    plain_gpu = cuda and dtype == torch.float32
    last = recipe.channels_last is True or (recipe.channels_last == "auto" and not plain_gpu)
    return Precision(dtype, device, torch.channels_last if last else torch.contiguous_format)


def set_deterministic(on: bool, search: bool = False) -> None:
    """Use only deterministic kernels in this process, and choose the same ones each time.

    search: otherwise, let cuDNN try which kernel is the fastest for each shape.
    A kernel without a deterministic form raises RuntimeError, which names it. Before the first use of the GPU.
    """
    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(on)
    torch.backends.cudnn.deterministic = on
    torch.backends.cudnn.benchmark = search and not on


def scaler_state(scaler: torch.amp.GradScaler | None) -> dict[str, Any]:
    """As JSON values."""
    return dict(scaler.state_dict()) if scaler else {}


def total_norm(gradients: list[Tensor]) -> Tensor:
    """The 2-norm over all gradients, a scalar on their device; it is not finite where any of them is not."""
    return torch.nn.utils.get_total_norm(gradients, foreach=True) if gradients else torch.zeros(())
