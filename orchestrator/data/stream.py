"""Images without a cache: decoded by Ray Data on all CPUs of the cluster while the training runs, in its order."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from orchestrator.data import get_format
from orchestrator.data.cache import Cache, Stored
from orchestrator.data.images import Image, load_stored
from orchestrator.data.pipeline import map_tables
from trainables.order import Positions

ROWS_PER_BLOCK, BLOCK_BYTES = 32, 16 * 2**20
"""Most of one task: so little that the first batch is there soon, and that many tasks fit Ray's object store."""
AHEAD = 2
"""Blocks that are fetched before they are asked for."""


class DecodedImages:
    """The images of a sequence of positions, in its order, decoded ahead of the consumer by Ray Data."""

    def __init__(self, cache: Cache, sequence: Positions, cpus: int) -> None:
        """cpus: how many tasks may decode at once. They take none of Ray's CPUs, which the workers may hold all."""
        images = cache.images.take(pa.array(sequence)).combine_chunks()
        table = pa.table({"position": pa.array(sequence), "image": images})
        rows = max(1, min(ROWS_PER_BLOCK, BLOCK_BYTES // (cache.stored.side**2 * 4)))
        blocks = [table.slice(i, rows).combine_chunks() for i in range(0, len(table), rows)]
        tasks = max(1, min(cpus, len(blocks)))
        self._blocks = map_tables(_DecodeTask(cache.stored), blocks, num_cpus=0, concurrency=tasks)
        self._ids = cache.ids
        self._images = self._read()

    def take(self, positions: Positions) -> list[Image]:
        """The next images, which are those of `positions`. Raises OSError where one cannot be read any more."""
        return [self._next(int(position)) for position in positions]

    def close(self) -> None:
        """Stop the tasks."""
        self._images.close()

    def _next(self, expected: int) -> Image:
        position, image, error = next(self._images)
        assert position == expected, "Ray Data must keep the order"
        if image is None:
            raise OSError(f"{self._ids[position].as_py()} cannot be read any more: {error}")
        return image

    def _read(self) -> Generator[tuple[int, Image | None, str], None, None]:
        block: Any
        for block in self._blocks.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=AHEAD):
            pixels = block["pixels"]
            for row, (position, height, width, error) in enumerate(
                zip(*(block[name].to_pylist() for name in ("position", "height", "width", "error")), strict=True)
            ):
                image = None
                if not error:
                    flat = np.frombuffer(pixels[row].as_buffer(), np.uint8)
                    image = flat.reshape(height, width, 3)
                yield position, image, error


@dataclass(frozen=True)
class _DecodeTask:
    """Runs in a Ray Data task: the pixels of one block of images."""

    stored: Stored

    def __call__(self, block: pa.Table) -> pa.Table:
        load = get_format(self.stored.format).load
        rows: list[dict[str, Any]] = []
        for position, image in zip(block["position"].to_pylist(), block["image"].to_pylist(), strict=True):
            row = {"position": position, "height": 0, "width": 0, "pixels": b"", "error": ""}
            try:
                pixels = load_stored(load(image), self.stored.side, self.stored.fit).pixels
            except Exception as error:  # the reader may be the user's own
                row["error"] = str(error) or type(error).__name__
            else:
                row |= {"height": pixels.shape[0], "width": pixels.shape[1], "pixels": pixels.tobytes()}
            rows.append(row)
        return pa.Table.from_pylist(rows, _SCHEMA)


_SCHEMA = pa.schema(
    [
        ("position", pa.int64()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("pixels", pa.large_binary()),
        ("error", pa.string()),
    ]
)
