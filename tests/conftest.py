"""Fixtures for all tests. Nothing heavy is imported here: a test that needs torch imports it itself."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def _data_folder() -> Path:
    return Path(os.environ.get("ORCHESTRATOR_TEST_DATA", ROOT.parent / "shared" / "data")).absolute()


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """The models are tiny and the machine is shared: threads that wait for each other cost forty times the work."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real data sets, which is not part of the repository."""
    return _existing(_data_folder())


@pytest.fixture(scope="session")
def test_weights() -> Path:
    """The folder of real pretrained weights, beside the data sets."""
    return _existing(_data_folder().parent / "weights")


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        pytest.skip(f"needs {folder} (set ORCHESTRATOR_TEST_DATA)")
    return folder
