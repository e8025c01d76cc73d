"""How workers and driver talk: reports go one way through a mailbox, the request to stop the other."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

from trainables.contracts import Metrics

PULSE_SECONDS = 0.25
"""How often a worker's courier talks to the mailbox; also how late a stop request arrives."""


@dataclass(frozen=True)
class Message:
    """From rank 0 to the driver: a report of the loop, or (`outcome`) what `fit` returned."""

    metrics: Metrics
    has_state: bool
    outcome: bool = False


class Mailbox:
    """A tiny actor on the driver's node: reports go one way, the request to stop the other."""

    def __init__(self) -> None:
        self._messages: list[Message] = []
        self._stop = False

    def push(self, messages: list[Message]) -> bool:
        """Take a worker's messages; tells whether to stop."""
        self._messages += messages
        return self._stop

    def take(self) -> list[Message]:
        """Hand everything that has come to the driver."""
        messages, self._messages = self._messages, []
        return messages

    def stop(self) -> None:
        self._stop = True


class Courier:
    """A thread beside the loop that carries messages to the mailbox, so that the loop never waits for the network."""

    def __init__(self, mailbox: Any, stop: threading.Event) -> None:
        self._mailbox, self._stop = mailbox, stop
        self._waiting: list[Message] = []
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="courier", daemon=True)
        self._thread.start()

    def send(self, message: Message) -> None:
        with self._lock:
            self._waiting.append(message)
        self._wake.set()

    def close(self) -> None:
        """Deliver what is waiting, then end."""
        self._closed = True
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed:
            self._wake.wait(PULSE_SECONDS)
            self._wake.clear()
            self._deliver()
        self._deliver()

    def _deliver(self) -> None:
        with self._lock:
            messages, self._waiting = self._waiting, []
        import ray

        if ray.get(self._mailbox.push.remote(messages)):
            self._stop.set()


def start_mailbox() -> Any:
    """The mailbox actor, on the driver's node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    node = ray.get_runtime_context().get_node_id()
    pinned: Any = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=pinned)(Mailbox).remote()
