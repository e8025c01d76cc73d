"""Everything that can be wrong with a run is found here, on the driver, before anything is started or written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.config import Config, Problem
from orchestrator.data.files import is_remote
from orchestrator.data.manifest import Manifest, read_manifest
from orchestrator.data.selection import Selection, select
from orchestrator.errors import describe
from orchestrator.storage import check_storage
from trainables.contracts import Mode
from trainables.detector_check import check_detector
from trainables.detectors import default_detector_imgsz
from trainables.models import check_classifier, default_imgsz
from trainables.order import Keys, batch_sizes, sample_keys
from trainables.recipe import Recipe
from trainables.tasks import build_task
from trainables.weights import Loaded


@dataclass(frozen=True)
class Checked:
    """A config that can run, with what was found out about it."""

    config: Config
    """With imgsz filled in and paths made absolute."""
    manifest: Manifest
    used: Manifest
    """The part of it that `fraction` leaves."""
    selection: Selection
    storage: Path
    metric: str
    mode: Mode
    parameters: int
    pretrained: Loaded | None

    @property
    def imgsz(self) -> int:
        assert self.config.imgsz is not None
        return self.config.imgsz


def preflight(config: Config, like: Checked | None = None) -> tuple[Checked | None, list[Problem]]:
    """Check data, model, metric and storage. Every problem is returned; the result is None where there is one.

    like: a config with the same data, whose manifest and selection are taken over.
    """
    problems: list[Problem] = []
    manifest = chosen = storage = model = task = None
    imgsz = config.imgsz or _default_imgsz(config)
    try:
        manifest = like.manifest if like else read_manifest(config.data, config.format)
        chosen = (
            (like.selection, like.used) if like else select(manifest, config.val_fraction, config.fraction, config.seed)
        )
        check_labels(manifest, chosen[0], config.task)
    except (ValueError, OSError) as error:
        key = "format" if config.format in str(error) and ":" in config.format else "data"
        problems.append(Problem(key, f"{key} = {getattr(config, key)}: {error}"))
    except Exception as error:
        if ":" not in config.format:
            raise
        problems.append(Problem("format", f"format = {config.format}: {describe(error)}"))
    try:
        task = build_task(config)
    except ValueError as error:
        problems.append(Problem("metric", str(error)))
    try:
        model = _check_model(config, len(manifest.classes) if manifest else 2, imgsz)
    except ValueError as error:
        problems.append(Problem(_key_of(error, config), str(error)))
    except Exception as error:
        if ":" not in config.model:
            raise
        problems.append(Problem("model", f"model = {config.model}: {describe(error)}"))
    try:
        storage = check_storage(config.storage)
    except ValueError as error:
        problems.append(Problem("storage", str(error)))
    if manifest is None or chosen is None or storage is None or model is None or task is None:
        return None, problems
    resolved = config.model_copy(update=_absolute(config) | {"imgsz": imgsz, "storage": str(storage)})
    selection, used = chosen
    return Checked(resolved, manifest, used, selection, storage, task.primary, task.mode, *model), problems


def check_labels(manifest: Manifest, selection: Selection, task: str) -> None:
    """Raises ValueError where a data set lacks what the task learns from."""
    if not len(selection.train):
        raise ValueError("there are no training images")
    if task == "classify":
        _check_classes(manifest)
    else:
        _check_objects(manifest, selection, task)
    if not len(selection.val):
        raise ValueError("no validation images can be held back, one image per class: add a second one or a val folder")


def _check_classes(manifest: Manifest) -> None:
    if manifest.has_objects and manifest.table["label"].to_pylist().count(-1):
        raise ValueError("the images have boxes but no class of their own: this is data for task: detect")
    if len(manifest.classes) < 2:
        raise ValueError(f"there is one class only ({manifest.classes[0]}): a classifier needs two or more")


def _check_objects(manifest: Manifest, selection: Selection, task: str) -> None:
    """Training and validation images must have an object at least, for instance segmentation one with a mask."""
    if not manifest.has_objects:
        raise ValueError("the images have a class but no boxes: this is data for task: classify")
    keys = sample_keys(manifest.table["id"].to_pylist())

    def objects_of(chosen: Keys) -> pa.Array:
        objects = manifest.table["objects"].take(pa.array(np.flatnonzero(np.isin(keys, chosen)))).combine_chunks()
        found = pc.list_flatten(objects)
        return found.filter(pc.invert(found.field("crowd")))

    found = objects_of(selection.train)
    if not len(found):
        raise ValueError("no training image has an object (crowds do not count): there is nothing to learn from")
    if task == "segment" and found.field("mask").null_count == len(found):
        raise ValueError(
            "the objects have boxes but no masks, and task: segment learns from masks: set task to detect, or add masks"
        )
    if len(selection.val) and not len(objects_of(selection.val)):
        raise ValueError("no validation image has an object (crowds do not count): there is nothing to measure by")


def _default_imgsz(config: Config) -> int:
    return default_imgsz(config.model) if config.task == "classify" else default_detector_imgsz(config)


def _check_model(config: Config, classes: int, imgsz: int) -> tuple[int, Loaded | None]:
    """The number of parameters of the model, and what would be loaded. Raises ValueError that says what to change."""
    sizes = batch_sizes(imgsz, config.multi_scale)
    if config.task != "classify":
        return check_detector(config, classes, sizes)
    return check_classifier(config, classes, imgsz, sizes)


def _key_of(error: ValueError, recipe: Recipe) -> str:
    """The key that a message about the model speaks of."""
    text = str(error)
    for key in ("pretrained", "freeze"):
        if text.startswith(key):
            return key
    return "imgsz" if "imgsz=" in text and recipe.imgsz else "model"


def _absolute(config: Config) -> dict[str, str]:
    """Paths as they hold from any folder, so that the stored config works from everywhere."""
    paths: dict[str, str] = {}
    if config.data != "digits" and not is_remote(config.data) and Path(config.data).expanduser().exists():
        paths["data"] = str(Path(config.data).expanduser().absolute())
    if config.cache_dir and not config.cache_dir.startswith("~"):
        paths["cache_dir"] = str(Path(config.cache_dir).absolute())
    if isinstance(config.pretrained, str) and "://" not in config.pretrained:
        paths["pretrained"] = str(Path(config.pretrained).expanduser().absolute())
    return paths
