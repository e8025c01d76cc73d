"""Ray Data as we use it: a function over tables, in their order, without a word on the screen."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa


def map_tables(task: Callable[[pa.Table], pa.Table], tables: Sequence[pa.Table], **resources: Any) -> Any:
    """The lazy Ray Data set of the task's results, in the order of the tables; `resources` are those of one task."""
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.getLogger("ray").getEffectiveLevel())
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    # from_arrow would ask for a CPU to look at the tables, which the workers may hold all
    return ray.data.from_blocks(list(tables)).map_batches(task, batch_size=None, batch_format="pyarrow", **resources)
