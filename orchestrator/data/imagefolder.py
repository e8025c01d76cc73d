"""ImageFolder: a folder per class, as torchvision and most published data sets have it.

    ROOT/train/CLASS/.../image.jpg   and the same under val (also valid, validation) and test
    ROOT/CLASS/.../image.jpg         without splits: validation is then split off

Folders that only wrap the classes (ROOT/train/Fruit/Apple with nothing beside Fruit) are looked through.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from orchestrator.data import Format, Source
from orchestrator.data.images import EXTENSIONS
from trainables.contracts import Sample

SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


def read(location: str) -> Source:
    """List the images of a folder. Raises ValueError where classes or images are missing."""
    root = Path(location).expanduser().absolute()
    splits = _splits(root)
    train = splits["train"]
    wrapper = _wrapper(train)
    classes = tuple(sorted(_subfolders(train / wrapper)))
    if not classes:
        raise ValueError(f"{train / wrapper} has no class folders: expected {train / wrapper}/CLASS/image.jpg")
    samples: list[Sample] = []
    for split, folder in splits.items():
        samples += _read_split(root, split, folder / wrapper, classes)
    _refuse_useless(train / wrapper, classes, samples)
    if "val" in splits and not any(sample.split == "val" for sample in samples):
        raise ValueError(
            f"{splits['val'] / wrapper} has no images: add some, or remove {splits['val']} "
            "to hold back a part of the training images"
        )
    return Source(root.parent.name if root.name in ("data", "dataset", "images") else root.name, classes, samples)


def _splits(root: Path) -> dict[str, Path]:
    folders = {name.lower(): name for name in _subfolders(root)}
    found = {
        split: root / folders[name]
        for split, names in SPLITS.items()
        for name in names[::-1]  # the first of the names wins
        if name in folders
    }
    if found and "train" not in found and len(found) == len(folders):
        raise ValueError(f"{root} has {' and '.join(folders.values())} but no train folder")
    return found if "train" in found else {"train": root}


def _wrapper(train: Path) -> Path:
    """The path below a split through folders that hold one folder and nothing else that leads to the classes."""
    wrapper = Path()
    while True:
        folders = _subfolders(train / wrapper)
        if len(folders) != 1 or not _subfolders(train / wrapper / folders[0]) or _has_images(train / wrapper):
            return wrapper
        wrapper /= folders[0]


def _read_split(root: Path, split: str, folder: Path, classes: tuple[str, ...]) -> list[Sample]:
    if not folder.is_dir():
        return []
    unknown = sorted(set(_subfolders(folder)) - set(classes))
    if unknown:
        raise ValueError(
            f"{folder} has class folders that the training images lack: {', '.join(unknown[:5])}; "
            f"the classes are {', '.join(classes[:8])}{', ...' if len(classes) > 8 else ''}"
        )
    return [
        Sample(
            id=os.path.relpath(entry.path, root).replace(os.sep, "/"),
            split=split,
            image=entry.path,
            stamp=_stamp(entry),
            label=label,
        )
        for label, name in enumerate(classes)
        for entry in _images(folder / name)
    ]


def _refuse_useless(folder: Path, classes: tuple[str, ...], samples: list[Sample]) -> None:
    if not samples:
        raise ValueError(f"{folder} has no images ({', '.join(sorted(EXTENSIONS))})")
    seen = {sample.label for sample in samples if sample.split == "train"}
    empty = [name for label, name in enumerate(classes) if label not in seen]
    if empty:
        raise ValueError(
            f"class folders without images in {folder}: {', '.join(empty[:5])}; add images or remove the folders"
        )


def _stamp(entry: os.DirEntry[str]) -> str:
    try:
        stat = entry.stat()
    except OSError:  # a link to nowhere; reading it will say so
        return "unreadable"
    return f"{stat.st_size}:{stat.st_mtime_ns}"


def _images(folder: Path) -> Iterator[os.DirEntry[str]]:
    """The image files below a folder, symbolic links followed, in a stable order."""
    if not folder.is_dir():
        return
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        if entry.is_dir():
            yield from _images(Path(entry.path))
        elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS and not entry.name.startswith("."):
            yield entry


def _has_images(folder: Path) -> bool:
    return any(os.path.splitext(entry.name)[1].lower() in EXTENSIONS for entry in os.scandir(folder))


def _subfolders(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return [entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")]


FORMAT = Format(read)
