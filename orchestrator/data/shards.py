"""Shards: uncompressed Arrow IPC files of decoded pixels and labels, mapped into memory and read without copying."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from orchestrator.data.images import Image
from orchestrator.data.objects import Objects

FORMAT_VERSION = 2
CACHE_LINE = 64
"""Bytes."""


@dataclass(frozen=True)
class Row:
    """One decoded sample on its way into a shard."""

    id: str
    key: int
    image: str
    """Where the bytes are, as in `Sample`."""
    label: int
    height: int
    width: int
    """Of the upright image at full scale, whose pixels the objects are given in."""
    pixels: Image | None
    """At the stored size; None in shards that hold labels only."""
    objects: Objects | None


class Arena:
    """One piece of memory, in huge pages, that the images of a shard are moved to one after the other."""

    def __init__(self, size: int) -> None:
        """Up to `size` bytes; what is not used costs nothing."""
        self._memory = np.empty(size, np.uint8)
        self._used = 0

    def move(self, image: Image) -> Image:
        """The image, in the arena; where that is full, as it is."""
        end = self._used + image.size
        if end > len(self._memory):
            return image
        moved: Image = self._memory[self._used : end].reshape(image.shape)
        moved[...] = image
        self._used = end
        return moved

    def all_of(self, images: Sequence[Image]) -> np.ndarray[Any, np.dtype[np.uint8]] | None:
        """The bytes of these images, which are all that were moved; None where some were not."""
        return self._memory[: self._used] if sum(image.size for image in images) == self._used else None


def write_shard(path: Path, rows: Sequence[Row], arena: Arena | None = None) -> None:
    """Write rows as one record batch: fixed-size pixels where all have one shape, else large_binary. Raises OSError.

    arena: where the pixels of exactly these rows are.
    """
    shapes = [(0, 0, 0) if r.pixels is None else r.pixels.shape for r in rows]
    columns = {
        "id": pa.array([r.id for r in rows], pa.string()),
        "key": pa.array([r.key for r in rows], pa.uint64()),
        "image": pa.array([r.image for r in rows], pa.string()),
        "label": pa.array([r.label for r in rows], pa.int64()),
        "full_height": pa.array([r.height for r in rows], pa.int32()),
        "full_width": pa.array([r.width for r in rows], pa.int32()),
        "height": pa.array([shape[0] for shape in shapes], pa.int32()),
        "width": pa.array([shape[1] for shape in shapes], pa.int32()),
        **_object_columns(rows),
        "pixels": _pixel_column([r.pixels for r in rows if r.pixels is not None], len(rows), arena),
    }
    batch = _aligned(pa.record_batch(columns))
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)


def _object_columns(rows: Sequence[Row]) -> dict[str, pa.Array]:
    """The instances of all rows one after the other, per row a list; without masks that column has nulls."""
    if all(row.objects is None for row in rows):
        return {}
    each = [row.objects or _NONE for row in rows]
    offsets = np.concatenate([[0], np.cumsum([len(objects.labels) for objects in each])]).astype(np.int32)

    def lists(values: pa.Array) -> pa.Array:
        return pa.ListArray.from_arrays(pa.array(offsets), values)

    boxes = np.concatenate([objects.boxes.reshape(-1) for objects in each]).astype(np.float32)
    masks = [mask for objects in each for mask in objects.masks or (None,) * len(objects.labels)]
    return {
        "object_labels": lists(pa.array(np.concatenate([o.labels for o in each]).astype(np.int64))),
        "object_boxes": lists(pa.FixedSizeListArray.from_arrays(pa.array(boxes), 4)),
        "object_crowd": lists(pa.array(np.concatenate([o.crowd for o in each]).astype(np.uint8))),
        "object_masks": lists(pa.array(masks, pa.large_binary())),
    }


_NONE = Objects(np.empty(0, np.int64), np.empty((0, 4), np.float32), np.empty(0, bool))


def _pixel_column(images: Sequence[Image], rows: int, arena: Arena | None) -> pa.Array:
    if not images:
        return pa.nulls(rows, pa.large_binary())
    # one array of all the bytes; arrow takes it over without another copy
    data = arena.all_of(images) if arena else None
    if data is None:
        data = np.concatenate([image.reshape(-1) for image in images])
    if len({image.shape for image in images}) == 1:
        return pa.Array.from_buffers(pa.binary(images[0].size), rows, [None, pa.py_buffer(data)])
    offsets = np.concatenate([[0], np.cumsum([image.size for image in images])]).astype(np.int64)
    return pa.Array.from_buffers(pa.large_binary(), rows, [None, pa.py_buffer(offsets), pa.py_buffer(data)])


def _aligned(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Let the pixels, which end the batch, start on a cache line: Arrow aligns to 8 bytes, where copies take longer."""
    batch = batch.replace_schema_metadata({"padding": ""})
    sink, pixels = pa.MockOutputStream(), batch["pixels"].buffers()[-1]
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
        end = sink.size()
    size = pixels.size if pixels else 0
    start = end - -(-size // 8) * 8
    return batch.replace_schema_metadata({"padding": "." * (-start % CACHE_LINE)})


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
        pixels = self.batch["pixels"].buffers()[-1]
        self._data: np.ndarray[Any, np.dtype[np.uint8]] = np.frombuffer(pixels or b"", np.uint8)
        if self._offsets[-1] != len(self._data):
            raise ValueError(f"{path} has {len(self._data)} bytes of pixels instead of {self._offsets[-1]}")
        self.block = self._data.reshape(-1, *self._shapes[0]) if len(set(self._shapes)) == 1 and pixels else None
        """(n, height, width, 3): all images at once, where they have one size."""
        self._objects = _ObjectColumns(self.batch) if "object_labels" in self.batch.schema.names else None

    def __len__(self) -> int:
        return len(self._shapes)

    @property
    def has_objects(self) -> bool:
        return self._objects is not None

    def image(self, row: int) -> Image:
        """A read-only view of one image's pixels."""
        return self._data[self._offsets[row] : self._offsets[row + 1]].reshape(self._shapes[row])

    @property
    def object_counts(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """(n,) how many instances each image has."""
        return self._objects.counts if self._objects else np.zeros(len(self), np.int64)

    def objects(self, row: int) -> Objects | None:
        """The instances of one image; None where the data set has none."""
        return self._objects.of(row) if self._objects else None


class _ObjectColumns:
    """The instances of a shard's rows, as views."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self._offsets: list[int] = batch["object_labels"].offsets.to_pylist()
        self._labels = batch["object_labels"].values.to_numpy()
        self._boxes = batch["object_boxes"].values.flatten().to_numpy().reshape(-1, 4)
        self._crowd = batch["object_crowd"].values.to_numpy().astype(bool)
        masks = batch["object_masks"].values
        self._masks = None if masks.null_count == len(masks) else masks

    @property
    def counts(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.diff(self._offsets)

    def of(self, row: int) -> Objects:
        part = slice(self._offsets[row], self._offsets[row + 1])
        masks = None
        if self._masks is not None:
            masks = tuple(mask or b"" for mask in self._masks[part].to_pylist())
        return Objects(self._labels[part], self._boxes[part], self._crowd[part], masks)
