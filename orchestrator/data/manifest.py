"""The manifest: what a reader found, in columns, with the fingerprint that the cache is addressed by."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from orchestrator.data import Format, detect, get_format
from trainables.order import Keys, Positions, sample_keys, stratified

TRAINED_ON = ("train", "val")
"""Splits that training reads and the cache holds; the manifest leaves out others."""


@dataclass(frozen=True)
class Manifest:
    """The samples of a data set in a stable order: a table of id, key, split, image, label."""

    name: str
    format: str
    reason: str
    """Why this format: the setting, or what was detected."""
    classes: tuple[str, ...]
    table: pa.Table
    fingerprint: str
    """SHA-256 of format, classes, ids, splits, labels and stamps (size and modification time, or etag)."""


def read_manifest(location: str, format: str = "auto") -> Manifest:
    """List a data set. Raises ValueError that says what is wrong with it and what to do."""
    name, reason = detect(location) if format == "auto" else (format, "as configured")
    reader: Format = get_format(name)
    source = reader.read(location)
    samples = sorted((s for s in source.samples if s.split in TRAINED_ON), key=lambda s: s.id)
    if len(source.classes) < 2:
        raise ValueError(
            f"{location} has one class only ({source.classes[0]}): a classifier needs two or more class folders"
        )
    if not any(s.split == "val" for s in samples) and max(Counter(s.label for s in samples).values()) < 2:
        raise ValueError(
            f"{location} has one image per class and no validation images: add a second image or a val folder"
        )
    ids = [s.id for s in samples]
    table = pa.table(
        {
            "id": pa.array(ids, pa.string()),
            "key": pa.array(sample_keys(ids)),
            "split": pa.array([s.split for s in samples], pa.string()),
            "image": pa.array([s.image for s in samples], pa.string()),
            "label": pa.array([s.label for s in samples], pa.int64()),
        }
    )
    digest = hashlib.sha256(repr((name, source.classes)).encode())
    for sample in samples:
        digest.update(f"{sample.id}\0{sample.split}\0{sample.label}\0{sample.stamp}\n".encode())
    return Manifest(source.name, name, reason, source.classes, table, digest.hexdigest())


def split_positions(
    splits: list[str], keys: Keys, labels: Positions, val_fraction: float, seed: int
) -> tuple[Positions, Positions]:
    """Positions of the training and of the validation samples; without a "val" split one is cut from "train"."""
    train = np.array([i for i, split in enumerate(splits) if split == "train"], np.int64)
    val = np.array([i for i, split in enumerate(splits) if split == "val"], np.int64)
    if len(val):
        return train, val
    chosen = stratified(seed, keys[train], labels[train], val_fraction)
    return np.delete(train, chosen), train[chosen]
