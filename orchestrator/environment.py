"""environment.json: what a run was made with, so that it can be made again."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib.metadata import version
from typing import Any

import torch

from orchestrator.launch import cpu_count

PACKAGES = ("orchestrator", "torch", "torchvision", "ray", "mlflow", "numpy", "pyarrow", "opencv-python-headless")
DIFF_BYTES = 2**20


def environment() -> dict[str, Any]:
    """Versions, devices, and the git commit and uncommitted changes of the current folder (null outside git)."""
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    diff = _git("diff", "HEAD")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: version(name) for name in PACKAGES},
        "command": sys.argv,
        "cpus": cpu_count(),
        "gpus": devices,
        "git": {"commit": _git("rev-parse", "HEAD"), "diff": diff[:DIFF_BYTES] if diff else diff},
    }


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, errors="replace")
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
