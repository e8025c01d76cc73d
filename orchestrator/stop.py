"""How a run is asked to stop: Ctrl-C and SIGTERM set a flag that the loop reads at its next step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType


class Impatience(KeyboardInterrupt):
    """A second request to stop: leave at once, whatever is under way."""


@dataclass(frozen=True)
class Stop:
    """The request, and the signals that made it."""

    event: threading.Event = field(default_factory=threading.Event)
    signals: list[int] = field(default_factory=list)

    @property
    def reason(self) -> str:
        """What summary.json says: a user at the keyboard, or the machine that wants its place back."""
        return "interruption" if signal.SIGTERM in self.signals else "user"

    @property
    def urgent(self) -> bool:
        """Whether the request was made twice."""
        return len(self.signals) > 1

    def install(self) -> None:
        """Take the signals (again: `ray.init` replaces handlers). A second one ends the run at once.

        In a thread other than the main one signals stay as they are.
        """
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self._handle)

    def raise_if_asked(self) -> None:
        """Raises KeyboardInterrupt after a request: for what comes before the loop, where nothing is to be saved."""
        if self.event.is_set():
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signals.append(number)
        if self.urgent:
            raise Impatience
        self.event.set()


@contextmanager
def interruptible() -> Iterator[Stop]:
    """A Stop whose handlers are taken down at the end."""
    stop = Stop()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    stop.install()
    try:
        yield stop
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)
