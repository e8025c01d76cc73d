"""The promise about data on a GPU, at a size that a test can take."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.gpu_step import measure


def test_the_data_keep_up_with_the_gpu(gpu: torch.device, tmp_path: Path) -> None:
    found = measure("resnet50", 224, batch=128, steps=40, rounds=3, folder=tmp_path)
    assert found.ratio >= 0.97
    assert found.wait < 0.01
    assert found.memory > 2**30
