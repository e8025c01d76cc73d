"""What needs a CUDA GPU: `make test-gpu`. Without one everything here is skipped."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def gpu() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    return torch.device("cuda")


@pytest.fixture
def small_gpu(gpu: torch.device) -> Iterator[int]:
    """A GPU of which this process may use about a gigabyte more than it does: the bytes."""
    torch.cuda.empty_cache()
    room = 2**30
    total = torch.cuda.get_device_properties(gpu).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(gpu) + room) / total, gpu)
    try:
        yield room
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, gpu)
        torch.cuda.empty_cache()


@pytest.fixture
def deterministic() -> Iterator[None]:
    """What `deterministic: true` switched on is switched off again."""
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False
