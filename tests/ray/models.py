"""Models of a user's own that go wrong, or take their time."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from pathlib import Path

from torch import Tensor, nn

from tests.tiny import conv

PROCESSES = Path(tempfile.gettempdir()) / f"orchestrator-processes-{os.getuid()}"
MESSAGE = "these weights are not for you"


class OwnError(Exception):
    """Cannot be pickled as most errors can: it is not made from its message."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")


class Counting(nn.Module):
    """Counts its training steps; `after` is what becomes of the logits."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body = conv(num_classes)
        self.steps = 0

    def forward(self, images: Tensor) -> Tensor:
        trains = self.training and images.device.type != "meta"
        self.steps += trains
        return self.after(self.body(images), trains)

    def after(self, logits: Tensor, trains: bool) -> Tensor:
        return logits


class Raises(Counting):
    """Goes wrong in its second training step, with a mistake of the user's own."""

    def after(self, logits: Tensor, trains: bool) -> Tensor:
        if self.steps == 2:
            raise OwnError(*MESSAGE.split(" ", 1))
        return logits


class Slow(Counting):
    """Takes a twentieth of a second per training step."""

    def after(self, logits: Tensor, trains: bool) -> Tensor:
        if trains:
            time.sleep(0.05)
        return logits


class Explodes(Counting):
    """Gives NaN from its third training step on."""

    def after(self, logits: Tensor, trains: bool) -> Tensor:
        return logits * float("nan") if self.steps >= 3 else logits


class NotesItsProcess(Counting):
    """Leaves a file per training step, named after its process."""

    def after(self, logits: Tensor, trains: bool) -> Tensor:
        if trains:
            PROCESSES.mkdir(exist_ok=True)
            (PROCESSES / str(os.getpid())).touch()
        return logits


class DiesOnce(Counting):
    """Its process is killed in the ninth training step, the first time."""

    def after(self, logits: Tensor, trains: bool) -> Tensor:
        mark = PROCESSES / "dead"
        if trains and self.steps == 9 and not mark.exists():
            PROCESSES.mkdir(exist_ok=True)
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return logits
