from __future__ import annotations

import sys

import pytest


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """The models are tiny and the machine is shared: threads that wait for each other cost forty times the work."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
