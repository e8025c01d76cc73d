"""ImageFolder: a folder per class, as torchvision and most published data sets have it.

    ROOT/train/CLASS/.../image.jpg   and the same under val (also valid, validation) and test
    ROOT/CLASS/.../image.jpg         without splits: validation is then split off

Folders that only wrap the classes (ROOT/train/Fruit/Apple with nothing beside Fruit) are looked through.
"""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.data import SPLITS, Format, Source
from orchestrator.data.files import Entry, Files
from orchestrator.data.images import EXTENSIONS
from trainables.contracts import Sample

PROBED, DEPTH = 3, 5
"""How many folders of a level, and how many levels, detection looks into."""


def read(location: str) -> Source:
    """List the images of a folder. Raises ValueError where classes or images are missing."""
    root = Files(location)
    if not root.is_dir():
        raise ValueError(f"{root.location} is not a folder: ImageFolder is a folder of class folders")
    splits = _splits(root)
    wrapper = _wrapper(root, splits["train"])
    folders = {split: _join(folder, wrapper) for split, folder in splits.items()}
    train = folders["train"]
    classes = tuple(sorted(entry.name for entry in _listed(root, train) if entry.is_dir))
    if not classes:
        raise ValueError(f"{root.place(train)} has no class folders: expected {root.place(train)}/CLASS/image.jpg")
    samples = [s for split, folder in folders.items() for s in _read_split(root, split, folder, classes)]
    _refuse_useless(root.place(train), classes, samples)
    if "val" in splits and not any(sample.split == "val" for sample in samples):
        raise ValueError(
            f"{root.place(folders['val'])} has no images: add some, or remove {root.place(splits['val'])} "
            "to hold back a part of the training images"
        )
    return Source(root.name, classes, samples)


def detect(files: Files) -> str | None:
    return "a folder of class folders" if files.is_dir() and _images_below(files, "", DEPTH) else None


def _images_below(files: Files, path: str, depth: int) -> bool:
    """Whether there are images in the first folders below a folder, or in the first below those."""
    for folder in [entry.path for entry in files.entries(path) if entry.is_dir][:PROBED]:
        if any(_is_image(entry) for entry in files.entries(folder)):
            return True
        if depth > 1 and _images_below(files, folder, depth - 1):
            return True
    return False


def _splits(root: Files) -> dict[str, str]:
    folders = {entry.name.lower(): entry.name for entry in root.entries() if entry.is_dir}
    found = {
        split: folders[name]
        for split, names in SPLITS.items()
        for name in names[::-1]  # the first of the names wins
        if name in folders
    }
    if found and "train" not in found and len(found) == len(folders):
        raise ValueError(f"{root.location} has {' and '.join(sorted(folders.values()))} but no train folder")
    return found if "train" in found else {"train": ""}


def _wrapper(root: Files, train: str) -> str:
    """The path below a split through folders that hold one folder and nothing else that leads to the classes."""
    wrapper = ""
    while True:
        entries = root.entries(_join(train, wrapper))
        folders = [entry for entry in entries if entry.is_dir]
        if len(folders) != 1 or any(_is_image(entry) for entry in entries):
            return wrapper
        if not any(entry.is_dir for entry in root.entries(folders[0].path)):
            return wrapper
        wrapper = _join(wrapper, folders[0].name)


def _read_split(root: Files, split: str, folder: str, classes: tuple[str, ...]) -> Iterator[Sample]:
    unknown = sorted({entry.name for entry in _listed(root, folder) if entry.is_dir} - set(classes))
    if unknown:
        raise ValueError(
            f"{root.place(folder)} has class folders that the training images lack: {', '.join(unknown[:5])}; "
            f"the classes are {', '.join(classes[:8])}{', ...' if len(classes) > 8 else ''}"
        )
    index = {name: label for label, name in enumerate(classes)}
    start = len(folder) + 1 if folder else 0
    for entry in root.walk(folder) if root.is_dir(folder) else ():
        name, _, deeper = entry.path[start:].partition("/")
        if deeper and _is_image(entry):
            yield Sample(entry.path, split, root.place(entry.path), entry.stamp, index[name])


def _refuse_useless(folder: str, classes: tuple[str, ...], samples: list[Sample]) -> None:
    if not samples:
        raise ValueError(f"{folder} has no images ({', '.join(sorted(EXTENSIONS))})")
    seen = {sample.label for sample in samples if sample.split == "train"}
    empty = [name for label, name in enumerate(classes) if label not in seen]
    if empty:
        raise ValueError(
            f"class folders without images in {folder}: {', '.join(empty[:5])}; add images or remove the folders"
        )


def _listed(root: Files, folder: str) -> list[Entry]:
    return root.entries(folder) if root.is_dir(folder) else []


def _is_image(entry: Entry) -> bool:
    return not entry.is_dir and entry.suffix in EXTENSIONS


def _join(*parts: str) -> str:
    return "/".join(part for part in parts if part)


FORMAT = Format(read, detect=detect)
