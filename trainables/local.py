"""LocalRuntime: the loop in this process, without Ray. A laptop run, the unit tests' harness and the debugger."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from trainables.checkpoint import Writer
from trainables.contracts import Metrics, Reporter, State


class LocalRuntime:
    """One rank. Reports go to `on_report`; checkpoints to `folder`, or nowhere; `stop` interrupts at the next step."""

    rank = 0
    world_size = 1

    def __init__(
        self,
        folder: Path | None = None,
        on_report: Reporter | None = None,
        restore_from: Path | None = None,
        device: torch.device | None = None,
        stop: threading.Event | None = None,
    ) -> None:
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.stop = stop or threading.Event()
        self._writer = Writer(folder) if folder else None
        self._on_report = on_report
        self._restore_from = restore_from

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer:
            self._writer.close()

    def restore(self) -> Path | None:
        return self._restore_from

    def report(self, metrics: Metrics, state: State | None) -> None:
        if state is not None and self._writer:
            self._writer.put(state)
        if self._on_report:
            self._on_report(metrics, state)

    def interrupted(self) -> bool:
        return self.stop.is_set()
