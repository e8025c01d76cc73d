"""Which samples of a manifest train and which validate: a pure function of the data set and the config."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.data.manifest import Manifest
from trainables.order import Keys, Positions, sample_keys, stratified


@dataclass(frozen=True)
class Selection:
    """The keys of the chosen samples; a cache maps them to its positions."""

    train: Keys
    val: Keys
    available: int
    """Training samples of which `fraction` took its part."""


def select(manifest: Manifest, val_fraction: float, fraction: float, seed: int) -> tuple[Selection, Manifest]:
    """The selection, and the manifest of it alone (the whole one at fraction 1).

    Without a "val" split a part of each class is cut from "train". `fraction` takes a part of each class of what
    trains, so that a smaller fraction lies within a larger one; validation stays whole.
    """
    keys, strata = sample_keys(manifest.table["id"].to_pylist()), _strata(manifest.table)
    is_val = pc.equal(manifest.table["split"], "val").to_numpy()
    val = np.flatnonzero(is_val)
    train = np.flatnonzero(~is_val)
    if not len(val):
        chosen = stratified(seed, keys[train], strata[train], val_fraction)
        train, val = np.delete(train, chosen), train[chosen]
    available = len(train)
    if fraction < 1:
        train = train[stratified(seed, keys[train], strata[train], fraction, leave=0)]
        used = manifest.take(np.sort(np.concatenate([train, val])))
    else:
        used = manifest
    return Selection(keys[train], keys[val], available), used


def _strata(table: pa.Table) -> Positions:
    """(n,) the class that a sample counts for: its own, or the rarest of its objects; -1 without any."""
    labels: Positions = table["label"].to_numpy().copy()
    lists = table["objects"].combine_chunks()
    if lists.null_count == len(lists):
        return labels
    classes = pc.list_flatten(lists).field("label").to_numpy()
    owners = pc.list_parent_indices(lists).to_numpy()
    frequency = np.bincount(classes) if len(classes) else np.zeros(0, np.int64)
    order = np.lexsort((classes, -frequency[classes]))  # the rarest last, so that it stands in the end
    labels[owners[order]] = classes[order]
    return labels
