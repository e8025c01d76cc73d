from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.ranks import run_ranks
from trainables import collectives
from trainables.collectives import World

ALONE = World(0, 1, torch.device("cpu"))


def model(gradients: float | None) -> nn.Module:
    """Three parameters of two types; the gradients of the first in another memory format."""
    made = nn.Sequential(nn.Conv2d(3, 2, 2), nn.Linear(2, 2, bias=False).double())
    for p in made.parameters():
        if gradients is not None:
            p.grad = torch.arange(p.numel(), dtype=p.dtype).reshape(p.shape) * gradients
            if p.ndim == 4:
                p.grad = p.grad.contiguous(memory_format=torch.channels_last)
    return made


def gradients_of(module: nn.Module) -> list[list[float]]:
    return [p.grad.flatten().tolist() for p in module.parameters() if p.grad is not None]


def talk(world: World) -> dict[str, Any]:
    """Everything that ranks can tell each other, once."""
    tensor = torch.full((2,), float(world.rank))
    world.sum_(tensor)
    mine = torch.full((2, 3, 2, 2), float(world.rank)).contiguous(memory_format=torch.channels_last)
    mine[0, 1] += 0.5
    count = torch.tensor(10 + world.rank)
    world.broadcast_([mine, count])
    uneven = model([1.0, None, 10.0][world.rank])
    world.sum_gradients(uneven)
    return {
        "sum": world.sum([1.0, 2.0**world.rank]),
        "sum_": tensor.tolist(),
        "gather": world.gather({"rank": world.rank}),
        "broadcast": [mine[0, :, 0, 0].tolist(), count.item()],
        "gradients": gradients_of(uneven),
    }


def test_ranks_tell_each_other(tmp_path: Path) -> None:
    ranks = run_ranks(3, talk, tmp_path)
    assert ranks[0] == {
        "sum": [3.0, 7.0],
        "sum_": [3.0, 3.0],
        "gather": [{"rank": 0}, {"rank": 1}, {"rank": 2}],
        "broadcast": [[0.0, 0.5, 0.0], 10],
        "gradients": gradients_of(model(11.0)),
    }
    assert ranks[1] == ranks[2] == ranks[0]


def test_one_rank_needs_no_group() -> None:
    tensor, alone = torch.ones(2), model(None)
    ALONE.sum_(tensor)
    ALONE.broadcast_([tensor])
    ALONE.sum_gradients(alone)
    assert tensor.tolist() == [1.0, 1.0]
    assert gradients_of(alone) == []
    assert (ALONE.sum([1.5]), ALONE.gather("x")) == ([1.5], ["x"])


@pytest.mark.parametrize("limit", [1, 200, 10_000])
def test_buckets_keep_the_order_one_type_and_the_limit(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(collectives, "BUCKET_BYTES", limit)
    kinds = [torch.float32, torch.float32, torch.float64, torch.float32, torch.float32, torch.float32]
    parameters = [nn.Parameter(torch.zeros(10 * (i + 1), dtype=kind)) for i, kind in enumerate(kinds)]
    buckets = collectives._buckets(parameters)
    assert [id(p) for bucket in buckets for p in bucket] == [id(p) for p in parameters]
    for bucket in buckets:
        assert len({p.dtype for p in bucket}) == 1
        assert len(bucket) == 1 or sum(p.nbytes for p in bucket) <= limit
    assert len(buckets) == {1: 6, 200: 5, 10_000: 3}[limit]
