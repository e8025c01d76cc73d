"""Ray's TorchTrainer without the two helper processes that a run of ours has no use for."""

from __future__ import annotations

from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

UNUSED = (DatasetsCallback, PlacementGroupCleanerCallback)
"""Each starts a process, seconds before the first step.

The manager of Ray datasets would manage none: the workers map the cache. The cleaner asks whether the controller lives,
and takes the answer of any other Ray on the machine for its own: a second run there ended the first (Ray 2.60).
"""


class Trainer(TorchTrainer):
    """A TorchTrainer whose driver is the only one that cleans up: the group ends with the driver's job."""

    def _create_default_callbacks(self) -> list[Any]:
        defaults = super()._create_default_callbacks()  # type: ignore[misc]  # typed as Ray Train's first version
        return [callback for callback in defaults if not isinstance(callback, UNUSED)]
