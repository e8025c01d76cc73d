"""Shells for the commands of the tests, with one cache and one home folder for the session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.e2e.shell import Shell

NOT_THE_USERS = ("RAY_", "MLFLOW_", "ORCHESTRATOR_", "PYTEST_", "XDG_", "PYTHON", "FORCE_COLOR", "CI", "COLUMNS")
"""Prefixes of variables that would make the commands of a test depend on who runs it."""


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """As on a user's new machine: an empty home folder, no cluster and no server."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(NOT_THE_USERS)}
    home = tmp_path_factory.mktemp("home")
    return kept | {"HOME": str(home), "ORCHESTRATOR_CACHE": str(tmp_path_factory.mktemp("cache"))}


@pytest.fixture
def shell(tmp_path: Path, environment: dict[str, str]) -> Iterator[Shell]:
    """For one test."""
    with closing(Shell(tmp_path, environment)) as shell:
        yield shell


@pytest.fixture(scope="module")
def module_shell(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Iterator[Shell]:
    """For all tests of a file."""
    with closing(Shell(tmp_path_factory.mktemp("shell"), environment)) as shell:
        yield shell


@pytest.fixture(scope="session")
def digits_cache(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Path:
    """The session's cache folder, with the digits at imgsz 32 in it."""
    with closing(Shell(tmp_path_factory.mktemp("first"), environment)) as shell:
        done = shell.run("train", shell.config(epochs=1))
    assert done.code == 0, done.err
    return Path(environment["ORCHESTRATOR_CACHE"])
