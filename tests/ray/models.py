"""Models of a user's own that go wrong, or take their time."""

from __future__ import annotations

import time

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


class Explodes(nn.Module):
    """Gives NaN from its third training step on."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body = conv(num_classes)
        self.steps = 0

    def forward(self, images: Tensor) -> Tensor:
        self.steps += self.training and images.device.type != "meta"
        logits: Tensor = self.body(images)
        return logits * float("nan") if self.steps >= 3 else logits
