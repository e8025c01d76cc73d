"""Everything that can be wrong with a run is found here, on the driver, before anything is started or written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from orchestrator.config import Config, Problem
from orchestrator.data.files import is_remote
from orchestrator.data.manifest import Manifest, read_manifest
from orchestrator.data.selection import Selection, select
from orchestrator.errors import describe
from orchestrator.storage import check_storage
from trainables.contracts import Mode
from trainables.models import Loaded, check_classifier, default_imgsz
from trainables.order import batch_sizes
from trainables.recipe import Recipe
from trainables.tasks import build_task


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


def preflight(config: Config) -> tuple[Checked | None, list[Problem]]:
    """Check data, model, metric and storage. Every problem is returned; the result is None where there is one."""
    problems: list[Problem] = []
    manifest = chosen = storage = model = task = None
    imgsz = config.imgsz or default_imgsz(config.model)
    try:
        manifest = read_manifest(config.data, config.format)
        chosen = select(manifest, config.val_fraction, config.fraction, config.seed)
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
        for size in batch_sizes(imgsz, config.multi_scale):
            model = check_classifier(config, len(manifest.classes) if manifest else 2, size)
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
    if task == "classify" and manifest.has_objects and manifest.table["label"].to_pylist().count(-1):
        raise ValueError("the images have boxes but no class of their own: this is data for task: detect")
    if task == "classify" and len(manifest.classes) < 2:
        raise ValueError(f"there is one class only ({manifest.classes[0]}): a classifier needs two or more")
    if not len(selection.val):
        raise ValueError("no validation images can be held back, one image per class: add a second one or a val folder")


def _key_of(error: ValueError, recipe: Recipe) -> str:
    """The key that a message about the model speaks of."""
    text = str(error)
    if text.startswith("pretrained"):
        return "pretrained"
    return "imgsz" if "imgsz=" in text and recipe.imgsz else "model"


def _absolute(config: Config) -> dict[str, str]:
    """Paths as they hold from any folder, so that the stored config works from everywhere."""
    paths: dict[str, str] = {}
    if config.data != "digits" and not is_remote(config.data) and Path(config.data).expanduser().exists():
        paths["data"] = str(Path(config.data).expanduser().absolute())
    if config.cache_dir and not config.cache_dir.startswith("~"):
        paths["cache_dir"] = str(Path(config.cache_dir).absolute())
    if isinstance(config.pretrained, str):
        paths["pretrained"] = str(Path(config.pretrained).expanduser().absolute())
    return paths
