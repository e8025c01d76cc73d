"""What the ranks tell each other. With one rank every call is free."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

BUCKET_BYTES = 25 * 2**20

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """The group of ranks. Every method is collective: all ranks call it at the same point."""

    rank: int
    size: int
    device: torch.device

    def sum(self, values: Sequence[float]) -> list[float]:
        """Element-wise sums over the ranks (float64)."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        result: list[float] = tensor.tolist()
        return result

    def sum_(self, tensor: Tensor) -> None:
        """Sum a tensor over the ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)

    def gather(self, value: Any) -> list[Any]:
        """Each rank's object, in the order of the ranks."""
        if self.size == 1:
            return [value]
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, value)
        return gathered

    def gather_to_first(self, value: Any) -> list[Any] | None:
        """On rank 0 each rank's object, in the order of the ranks; None on the others. Waits without a time-out."""
        if self.size == 1:
            return [value]
        gathered: list[Any] | None = [None] * self.size if self.rank == 0 else None
        dist.gather_object(value, gathered, dst=0, group=_patient_group())
        return gathered

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` returns on rank 0, on every rank; the others wait for it without a time-out.

        Where it raises, every rank raises.
        """
        if self.size == 1:
            return make()
        made: list[Any] = [None, None]
        error: Exception | None = None
        if self.rank == 0:
            try:
                made[0] = make()
            except Exception as caught:
                error, made[1] = caught, f"{type(caught).__name__}: {caught}"
        dist.broadcast_object_list(made, src=0, group=_patient_group())
        if error is not None:
            raise error
        if made[1] is not None:
            raise RuntimeError(f"rank 0 failed: {made[1]}")
        result: T = made[0]
        return result

    def sum_gradients(self, model: nn.Module) -> None:
        """Sum the gradients over the ranks, in buckets in the order of the parameters.

        The buckets never change: with a process that rebuilds them, as stock DDP does after its first backward, a
        resumed run would add in another order and differ in the last bits. A rank without a share adds zeros.
        """
        if self.size == 1:
            return
        parameters = [p for p in model.parameters() if p.requires_grad]
        for bucket in _buckets(parameters):
            for p in bucket:
                if p.grad is None:
                    p.grad = torch.zeros_like(p)
            gradients = [p.grad for p in bucket if p.grad is not None]
            flat = torch.cat([g.reshape(-1) for g in gradients])
            dist.all_reduce(flat)
            parts = flat.split([g.numel() for g in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view(gradient.shape))

    def broadcast_(self, tensors: Iterable[Tensor]) -> None:
        """Copy rank 0's tensors into every rank's."""
        if self.size > 1:
            for tensor in tensors:
                value = tensor.detach().contiguous()
                dist.broadcast(value, src=0)
                tensor.detach().copy_(value)


def _buckets(parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Runs of parameters of one type with at most BUCKET_BYTES each (a larger parameter stands alone)."""
    buckets: list[list[nn.Parameter]] = []
    size = 0
    for p in parameters:
        same = bool(buckets) and buckets[-1][0].dtype == p.dtype
        if not same or size + p.nbytes > BUCKET_BYTES:
            buckets.append([])
            size = 0
        buckets[-1].append(p)
        size += p.nbytes
    return buckets


_patient: dict[int, dist.ProcessGroup] = {}


def _patient_group() -> dist.ProcessGroup:
    """A gloo group beside the default one, in which a rank may wait for days: rank 0 may evaluate for hours.

    A rank that dies still ends the wait, for its connections close.
    """
    default = dist.group.WORLD
    assert default is not None
    if id(default) not in _patient:
        _patient.clear()
        group = dist.new_group(backend="gloo", timeout=timedelta(days=30))
        assert isinstance(group, dist.ProcessGroup)
        _patient[id(default)] = group
    return _patient[id(default)]
