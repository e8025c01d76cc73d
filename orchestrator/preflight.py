"""Everything that can be wrong with a run is found here, on the driver, before anything is started or written."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from orchestrator.config import Config, Problem
from orchestrator.data.manifest import Manifest, read_manifest
from orchestrator.errors import describe
from orchestrator.storage import check_storage
from trainables.contracts import Mode
from trainables.models import Loaded, check_classifier, default_imgsz
from trainables.recipe import Recipe
from trainables.tasks import build_task


@dataclass(frozen=True)
class Checked:
    """A config that can run, with what was found out about it."""

    config: Config
    """With imgsz filled in and paths made absolute."""
    manifest: Manifest
    storage: Path
    cache_dir: Path
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
    manifest = storage = model = task = None
    imgsz = config.imgsz or default_imgsz(config.model)
    try:
        manifest = read_manifest(config.data, config.format)
    except (ValueError, OSError) as error:
        problems.append(Problem("data", f"data = {config.data}: {error}"))
    try:
        task = build_task(config)
    except ValueError as error:
        problems.append(Problem("metric", str(error)))
    try:
        model = check_classifier(config, len(manifest.classes) if manifest else 2, imgsz)
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
    if manifest is None or storage is None or model is None or task is None:
        return None, problems
    resolved = config.model_copy(update=_absolute(config) | {"imgsz": imgsz, "storage": str(storage)})
    cache_dir = cache_root(config)
    return Checked(resolved, manifest, storage, cache_dir, task.primary, task.mode, *model), problems


def cache_root(config: Config) -> Path:
    """The folder of all caches: cache_dir, else ORCHESTRATOR_CACHE, else the user's cache folder."""
    if config.cache_dir or os.environ.get("ORCHESTRATOR_CACHE"):
        return Path(config.cache_dir or os.environ["ORCHESTRATOR_CACHE"]).expanduser().absolute()
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser().absolute() / "orchestrator"


def _key_of(error: ValueError, recipe: Recipe) -> str:
    """The key that a message about the model speaks of."""
    text = str(error)
    if text.startswith("pretrained"):
        return "pretrained"
    return "imgsz" if "imgsz=" in text and recipe.imgsz else "model"


def _absolute(config: Config) -> dict[str, str]:
    """Paths as they hold from any folder, so that the stored config works from everywhere."""
    paths: dict[str, str] = {}
    if Path(config.data).expanduser().exists() and config.data != "digits":
        paths["data"] = str(Path(config.data).expanduser().absolute())
    if isinstance(config.pretrained, str):
        paths["pretrained"] = str(Path(config.pretrained).expanduser().absolute())
    return paths
