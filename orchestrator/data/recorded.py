"""A record of what a rank really received."""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

from orchestrator.data.wrapped import WrappedData
from trainables.contracts import Batch, Data


class RecordedData(WrappedData):
    """Data that writes the ids and pixel hashes of every batch it hands out: what this rank really received."""

    def __init__(self, data: Data, path: Path) -> None:
        super().__init__(data)
        self._path = path

    def train(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        for step, batch in enumerate(self.data.train(epoch, first_step), first_step):
            self._record({"epoch": epoch, "step": step}, batch)
            yield batch

    def validation(self) -> Iterator[Batch]:
        for batch in self.data.validation():
            self._record({"validation": True}, batch)
            yield batch

    def _record(self, place: dict[str, Any], batch: Batch) -> None:
        names = [self.id_of(int(sample)) for sample in batch.samples]
        pixels = [
            blake2b(image.numpy().tobytes(), digest_size=8).hexdigest() for image in batch.images.permute(0, 2, 3, 1)
        ]
        with self._path.open("a") as file:
            file.write(json.dumps(place | {"samples": names, "pixels": pixels}) + "\n")


def record(data: Data, run_folder: Path, rank: int) -> Data:
    """The data with every batch recorded under the run folder's logs."""
    return RecordedData(data, run_folder / "logs" / f"samples-{rank}.jsonl")
