"""Several ranks on this machine, without Ray: processes that talk through gloo."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

from trainables.collectives import World

Body = Callable[..., Any]
"""Runs in each rank with its World and further arguments; returns JSON values."""

_IMPORTED_ONCE = [__name__, "pytest", "torch._dynamo", "trainables.tasks.classify", "torchmetrics.detection"]
"""By the server that the ranks are forked from: starting three takes 0.2 s then, and 5 s otherwise."""


def run_ranks(size: int, body: Body, folder: Path, *args: Any) -> list[Any]:
    """What `body(world, *args)` returns in each rank. `folder` must be empty; an exception of a rank is raised here."""
    multiprocessing.set_forkserver_preload(_IMPORTED_ONCE)
    start_processes(_rank, (size, body, folder, args), size, start_method="forkserver")
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]


def _rank(rank: int, size: int, body: Body, folder: Path, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", store, timedelta(seconds=60), world_size=size, rank=rank)
    try:
        result = body(World(rank, size, torch.device("cpu")), *args)
        (folder / f"{rank}.json").write_text(json.dumps(result))
        dist.barrier()
    finally:
        dist.destroy_process_group()
