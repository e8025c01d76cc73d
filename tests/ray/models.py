"""Models of a user's own that go wrong, or take their time."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from tests.tiny import conv

MESSAGE = "these weights are not for you"


class OwnError(Exception):
    """Cannot be pickled as most errors can: it is not made from its message."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")


class Raises(nn.Module):
    """Goes wrong in its second training step, with a mistake of the user's own."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body = conv(num_classes)
        self.steps = 0

    def forward(self, images: Tensor) -> Tensor:
        self.steps += self.training and images.device.type != "meta"
        if self.steps == 2:
            raise OwnError(*MESSAGE.split(" ", 1))
        logits: Tensor = self.body(images)
        return logits


class Slow(nn.Module):
    """Takes a twentieth of a second per training step."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body = conv(num_classes)

    def forward(self, images: Tensor) -> Tensor:
        if self.training and images.device.type != "meta":
            time.sleep(0.05)
        logits: Tensor = self.body(images)
        return logits


class Threads(nn.Module):
    """Says in how many threads torch runs here, the only way in which a model can: it fails."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body = conv(num_classes)

    def forward(self, images: Tensor) -> Tensor:
        if images.device.type != "meta":
            raise RuntimeError(f"torch has {torch.get_num_threads()} threads")
        logits: Tensor = self.body(images)
        return logits
