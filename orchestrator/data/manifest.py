"""The manifest: what a reader found, in columns, with the fingerprint that the cache is addressed by."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.data import Issue, Source, detect, get_format
from trainables.contracts import Instance, Sample
from trainables.order import Positions

TRAINED_ON = ("train", "val")
"""Splits that training reads and the cache holds."""

CHUNK = 10_000
"""Samples that are held as Python objects at a time."""

OBJECT = pa.struct(
    [
        ("label", pa.int32()),
        ("box", pa.list_(pa.float64(), 4)),  # null: that of the mask
        ("mask", pa.string()),  # JSON of `Instance.mask`
        ("crowd", pa.bool_()),
    ]
)
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("split", pa.string()),
        ("image", pa.string()),
        ("stamp", pa.string()),
        ("label", pa.int64()),
        ("objects", pa.list_(OBJECT)),  # null: no object data set
        ("height", pa.int32()),  # of the image that the objects were drawn on; null: not told
        ("width", pa.int32()),
        ("relative", pa.bool_()),
    ]
)


@dataclass(frozen=True)
class Manifest:
    """The samples of a data set in the order of their ids: a table of SCHEMA and their keys."""

    name: str
    format: str
    reason: str
    """Why this format: the setting, or what was detected."""
    classes: tuple[str, ...]
    table: pa.Table
    issues: tuple[Issue, ...]
    """What the reader left out."""
    fingerprint: str
    """SHA-256 of format, classes and all columns but `image`; stamps are size and modification time, or an etag."""

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def has_objects(self) -> bool:
        return bool(self.table["objects"].null_count < len(self))

    def samples(self) -> Iterator[Sample]:
        for batch in self.table.to_batches(max_chunksize=CHUNK):
            for row in batch.to_pylist():
                yield sample_of(row)

    def take(self, positions: Positions) -> Manifest:
        """The manifest of some of the samples."""
        return _manifest(
            self.name, self.format, self.reason, self.classes, self.table.take(pa.array(positions)), self.issues
        )


def read_manifest(location: str, format: str = "auto", splits: Iterable[str] = TRAINED_ON) -> Manifest:
    """List the samples of some splits. Raises ValueError that says what is wrong with the data set and what to do."""
    name, reason = detect(location) if format == "auto" else (format, "as configured")
    source: Source = get_format(name).read(location)
    if not isinstance(source, Source):
        raise ValueError(f"format {name} gave a {type(source).__name__} instead of an orchestrator.data.Source")
    table = _table(source, frozenset(splits))
    if repeated := _repeated(table["id"]):
        raise ValueError(f"{location}: the sample id {repeated!r} stands for several images; ids must be unique")
    return _manifest(source.name, name, reason, tuple(source.classes), table, tuple(source.issues))


def sample_of(row: Mapping[str, Any]) -> Sample:
    """A row of the table as the Sample that it was made from."""
    objects = row["objects"]
    return Sample(
        id=row["id"],
        split=row["split"],
        image=row["image"],
        stamp=row["stamp"],
        label=row["label"],
        objects=None if objects is None else tuple(_instance_of(item) for item in objects),
        size=None if row["height"] is None else (row["height"], row["width"]),
        relative=row["relative"],
    )


def _instance_of(item: Mapping[str, Any]) -> Instance:
    box, mask = item["box"], item["mask"]
    return Instance(
        item["label"], None if box is None else tuple(box), None if mask is None else json.loads(mask), item["crowd"]
    )


def _manifest(
    name: str, format: str, reason: str, classes: tuple[str, ...], table: pa.Table, issues: tuple[Issue, ...]
) -> Manifest:
    digest = hashlib.sha256(repr((format, classes)).encode())
    hashed = [column for column in table.column_names if column != "image"]
    for batch in table.select(hashed).combine_chunks().to_batches(max_chunksize=CHUNK):
        digest.update(_content(batch))
    return Manifest(name, format, reason, classes, table, issues, digest.hexdigest())


def _content(batch: pa.RecordBatch) -> bytes:
    """The values of a batch as bytes that do not depend on how it lies in memory."""
    copy = batch.take(pa.array(np.arange(batch.num_rows)))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, copy.schema) as writer:
        writer.write_batch(copy)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _table(source: Source, splits: frozenset[str]) -> pa.Table:
    batches: list[pa.RecordBatch] = []
    chunk: list[Sample] = []
    for sample in source.samples:
        if sample.split in splits:
            _refuse_wrong(sample, len(source.classes))
            chunk.append(sample)
        if len(chunk) == CHUNK:
            batches.append(_batch(chunk))
            chunk = []
    batches.append(_batch(chunk))
    table = pa.Table.from_batches(batches, SCHEMA)
    return table.take(pc.sort_indices(table["id"])).combine_chunks()


def _batch(samples: list[Sample]) -> pa.RecordBatch:
    counts = [None if s.objects is None else len(s.objects) for s in samples]
    ends = np.cumsum([count or 0 for count in counts])
    starts = pa.array([None if c is None else int(e) - c for c, e in zip(counts, ends, strict=True)], pa.int32())
    offsets = pa.concat_arrays([starts, pa.array([int(ends[-1]) if len(ends) else 0], pa.int32())])
    items = [item for s in samples for item in s.objects or ()]
    values = pa.StructArray.from_arrays(
        [
            pa.array([i.label for i in items], pa.int32()),
            pa.array([i.box for i in items], pa.list_(pa.float64(), 4)),
            pa.array([None if i.mask is None else json.dumps(i.mask, default=_json) for i in items], pa.string()),
            pa.array([i.crowd for i in items], pa.bool_()),
        ],
        fields=list(OBJECT),
    )
    columns = [
        pa.array([s.id for s in samples], pa.string()),
        pa.array([s.split for s in samples], pa.string()),
        pa.array([s.image for s in samples], pa.string()),
        pa.array([s.stamp for s in samples], pa.string()),
        pa.array([s.label for s in samples], pa.int64()),
        pa.ListArray.from_arrays(offsets, values),
        pa.array([s.size and s.size[0] for s in samples], pa.int32()),
        pa.array([s.size and s.size[1] for s in samples], pa.int32()),
        pa.array([s.relative for s in samples], pa.bool_()),
    ]
    return pa.record_batch(columns, SCHEMA)


def _json(value: Any) -> Any:
    """What readers may hand over beside plain JSON: arrays, and run lengths as bytes."""
    return value.decode("ascii") if isinstance(value, bytes) else value.tolist()


def _refuse_wrong(sample: Sample, classes: int) -> None:
    """Labels that make no sense for the whole set, from a reader that did not say so itself."""
    wrong = [label for label in (i.label for i in sample.objects or ()) if not 0 <= label < classes]
    if not -1 <= sample.label < classes:
        wrong.append(sample.label)
    if wrong:
        raise ValueError(
            f"{sample.id} has class index {wrong[0]}, but there are {classes} classes (0 to {classes - 1})"
        )


def _repeated(ids: pa.ChunkedArray) -> str | None:
    """The first of sorted ids that stands there twice."""
    if len(ids) < 2:
        return None
    same = pc.equal(ids.slice(1), ids.slice(0, len(ids) - 1))
    position = pc.index(same, True).as_py()
    return None if position < 0 else str(ids[position].as_py())
