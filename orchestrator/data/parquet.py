"""Parquet: images and labels as rows of a table, as hubs of data sets publish them.

    train-00000-of-00002.parquet, data/validation-....parquet, test/0000.parquet      the split by name, else train

Columns are found by their names, in this order:

- the image: `image`, `img` or `picture`, else the only one of its type: struct{bytes, path} or binary. Where `bytes` is
  null, `path` is relative to the Parquet file's folder.
- objects: a column `objects` (also annotations, instances) as a struct of lists or a list of structs, or lists side by
  side: boxes, categories, and where they exist `segmentation` (polygons) and `iscrowd`. Boxes called `bbox` or `bboxes`
  are x, y, width, height as COCO has them; those called `boxes` or `xyxy` are x0, y0, x1, y1. All are pixels; `width`
  and `height` beside them are those of the image that they were drawn on.
- else the class: `label`, `labels`, `class`, `category`, `fine_label` or `target`, integers or text.

Names of classes are those that the file's Hugging Face metadata tells; else text sorted, or the numbers from 0 to the
largest. A row of train or val without a class (null or -1) is left out and listed.
"""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.data import SPLITS, Format, Issue, Source
from orchestrator.data.faults import Faults, Wrong
from orchestrator.data.files import Files, open_input, read_bytes
from orchestrator.data.parquet_columns import (
    Columns,
    Row,
    class_index,
    classes_in,
    find_columns,
    objects_of,
    told_names,
)
from trainables.contracts import Sample

STREAMS, KEPT_BYTES, AT_A_TIME = 2, 2**26, 16
"""Row groups that are read from at a time, the bytes of each that stay in memory, and the rows of a step."""
READ_BUFFER = 2**23
"""Bytes of one request: a column is not held as a whole."""
PROBED, DEPTH = 3, 3
"""How many folders of a level, and how many levels, detection looks into."""


@dataclass(frozen=True)
class Part:
    """One file of the data set."""

    path: str
    """Relative to the root."""
    place: str
    split: str
    stamp: str


def read(location: str) -> Source:
    """List the rows of all files; images are not read. Raises ValueError for what is no such data set."""
    files = Files(location)
    root, parts = _parts(files)
    columns, names = _described(parts)
    values = _found(parts, columns) if names is None else list(range(len(names)))
    index = {value: i for i, value in enumerate(values)}
    issues: list[Issue] = []
    return Source(root.name, names or tuple(map(str, values)), _samples(root, parts, columns, index, issues), issues)


def load(reference: str) -> bytes:
    """The encoded image of a row: its bytes, or the file that it names."""
    place, _, position = reference.rpartition("#")
    group, row = map(int, position.split(":"))
    with _LOCK:
        stream = _stream(place, group)
    cell = stream.cell(row)
    data, path = (cell["bytes"], cell.get("path")) if isinstance(cell, dict) else (cell, None)
    if data is not None:
        return bytes(data)
    if not path:
        raise ValueError("the row has neither an image nor the path of one")
    return read_bytes(Files(place).folder.place(path))


def detect(files: Files) -> str | None:
    if not files.is_dir():
        return "a Parquet file" if files.location.lower().endswith(".parquet") else None
    return "there are Parquet files" if _has_parquet(files, "", DEPTH) else None


def _has_parquet(files: Files, path: str, depth: int) -> bool:
    entries = files.entries(path)
    if any(entry.suffix == ".parquet" for entry in entries):
        return True
    folders = [entry.path for entry in entries if entry.is_dir][:PROBED]
    return depth > 1 and any(_has_parquet(files, folder, depth - 1) for folder in folders)


# --------------------------------------------------------------------------------------------------- listing


def _parts(files: Files) -> tuple[Files, list[Part]]:
    entry = files.entry()
    if entry is None:
        raise ValueError(f"there is no file or folder {files.location}")
    root = files if entry.is_dir else files.folder
    name = files.location.rpartition("/")[2]
    found = [e for e in files.walk() if e.suffix == ".parquet"] if entry.is_dir else [root.entry(name)]
    parts = [Part(e.path, root.place(e.path), _split(e.path), e.stamp) for e in found if e]
    if not parts:
        raise ValueError(f"{files.location} has no .parquet files")
    return root, parts


def _split(path: str) -> str:
    """The split that a file's name or else its folders name as a word, the nearest first."""
    for part in reversed(path.lower().split("/")):
        words = set(re.split("[^a-z]+", part))
        if split := next((split for split, names in SPLITS.items() if words & set(names)), None):
            return split
    return "train"


