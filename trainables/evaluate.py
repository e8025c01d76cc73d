"""A pass over the validation set: each sample once over all ranks, the metrics of all of them on every rank."""

from __future__ import annotations

import torch
from torch import nn

from trainables.collectives import World
from trainables.contracts import Batch, Data, Metric, Metrics, Task
from trainables.headroom import is_out_of_memory, release_memory
from trainables.precision import Precision


@torch.no_grad()  # not inference_mode: its tensors, kept in a buffer, could not be trained on
def evaluate(
    task: Task, model: nn.Module, data: Data, world: World, precision: Precision, micro: int | None = None
) -> tuple[Metrics, Metrics]:
    """The metrics over the whole validation set, the same on every rank, and the details for reports.

    micro: the most images that go through the model at once; None: as the batches come. Where memory runs out it is
    halved, on the rank alone: no rank waits for another before the end.
    """
    model.eval()
    metric = task.metrics()
    for batch in data.validation():
        size = min(micro or len(batch), len(batch))
        done = 0
        while done < len(batch):
            try:
                _take(task, model, _part(batch, done, size), world.device, precision, metric)
                done += size
                continue
            except RuntimeError as error:
                if not is_out_of_memory(error) or size == 1:
                    raise
            micro = size = -(-size // 2)
            release_memory()
    metric.reduce(world)
    return metric.compute(), metric.details()


def _take(
    task: Task, model: nn.Module, batch: Batch, device: torch.device, precision: Precision, metric: Metric
) -> None:
    inputs = precision.lay_out(task.prepare(batch, device, train=False))
    with precision.autocast():
        output = task.predict(model, inputs)
    metric.update(output, inputs)


def _part(batch: Batch, start: int, size: int) -> Batch:
    part = slice(start, start + size)
    truths = batch.truths and batch.truths[part]
    return Batch(batch.images[part], batch.labels[part], batch.samples[part], batch.global_size, None, truths)
