"""Data: one reader per format, one manifest, one cache of shards, one loader."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from orchestrator.data.files import Files, read_bytes
from trainables.registry import lookup

if TYPE_CHECKING:
    from orchestrator.data.images import Image
    from trainables.contracts import Sample

SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""Our names of the splits, and those that data sets use."""


@dataclass(frozen=True)
class Issue:
    """Something that was left out, and why."""

    id: str
    """Of the sample, or the place of what belongs to no sample."""
    reason: str
    kind: Literal["image", "label"] = "image"
    """A whole image, or labels of an image that stays."""


@dataclass(frozen=True)
class Source:
    """What a reader makes of a location: the data set's name, its classes in order of their index, its samples.

    `samples` may be lazy; `issues` (what the labels had that no sample could keep) is complete once they are read.
    """

    name: str
    classes: tuple[str, ...]
    samples: Iterable[Sample]
    issues: list[Issue] = field(default_factory=list)


@dataclass(frozen=True)
class Format:
    """A data format.

    read: lists a location; ValueError says what is wrong and where (file, line, key).
    load: the content of a sample's image: encoded bytes, or pixels (height, width, 3) RGB uint8.
    detect: why a location looks like this format ("there is a data.yaml"), or None where it does not.
    """

    read: Callable[[str], Source]
    load: Callable[[str], bytes | Image] = read_bytes
    detect: Callable[[Files], str | None] = lambda files: None


FORMATS: dict[str, str] = {
    "digits": "orchestrator.data.digits:FORMAT",
    "yolo": "orchestrator.data.yolo:FORMAT",
    "coco": "orchestrator.data.coco:FORMAT",
    "voc": "orchestrator.data.voc:FORMAT",
    "parquet": "orchestrator.data.parquet:FORMAT",
    "imagefolder": "orchestrator.data.imagefolder:FORMAT",
}
"""Name -> format, in the order of detection. ``package.module:function`` names a reader of the user's own."""


def get_format(name: str) -> Format:
    """The entry of FORMATS, or a reader of the user's own (a function, or a Format). Raises ValueError otherwise."""
    entry = lookup(FORMATS, name, "format")
    if isinstance(entry, Format):
        return entry
    if not callable(entry):
        raise ValueError(f"format {name!r} is neither a function that takes a location nor a Format")
    return Format(entry)


def detect(location: str) -> tuple[str, str]:
    """The format of a location, and why. Raises ValueError where there is nothing to read."""
    if location == "digits":
        return "digits", "the bundled data set"
    files = Files(location)
    if files.entry() is None:
        where = "" if files.remote else f" (looked for {files.location})"
        raise ValueError(f"there is no file or folder {location}{where}; 'digits' is the bundled data set")
    for name in FORMATS:
        if reason := get_format(name).detect(files):
            return name, reason
    raise ValueError(
        f"{location} is in no known format ({', '.join(FORMATS)}): name a folder with class folders, a data.yaml, "
        "COCO JSON, VOC Annotations or Parquet files, or set format to package.module:function, a reader of your own"
    )
