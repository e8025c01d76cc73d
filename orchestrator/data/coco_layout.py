"""Where COCO data sets keep their JSON files and images (`orchestrator.data.coco` reads what is in them)."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from orchestrator.data import SPLITS
from orchestrator.data.files import Entry, Files, open_input

SPLIT_OF = {name: split for split, names in SPLITS.items() for name in names}
OTHER_KINDS = ("captions_", "image_info_", "panoptic_", "person_keypoints_", "stuff_")
"""What the COCO data set's own files beside `instances_` are called."""
LISTS = re.compile(rb'"(images|annotations|categories)"\s*:\s*\[')
HEAD_BYTES = 65536
SOME = 5
"""Images that are tried to find the folder of all."""
MANY = 100
"""Folders from which on one listing of all that is below them is cheaper than one of each."""


@dataclass(frozen=True)
class Part:
    """One JSON file: its path from the root, and the split that it holds."""

    path: str
    split: str

    @property
    def stem(self) -> str:
        return posixpath.basename(self.path).removesuffix(".json")


def find(files: Files) -> tuple[Files, list[Part]]:
    """The root of a data set and its JSON files, those for training first; none where there is no COCO JSON."""
    if files.is_file():
        folder = files.below("..")
        inside = folder.name.lower() == "annotations" or folder.name.lower() in SPLIT_OF
        return (
            (folder.below(".."), _parts([f"{folder.name}/{files.name}"])) if inside else (folder, _parts([files.name]))
        )
    top = files.entries()
    paths = _json_files(files, top)
    folders = [entry for entry in top if entry.is_dir]
    if not paths and len(folders) == 1:
        files = files.below(folders[0].path)
        paths = _json_files(files, files.entries())
    return files, _parts(paths)


def detect(files: Files) -> str | None:
    if files.is_file():
        return "it is a JSON file" if files.name.lower().endswith(".json") else None
    root, parts = find(files)
    return f"{root.place(parts[0].path)} is COCO JSON" if parts else None


def _json_files(root: Files, top: list[Entry]) -> list[str]:
    for place in _listings(root, top):
        paths = [e for e in place if e.suffix == ".json" and not e.is_dir and not e.name.startswith(OTHER_KINDS)]
        if instances := [e.path for e in paths if e.name.startswith("instances_")]:
            return instances
        if found := [e.path for e in paths if e.stamp != "unreadable" and _is_coco(root, e)]:
            return found
    return []


def _listings(root: Files, top: list[Entry]) -> Iterator[list[Entry]]:
    """The places that may hold the JSON files, the likeliest first."""
    folders = {entry.name.lower(): entry.path for entry in top if entry.is_dir}
    if path := folders.get("annotations"):
        yield root.entries(path)
    yield top
    yield [entry for name, path in folders.items() if name in SPLIT_OF for entry in root.entries(path)]


def _is_coco(root: Files, entry: Entry) -> bool:
    """Whether the first lines look like COCO: the folder may hold other JSON, and ours may be huge."""
    with open_input(root.place(entry.path)) as file:
        head: bytes = file.read(HEAD_BYTES)
    return head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{") and LISTS.search(head) is not None


def _parts(paths: Iterable[str]) -> list[Part]:
    parts = [Part(path, _split(path)) for path in paths]
    if any(part.split == "train" and "train" in _words(part) for part in parts):  # then `trainval` repeats it
        parts = [part for part in parts if "trainval" not in _words(part)]
    return sorted(parts, key=lambda part: list(SPLITS).index(part.split))


def _words(part: Part) -> set[str]:
    return set(re.findall("[a-z]+", part.path.lower()))


def _split(path: str) -> str:
    folder, name = posixpath.split(path.lower())
    for text in (name, posixpath.basename(folder)):
        words = re.findall("[a-z]+", text)
        if split := next((SPLIT_OF[word] for word in words if word in SPLIT_OF), None):
            return split
        if "trainval" in words:
            break
    return "train"


class Images:
    """The image files of a data set, from one listing per folder."""

    def __init__(self, root: Files) -> None:
        self.root = root
        self.stamps: dict[str, str] = {}
        self.listed: set[str] = set()

    def paths(self, part: Part, names: list[str]) -> list[str]:
        """Where the images of a JSON are, from the root. ValueError where not one of the first is to be found."""
        names = [name.replace("\\", "/") for name in names]
        bases = self._bases(part)
        for plain in (False, True):  # paths of the machine that wrote the JSON: only their last part tells something
            for base in bases:
                found = [_join(base, name, plain) for name in names[:SOME]]
                if any(self.root.is_file(path) for path in found):
                    paths = [_join(base, name, plain) for name in names]
                    self._list({posixpath.dirname(path) for path in paths})
                    return paths
        if not names:
            return []
        raise ValueError(
            f"{self.root.place(part.path)}: its images are not to be found (images[0].file_name = {names[0]!r}); "
            f"looked below {', '.join(self.root.place(base) for base in bases)}"
        )

    def stamp(self, path: str) -> str:
        return self.stamps.get(path, "missing")

    def _bases(self, part: Part) -> list[str]:
        tail = part.stem.removeprefix("instances_")
        folders = [*SPLITS[part.split], f"{part.split}2017", f"{part.split}2014", tail]
        bases = [posixpath.dirname(part.path), "", "images", "data", *folders, *(f"images/{name}" for name in folders)]
        return [base for base in dict.fromkeys(bases) if not base or self.root.is_dir(base)]

    def _list(self, folders: set[str]) -> None:
        new = sorted(folders - self.listed)
        if len(new) > MANY:
            listings = [self.root.walk(posixpath.commonpath(new))]
        else:
            listings = [iter(self.root.entries(path)) for path in new if not path or self.root.is_dir(path)]
        for listing in listings:
            self.stamps.update((entry.path, entry.stamp) for entry in listing if not entry.is_dir)
        self.listed |= folders


def _join(base: str, name: str, plain: bool) -> str:
    return posixpath.normpath(posixpath.join(base, posixpath.basename(name) if plain else name))
