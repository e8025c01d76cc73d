"""How much memory a worker may use, how much it uses, and what running out of it looks like."""

from __future__ import annotations

import gc
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
import torch

from trainables.recipe import Recipe, parse_bytes

GPU_SHARE, HOST_SHARE = 0.9, 0.8
"""Share of a GPU, and of the host's free memory, that may be planned with."""
SAMPLE_SECONDS = 0.002
CGROUP = Path("/sys/fs/cgroup")


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error is that of a GPU without memory, its libraries included, or of the host's allocator."""
    told = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in told)


def release_memory() -> None:
    """Give back what nobody uses any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def memory_limit(recipe: Recipe, device: torch.device, local_ranks: int) -> int:
    """Bytes that a worker may plan with: ``memory``, else a share of the GPU, or of what is free on the host.

    The ranks of a host share its memory, which is also that of a container (cgroup) where this process is in one.
    """
    if recipe.memory is not None:
        return parse_bytes(recipe.memory)
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1] * GPU_SHARE)
    return int(_free_on_host() * HOST_SHARE / local_ranks)


def _free_on_host() -> int:
    free = int(psutil.virtual_memory().available)
    with suppress(OSError, ValueError):
        limit = int((CGROUP / "memory.max").read_text())  # "max" is a ValueError: no limit
        counts = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        cached = int(counts.get("inactive_file", 0))  # files that the kernel drops when memory is needed
        free = min(free, limit - int((CGROUP / "memory.current").read_text()) + cached)
    return max(free, 0)


class Peak:
    """The most memory that a block of code uses on a device, in bytes; on a CPU what the process grows by.

    A CPU has no counter: its memory is looked at every SAMPLE_SECONDS.
    """

    def __init__(self, device: torch.device, base: int = 0) -> None:
        """base: on a CPU, the size of the process that growth is counted from (`resident`)."""
        self.bytes = 0
        self._device, self._base = device, base
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)

    def __enter__(self) -> Self:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._device.type == "cuda":
            self.bytes = torch.cuda.max_memory_reserved(self._device)
            return
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        process = psutil.Process()
        while True:
            self.bytes = max(self.bytes, process.memory_info().rss - self._base)
            if self._done.wait(SAMPLE_SECONDS):
                return


def resident() -> int:
    """The memory of this process, in bytes."""
    return int(psutil.Process().memory_info().rss)
