"""Where Pascal VOC data sets keep annotations, images and lists (`orchestrator.data.voc` reads what is in them)."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass

from orchestrator.data import SPLITS, Issue
from orchestrator.data.files import Entry, Files
from orchestrator.data.images import EXTENSIONS

LISTS = "ImageSets/Main"
IMAGE_FOLDERS = ("jpegimages", "images")
FEW = 5
"""Folders up to which each may be ROOT (VOC2007 in VOCdevkit); more of them are no wrapper."""
DEPTH = 2
SOME = 5
"""XML files that are looked into to see what they are."""


class Images:
    """The images of a folder, from one listing."""

    def __init__(self, root: Files, folder: str) -> None:
        self.folder = folder
        self.stamps = {entry.path: entry.stamp for entry in root.walk(folder) if entry.suffix in EXTENSIONS}
        if not self.stamps:
            raise ValueError(f"{root.place(folder)} has no images ({', '.join(sorted(EXTENSIONS))})")
        self.named: dict[str, list[str]] = {}
        for path in self.stamps:
            self.named.setdefault(_key(folder, path), []).append(path)

    def find(self, key: str, filename: str = "") -> str | None:
        """The image of an annotation; `filename` tells between several, and where none has the annotation's name."""
        named = self.named.get(key, [])
        path = posixpath.join(self.folder, filename)
        return path if path in named or (not named and path in self.stamps) else next(iter(named), None)

    def expected(self, key: str, filename: str) -> str:
        """Where an image should be that is not there."""
        name = posixpath.basename(filename.replace("\\", "/"))
        return posixpath.join(self.folder, name or f"{key}.jpg")

    def stamp(self, path: str) -> str:
        return self.stamps.get(path, "missing")


@dataclass(frozen=True)
class Folders:
    """Annotations and their images. split: of all of them; None: ImageSets tells."""

    annotations: str
    images: str
    split: str | None


@dataclass(frozen=True, slots=True)
class Item:
    """An annotation that counts: the path of its XML, and that path below its folder without suffix."""

    xml: str
    key: str
    split: str
    images: Images


def detect(files: Files) -> str | None:
    if not files.is_dir() or not (found := find(files)):
        return None
    root, folders = found[0]
    return f"{root.place(folders[0].annotations)} has XML annotations"


def find(files: Files, depth: int = DEPTH) -> list[tuple[Files, list[Folders]]]:
    """Every folder that is the root of a data set: this one, else those below it."""
    top = files.entries()
    if folders := _folders(files, top):
        return [(files, folders)]
    below = [entry.path for entry in top if entry.is_dir]
    if not depth or len(below) > FEW:
        return []
    return [found for path in below for found in find(files.below(path), depth - 1)]


def items(root: Files, parts: list[Folders]) -> tuple[list[Item], list[Issue]]:
    """The annotations to read in the order of their lists, and what of the lists has none."""
    found: list[Item] = []
    issues: list[Issue] = []
    for part in parts:
        images = Images(root, part.images)
        xmls = {_key(part.annotations, e.path): e.path for e in root.walk(part.annotations) if e.suffix == ".xml"}
        lists = {} if part.split else _lists(root)
        if not lists:
            found += [Item(xml, key, part.split or "train", images) for key, xml in xmls.items()]
        _refuse_leaks(root, lists)
        for split, (path, names) in lists.items():
            keys = {name: name if name in xmls else _without_suffix(name) for name in names}
            if names and not any(key in xmls for key in keys.values()):
                if split == "test":  # VOC's own are not published
                    continue
                raise ValueError(
                    f"{root.place(path)}: none of its {len(names)} images, such as {names[0]}, has an XML file in "
                    f"{root.place(part.annotations)}"
                )
            for name, key in keys.items():
                if key in xmls:
                    found.append(Item(xmls[key], key, split, images))
                else:
                    id = images.find(key) or name
                    issues.append(Issue(id, f"{path} lists it, but {part.annotations} has no {key}.xml"))
    return found, issues


def _folders(root: Files, top: list[Entry]) -> list[Folders]:
    folders = {entry.name.lower(): entry.path for entry in top if entry.is_dir}
    path = folders.get("annotations")
    if path and _has_annotations(root, root.entries(path)):
        return [Folders(path, next((folders[name] for name in IMAGE_FOLDERS if name in folders), path), None)]
    if _has_annotations(root, top):
        return [Folders("", "", "train")]
    return [
        Folders(folders[name], folders[name], split)
        for split, names in SPLITS.items()
        for name in names
        if name in folders and _has_annotations(root, root.entries(folders[name]))
    ]


def _has_annotations(root: Files, entries: list[Entry]) -> bool:
    first = [entry.path for entry in entries if entry.suffix == ".xml" and _is_readable(entry)]
    return any(b"<annotation" in root.read(path) for path in first[:SOME])


def _is_readable(entry: Entry) -> bool:
    return not entry.is_dir and entry.stamp != "unreadable"


def _lists(root: Files) -> dict[str, tuple[str, list[str]]]:
    """{split: the path of its list and the names in it}"""
    if not root.is_dir(LISTS):
        return {}
    paths = {posixpath.splitext(e.name)[0].lower(): e.path for e in root.entries(LISTS) if e.suffix == ".txt"}
    found = {split: paths[name] for split, names in SPLITS.items() for name in names[::-1] if name in paths}
    if "trainval" in paths and not {"train", "val"} <= found.keys():
        found = {"train": paths["trainval"]} | {split: path for split, path in found.items() if split == "test"}
    if found and "train" not in found:
        raise ValueError(f"{root.place(LISTS)} has {' and '.join(found)} but neither train.txt nor trainval.txt")
    return {split: (path, list(dict.fromkeys(_lines(root, path)))) for split, path in found.items()}


def _lines(root: Files, path: str) -> Iterator[str]:
    return (line.strip() for line in root.read_text(path).splitlines() if line.strip())


def _refuse_leaks(root: Files, lists: dict[str, tuple[str, list[str]]]) -> None:
    seen: dict[str, str] = {}
    for path, names in lists.values():
        for name in names:
            if (other := seen.setdefault(name, path)) != path:
                raise ValueError(
                    f"{name} is in {root.place(other)} and in {root.place(path)}: it may be in one split only"
                )


def _without_suffix(name: str) -> str:
    stem, suffix = posixpath.splitext(name)
    return stem if suffix.lower() in EXTENSIONS else name


def _key(folder: str, path: str) -> str:
    return posixpath.splitext(path[len(folder) :].lstrip("/"))[0]