def _open(place: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(open_input(place), buffer_size=READ_BUFFER, pre_buffer=False)
    except pa.ArrowException as error:
        raise ValueError(f"{place} is not a Parquet file that can be read: {error}") from error


def _described(parts: list[Part]) -> tuple[Columns, tuple[str, ...] | None]:
    """The columns of all files, and the names of classes that they tell."""
    schemas = [_open(part.place).schema_arrow for part in parts]
    columns = find_columns(schemas[0], parts[0].place)
    names = told_names(schemas[0], columns)
    for part, schema in zip(parts, schemas, strict=True):
        if find_columns(schema, part.place) != columns:
            raise ValueError(f"{part.place} has other columns than {parts[0].place}: name a folder of one data set")
        if told_names(schema, columns) != names:
            raise ValueError(f"{part.place} has other names of classes than {parts[0].place}")
    return columns, names


def _found(parts: list[Part], columns: Columns) -> list[Any]:
    """The classes that occur: texts in order, or all numbers up to the largest."""
    found: set[Any] = set()
    for part in parts:
        file = _open(part.place)
        for group in range(file.num_row_groups):
            found |= classes_in(file.read_row_group(group, columns=columns.read), columns)
    return sorted(found) if columns.text else list(range(max(found, default=-1) + 1))


def _samples(
    root: Files, parts: list[Part], columns: Columns, index: Mapping[Any, int], issues: list[Issue]
) -> Iterator[Sample]:
    faults = Faults(root.location)
    for part in parts:
        for number, reference, row in _rows(part, columns):
            id = f"{part.path}:{number:08d}"  # so that the order of ids is that of rows
            try:
                sample = _sample(id, part, reference, row, columns, index)
            except Wrong as wrong:
                faults.add(f"{part.path} row {number}: {wrong.what}", wrong.rule)
                continue
            if sample.objects is None and sample.label < 0 and part.split != "test":
                issues.append(Issue(id, "the row has no class"))
            else:
                yield sample
    faults.refuse()


def _rows(part: Part, columns: Columns) -> Iterator[tuple[int, str, Row]]:
    """The number of a row in its file, the reference of its image, and what the row says about it."""
    file, number = _open(part.place), 0
    for group in range(file.num_row_groups):
        for i, row in enumerate(file.read_row_group(group, columns=columns.read).to_pylist()):
            yield number, f"{part.place}#{group}:{i}", row
            number += 1


def _sample(id: str, part: Part, image: str, row: Row, columns: Columns, index: Mapping[Any, int]) -> Sample:
    label, objects = -1, None
    if columns.box:
        objects = objects_of(row, columns, index)
    elif row[columns.label] not in (None, -1):
        label = class_index(row[columns.label], index)
    sides = [row[name] for name in columns.size]
    size = None if not sides or None in sides else (sides[0], sides[1])
    return Sample(id, part.split, image, part.stamp, label, objects, size)


# --------------------------------------------------------------------------------------------------- images


class _Stream:
    """The images of one row group, which may be larger than memory: read in order, the last ones kept."""

    def __init__(self, place: str, group: int) -> None:
        self._place, self._group = place, group
        self._lock = threading.Lock()
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._kept: deque[pa.Array] = deque()
        self._start = self._end = 0
        """Rows that are kept."""

    def cell(self, row: int) -> Any:
        with self._lock:
            if row < self._start or not self._end:
                self._restart()
            while row >= self._end:
                self._step()
            position = row - self._start
            for images in self._kept:
                if position < len(images):
                    return images[position].as_py()
                position -= len(images)
        raise AssertionError

    def _restart(self) -> None:
        file = _open(self._place)
        image = find_columns(file.schema_arrow, self._place).image
        self._batches = file.iter_batches(AT_A_TIME, [self._group], [image])
        self._kept.clear()
        self._start = self._end = 0

    def _step(self) -> None:
        batch = next(self._batches, None)
        if batch is None:
            raise ValueError(f"{self._place} ends within row group {self._group}")
        images = batch.column(0)
        self._kept.append(images)
        self._end += len(images)
        while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept) > KEPT_BYTES:
            self._start += len(self._kept.popleft())


_LOCK = threading.Lock()
_stream = lru_cache(maxsize=STREAMS)(_Stream)

FORMAT = Format(read, load, detect)
