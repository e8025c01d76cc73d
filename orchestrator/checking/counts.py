"""How many images and objects a manifest has, per split and class: from its columns, without opening an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.data import SPLITS
from orchestrator.data.manifest import CHUNK, Manifest

Counted = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Counts:
    """As the labels say, before anything is left out. Rows are the splits in the order of SPLITS, columns the classes.

    images: (3,); with_class: (3, C) images that have the class; objects: (3, C); background: (3,) images of an object
    data set without objects.
    """

    images: Counted
    with_class: Counted
    objects: Counted
    background: Counted
    masks: int
    """Objects that have one."""


def count(manifest: Manifest) -> Counts:
    """One pass over the table."""
    classes, names = len(manifest.classes), pa.array(SPLITS)
    images, background, masks = np.zeros(3, np.int64), np.zeros(3, np.int64), 0
    with_class, objects = np.zeros((3, classes), np.int64), np.zeros((3, classes), np.int64)
    for batch in manifest.table.select(["split", "label", "objects"]).to_batches(max_chunksize=CHUNK):
        splits = pc.index_in(batch["split"], names).to_numpy().astype(np.int64)
        images += np.bincount(splits, minlength=3)
        background += np.bincount(splits[_is_empty(batch["objects"])], minlength=3)
        rows, labels = _pairs(batch)
        np.add.at(with_class, (splits[rows], labels), 1)
        rows, labels = _objects(batch)
        np.add.at(objects, (splits[rows], labels), 1)
        masks += len(labels) - pc.list_flatten(batch["objects"]).field("mask").null_count
    return Counts(images, with_class, objects, background, masks)


def images_of_classes(manifest: Manifest) -> tuple[Counted, Counted]:
    """(positions, classes): an entry for each image and each class that it has, (n,) both."""
    found, start = [(np.zeros(0, np.int64), np.zeros(0, np.int64))], 0
    for batch in manifest.table.select(["label", "objects"]).to_batches(max_chunksize=CHUNK):
        rows, labels = _pairs(batch)
        found.append((rows + start, labels))
        start += len(batch)
    return np.concatenate([rows for rows, _ in found]), np.concatenate([labels for _, labels in found])


def without_labels(manifest: Manifest) -> tuple[Counted, Counted]:
    """The positions of background images, and of images that have neither a class nor a list of objects."""
    objects, label = manifest.table["objects"].combine_chunks(), manifest.table["label"].to_numpy()
    return np.flatnonzero(_is_empty(objects)), np.flatnonzero(objects.is_null().to_numpy(False) & (label < 0))


def _pairs(batch: pa.RecordBatch) -> tuple[Counted, Counted]:
    """Rows and classes, each pair once."""
    rows, labels = _objects(batch)
    own = batch["label"].to_numpy()
    rows = np.concatenate([np.flatnonzero(own >= 0), rows])
    labels = np.concatenate([own[own >= 0], labels])
    classes = int(labels.max(initial=0)) + 1
    pairs = np.unique(rows * classes + labels)
    return pairs // classes, pairs % classes


def _objects(batch: pa.RecordBatch) -> tuple[Counted, Counted]:
    """Rows and classes of all objects."""
    rows = pc.list_parent_indices(batch["objects"]).to_numpy().astype(np.int64)
    return rows, pc.list_flatten(batch["objects"]).field("label").to_numpy().astype(np.int64)


def _is_empty(objects: pa.Array) -> Any:
    return pc.fill_null(pc.equal(pc.list_value_length(objects), 0), False).to_numpy(zero_copy_only=False)
