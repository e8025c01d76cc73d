"""Shards: uncompressed Arrow IPC files of decoded pixels, mapped into memory and read without copying."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from orchestrator.data.images import Image

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Row:
    """One decoded sample on its way into a shard."""

    id: str
    key: int
    split: str
    label: int
    pixels: Image


def write_shard(path: Path, rows: Sequence[Row]) -> None:
    """Write rows as one record batch: fixed-size pixels where all have one shape, else large_binary. Raises OSError."""
    shapes = {row.pixels.shape for row in rows}
    flat = [row.pixels.reshape(-1) for row in rows]
    # one array of all the bytes; arrow takes it over without another copy
    data = np.concatenate(flat) if flat else np.empty(0, np.uint8)
    if len(shapes) == 1:
        kind = pa.binary(flat[0].size)
        pixels = pa.Array.from_buffers(kind, len(rows), [None, pa.py_buffer(data)])
    else:
        offsets = np.concatenate([[0], np.cumsum([f.size for f in flat])]).astype(np.int64)
        pixels = pa.Array.from_buffers(pa.large_binary(), len(rows), [None, pa.py_buffer(offsets), pa.py_buffer(data)])
    batch = pa.record_batch(
        {
            "id": pa.array([r.id for r in rows], pa.string()),
            "key": pa.array([r.key for r in rows], pa.uint64()),
            "split": pa.array([r.split for r in rows], pa.string()),
            "label": pa.array([r.label for r in rows], pa.int64()),
            "height": pa.array([r.pixels.shape[0] for r in rows], pa.int32()),
            "width": pa.array([r.pixels.shape[1] for r in rows], pa.int32()),
            "pixels": pixels,
        }
    )
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)


class Shard:
    """A mapped shard. The operating system's page cache holds its pages once for all processes of the node."""

    def __init__(self, path: Path) -> None:
        """Map a shard. Raises OSError or ValueError where its structure is damaged; the pixels are not looked at."""
        reader = pa.ipc.open_file(pa.memory_map(str(path), "r"))
        self.batch: pa.RecordBatch = reader.get_batch(0)
        self.batch.validate(full=True)  # damaged offsets would end the process
        heights = self.batch["height"].to_numpy()
        widths = self.batch["width"].to_numpy()
        self._shapes: list[tuple[int, int, int]] = [
            (h, w, 3) for h, w in zip(heights.tolist(), widths.tolist(), strict=True)
        ]
        sizes = heights.astype(np.int64) * widths * 3
        self._offsets: list[int] = np.concatenate([[0], np.cumsum(sizes)]).tolist()
        self._data: np.ndarray[Any, np.dtype[np.uint8]] = np.frombuffer(self.batch["pixels"].buffers()[-1], np.uint8)
        if self._offsets[-1] != len(self._data):
            raise ValueError(f"{path} has {len(self._data)} bytes of pixels instead of {self._offsets[-1]}")

    def __len__(self) -> int:
        return len(self._shapes)

    def image(self, row: int) -> Image:
        """A read-only view of one image's pixels."""
        return self._data[self._offsets[row] : self._offsets[row + 1]].reshape(self._shapes[row])
