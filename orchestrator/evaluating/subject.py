"""Which samples of which data set a model is evaluated on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from orchestrator.config import Config, ConfigError
from orchestrator.data import SPLITS
from orchestrator.data.manifest import TRAINED_ON, Manifest, read_manifest
from orchestrator.data.selection import select
from orchestrator.errors import describe
from trainables.order import Keys, sample_keys
from trainables.registry import did_you_mean

MOST_NAMES = 5
"""Class names that a message tells."""


@dataclass(frozen=True)
class Subject:
    """The samples to evaluate on.

    whole: what a run on this data set would cache; used: the samples alone; keys: theirs.
    indices: the run's index of each class of the data set; None where they are the same.
    absent: classes of the run that the data set does not have.
    """

    whole: Manifest
    used: Manifest
    keys: Keys
    indices: tuple[int, ...] | None
    absent: tuple[str, ...]


def choose_subject(config: Config, split: str, own: bool, classes: tuple[str, ...]) -> Subject:
    """The samples of a split of ``config.data``, for a model of these classes.

    own: it is the data set that the model was trained on: train and val are then the parts that the run had.
    Raises ConfigError that says what is wrong with the data and what to do.
    """
    if split not in SPLITS:
        raise ConfigError(f"split = {split}: {did_you_mean(split, SPLITS)}")
    try:
        whole = read_manifest(config.data, config.format, TRAINED_ON if split in TRAINED_ON else (split,))
        if own and split in TRAINED_ON and len(whole):
            selection, _ = select(whole, config.val_fraction, config.fraction, config.seed)
            keys = selection.val if split == "val" else selection.train
        else:
            ids = whole.table["id"].filter(pc.equal(whole.table["split"], split))
            keys = sample_keys(ids.to_pylist())
        indices = _indices(whole.classes, classes) if len(whole) else None
        if not len(keys):
            raise ValueError(f"it has no {split} images; {_splits(config, own)}")
        used = whole.take(np.flatnonzero(np.isin(sample_keys(whole.table["id"].to_pylist()), keys)))
        _check_labels(used, config.task, split)
    except (ValueError, OSError) as error:
        raise ConfigError(f"data = {config.data}: {error}") from error
    except Exception as error:
        if ":" not in config.format:
            raise
        raise ConfigError(f"format = {config.format}: {describe(error)}") from error
    absent = tuple(name for name in classes if name not in whole.classes)
    return Subject(whole, used, keys, indices, absent)


def _splits(config: Config, own: bool) -> str:
    """Which splits there are, in words; of the run's own data, validation may be a part of what is for training."""
    table = read_manifest(config.data, config.format, SPLITS).table
    counts = {item["values"]: item["counts"] for item in pc.value_counts(table["split"]).to_pylist()}
    there = [f"split={name} ({counts[name]:,} images)" for name in SPLITS if counts.get(name)]
    if own and counts.get("train") and not counts.get("val"):
        there.append("split=val (the part of train that the run held back)")
    return f"there are {', '.join(there)}" if there else "it has no images at all"


def _check_labels(used: Manifest, task: str, split: str) -> None:
    """Raises ValueError where there is nothing that predictions could be compared with."""
    if task == "classify":
        if pc.any(pc.equal(used.table["label"], -1)).as_py():
            raise ValueError("its images have no class of their own, and the run is a classifier")
        return
    if not used.has_objects:
        raise ValueError(f"its images have no boxes, and the run is for task: {task}")
    found = pc.list_flatten(used.table["objects"].combine_chunks())
    if not len(found):
        raise ValueError(f"no {split} image has an object: there is nothing to compare predictions with")
    if task == "segment" and found.field("mask").null_count == len(found):
        raise ValueError("its objects have boxes but no masks, and the run is for task: segment")


def _indices(theirs: tuple[str, ...], ours: tuple[str, ...]) -> tuple[int, ...] | None:
    """Where each class of the data set is among those of the run. Raises ValueError for names that the run lacks."""
    unknown = [name for name in theirs if name not in ours]
    if unknown:
        absent = [name for name in ours if name not in theirs]
        raise ValueError(
            f"its classes are not those of the run: {_names(unknown)} {_are(unknown)} not among "
            "them" + (f", and {_names(absent)} of the run {_are(absent)} missing" if absent else "")
        )
    return None if theirs == ours else tuple(ours.index(name) for name in theirs)


def _are(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _names(names: list[str]) -> str:
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(map(repr, names[:MOST_NAMES])) + more
