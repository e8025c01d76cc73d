"""Data: one reader per format, one manifest, one cache of shards, one loader."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.data.images import decode_file
from trainables.registry import lookup

if TYPE_CHECKING:
    from orchestrator.data.images import Image
    from trainables.contracts import Sample


@dataclass(frozen=True)
class Source:
    """What a reader makes of a location: the data set's name, its classes in order of their index, its samples."""

    name: str
    classes: tuple[str, ...]
    samples: Iterable[Sample]


@dataclass(frozen=True)
class Format:
    """A data format: `read` lists a location (ValueError says what is wrong), `load` gives a sample's pixels."""

    read: Callable[[str], Source]
    load: Callable[[str], Image] = decode_file


FORMATS: dict[str, str] = {
    "imagefolder": "orchestrator.data.imagefolder:FORMAT",
    "digits": "orchestrator.data.digits:FORMAT",
}
"""Name -> reader; the bundled data set is a format of its own."""


def get_format(name: str) -> Format:
    """The entry of FORMATS. Raises ValueError for another name."""
    entry: Format = lookup(FORMATS, name, "format")
    return entry


def detect(location: str) -> tuple[str, str]:
    """The format of a location, and why. Raises ValueError where there is nothing to read."""
    if location == "digits":
        return "digits", "the bundled data set"
    folder = Path(location).expanduser()
    if not folder.exists():
        raise ValueError(f"there is no folder {folder} (looked in {Path.cwd()}); 'digits' is the bundled data set")
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file; name the folder that holds the images")
    return "imagefolder", "a folder of class folders"
