"""Models of the GPU's tests, named in recipes as ``tests.gpu.models:NAME``."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def wide(num_classes: int) -> nn.Module:
    """Few weights, large activations, and no batch norm: the same function for every split of a batch."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, padding=1), nn.ReLU()]
    for _ in range(3):
        layers += [nn.Conv2d(64, 64, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_classes))


class Loud(nn.Module):
    """Gradients that are too large for float16 unless the loss is scaled down: the scaler must give way first."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 64), nn.ReLU(), nn.Linear(64, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.body(images * 30)
        return logits if logits.dtype == torch.float32 else logits * 1.0


def norm_dropout(num_classes: int) -> nn.Module:
    """With everything that has a state or draws random numbers, and a deterministic backward on a GPU."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(8, num_classes),
    )
