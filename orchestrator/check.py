"""`orchestrator check CONFIG|DATA`: look at every image and label of a data set, and write down what was found."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from orchestrator.checking.screen import CheckScreen
from orchestrator.config import Config, ConfigError, Problem
from orchestrator.data import SPLITS
from orchestrator.data.files import is_remote
from orchestrator.drafts import replacing
from orchestrator.launch import cpu_count
from orchestrator.reading import Source, read_source, validate

if TYPE_CHECKING:
    from orchestrator.checking.check import Report
    from orchestrator.data.objects import Frame

MAX_THREADS = 32


@dataclass(frozen=True)
class Target:
    """What is to be checked, and how a run would read it. `source`: of a config, to say where a value was set."""

    location: str
    format: str = "auto"
    frame: Frame = "auto"
    max_bad_fraction: float = Config.model_fields["max_bad_fraction"].default
    source: Source | None = None

    def wrong(self, error: Exception) -> ConfigError:
        """What is wrong with the data, with the place in the config that names it."""
        if self.source is None:
            return ConfigError(str(error))
        return self.source.report([Problem("data", f"data = {self.location}: {error}")])


def check(
    target: str,
    overrides: Sequence[str] = (),
    format: str | None = None,
    out: str | Path | None = None,
    screen: CheckScreen | None = None,
) -> Report:
    """Check a config's data or a data set, write check.json and check.html, and return what was found.

    target: a config's YAML file, a data set's file or folder, a URI, or "digits". out: ./check-NAME by default.
    Raises ConfigError for what cannot be read at all; the report tells whether a run would refuse the data.
    """
    screen = screen or CheckScreen()
    chosen = find_target(target, overrides, format)
    from orchestrator.checking.check import check as check_data
    from orchestrator.checking.page import render
    from orchestrator.data.manifest import read_manifest

    threads = MAX_THREADS if is_remote(chosen.location) else min(cpu_count(), MAX_THREADS)
    screen.waiting("listing the data set")
    try:
        manifest = read_manifest(chosen.location, chosen.format, SPLITS)
    except (ValueError, OSError) as error:
        raise chosen.wrong(error) from error
    with _folder(out or f"check-{_file_name(manifest.name)}") as folder:
        report = check_data(manifest, chosen.location, chosen.frame, chosen.max_bad_fraction, threads, screen.checking)
        screen.waiting("drawing the pictures")
        page = render(report, chosen.frame, threads)
        _write(folder / "check.json", json.dumps(report.to_json(), indent=1, allow_nan=False))
        _write(folder / "check.html", page)
    screen.report(report, folder)
    return report


def find_target(target: str, overrides: Sequence[str] = (), format: str | None = None) -> Target:
    """What a word on the command line means. Raises ConfigError."""
    if not _is_config(target):
        if overrides:
            raise ConfigError(f"{overrides[0]} overrides a config, but {target} is data; its format is set by --format")
        return Target(target, format or "auto")
    source = read_source(target, [*overrides, *([f"format={format}"] if format else [])])
    config, problems = validate(source)
    if problems or config is None:
        raise source.report(problems)
    return Target(config.data, config.format, config.exif_labels, config.max_bad_fraction, source)


def _is_config(target: str) -> bool:
    """A YAML file, but for the data.yaml of YOLO data: it has names and splits, and no task."""
    path = Path(target).expanduser()
    if is_remote(target) or path.suffix.lower() not in (".yaml", ".yml") or path.is_dir():
        return False
    try:
        values: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return True  # reading it as a config tells what is wrong with it
    return not (
        isinstance(values, dict)
        and "names" in values
        and ("train" in values or "val" in values)
        and "task" not in values
    )


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "data"


@contextmanager
def _folder(path: str | Path) -> Iterator[Path]:
    """A folder to write to, made before the work begins; taken away again where the work fails and it is empty."""
    folder = Path(path).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
    except OSError as error:
        raise ConfigError(
            f"cannot write to {folder}: {error.strerror or error}; name another folder with --out"
        ) from error
    finally:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _write(path: Path, text: str) -> None:
    """Write a file in one rename, so that nobody finds half of it."""
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8", errors="backslashreplace")
