"""What is imported decides how fast the commands answer, and keeps the training engine free of the machinery."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {"torch", "torchvision", "ray", "mlflow", "matplotlib", "sklearn", "pandas", "pyarrow", "cv2"}


def modules_after(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter has after a statement."""
    code = f"{statement}\nimport json, sys; print(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    return set(json.loads(out.splitlines()[-1]))


@pytest.mark.parametrize(
    "statement",
    [
        "import trainables",
        "import trainables.loop, trainables.local, trainables.memory, trainables.augment, trainables.tasks",
    ],
    ids=["package", "engine"],
)
def test_the_engine_knows_nothing_of_the_machinery(statement: str) -> None:
    assert not modules_after(statement) & {"ray", "mlflow", "orchestrator"}


@pytest.mark.parametrize("module", ["orchestrator", "orchestrator.cli", "orchestrator.config", "trainables.recipe"])
def test_the_command_line_is_light(module: str) -> None:
    assert not modules_after(f"import {module}") & HEAVY


def test_the_data_plane_needs_no_ray_to_read_a_cache() -> None:
    assert not modules_after("import orchestrator.data.loader, orchestrator.data.manifest") & {"ray", "mlflow"}
