"""`profile: true`: what a few training steps spend their time on.

LOGS/profile.json   a trace for chrome://tracing or ui.perfetto.dev
LOGS/profile.txt    a table of the operators that take most time
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, record_function

from orchestrator.data.wrapped import WrappedData
from orchestrator.drafts import replacing
from trainables.contracts import Batch, Data

WAIT, WARM_UP, ACTIVE = 3, 2, 4
"""Steps that are let pass, that only warm the profiler up, and that are recorded."""
TRACE, TABLE = "profile.json", "profile.txt"
ROWS = 40
"""Operators in the table."""


class ProfiledData(WrappedData):
    """Data whose consumer is profiled over some steps of the first epoch: from one batch to the next is a step."""

    def __init__(self, data: Data, folder: Path) -> None:
        super().__init__(data)
        self._folder = folder
        self._begun = False

    def train(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        batches = self.data.train(epoch, first_step)
        if self._begun:
            return batches
        self._begun = True
        return self._profiled(iter(batches), self.steps - first_step)

    def _profiled(self, batches: Iterator[Batch], steps: int) -> Iterator[Batch]:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it writes its own notes to stderr
        wait, warm_up, active = _schedule(steps)
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Profiler won't be using warmup")
            schedule = torch.profiler.schedule(wait=wait, warmup=warm_up, active=active, repeat=1)
        profiler = torch.profiler.profile(
            activities=activities,
            schedule=schedule,
            on_trace_ready=self._write,
            record_shapes=True,
        )
        profiler.start()
        try:
            for _ in range(wait + warm_up + active):
                with record_function("next batch"):
                    batch = next(batches, None)
                if batch is None:
                    return
                yield batch
                profiler.step()
        finally:
            profiler.stop()
        yield from batches

    def _write(self, profiler: torch.profiler.profile) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        by = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = profiler.key_averages().table(sort_by=by, row_limit=ROWS, max_name_column_width=60)
        with replacing(self._folder / TABLE) as draft:
            draft.write_text(table, encoding="utf-8")
        with replacing(self._folder / TRACE) as draft:
            profiler.export_chrome_trace(str(draft))


def _schedule(steps: int) -> tuple[int, int, int]:
    """How many steps to let pass, to warm up with and to record, where there may be few."""
    active = min(ACTIVE, max(steps - 1, 1))
    warm_up = min(WARM_UP, max(steps - active, 0))
    return min(WAIT, max(steps - active - warm_up, 0)), warm_up, active


def profiled(data: Data, folder: Path) -> Data:
    """The data, with the first steps of its consumer profiled into files in `folder`. For rank 0."""
    return ProfiledData(data, folder)
