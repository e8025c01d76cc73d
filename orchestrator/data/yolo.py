"""YOLO: a text file of labels per image, and a data.yaml that names the splits and the classes.

    data.yaml             path: ., train: images/train, val: [images/val, more.txt], names: [cat, dog]
    images/train/a/0.jpg  its labels: labels/train/a/0.txt (the last "images" of the path replaced), else beside it
    0.txt                 CLASS CX CY W H           a box
                          CLASS X1 Y1 X2 Y2 ...     a polygon of three or more points

Coordinates are fractions of width and height. A split is a folder, a text file of image paths ("./" is that file's own
folder, else `path` is), or a list of these. An image without labels is background. Without a data.yaml, images/ beside
labels/ (with or without folders of splits) and a classes.txt with a class name per line will do.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

from orchestrator.data import Format, Issue, Source
from orchestrator.data.faults import EXAMPLES, Faults, Wrong, short
from orchestrator.data.files import Files, read_many
from orchestrator.data.images import EXTENSIONS
from orchestrator.data.yolo_layout import Layout, detect, find_layout
from trainables.contracts import Instance, Sample

LOWEST, HIGHEST = -0.5, 1.5
"""Beyond these a coordinate is no fraction that rounding took over the edge."""
AT_A_TIME = 4096
"""Label files that are asked for before their rows are read."""
MISSING = "missing"
"""The stamp of an image that a list names and that is not there; reading it will say so."""


class Item(NamedTuple):
    """An image of a split, and the place of its label file."""

    id: str
    image: str
    stamp: str
    labels: str | None


def read(location: str) -> Source:
    """List images and labels. Raises ValueError for a wrong data.yaml, and for rows that make no sense."""
    layout = find_layout(Files(location))
    issues: list[Issue] = []
    return Source(layout.name, layout.names, _samples(layout, issues), issues)


def _samples(layout: Layout, issues: list[Issue]) -> Iterator[Sample]:
    images = _Images(layout)
    faults = Faults(layout.root.location)
    for split in layout.splits:
        for item, text in _with_text(images.items(split, issues)):
            try:
                objects, repeated = _objects(text, len(layout.names))
            except Wrong as wrong:
                faults.add(f"{images.id(item.labels or '')}:{wrong.what}", wrong.rule)
                continue
            issues += [Issue(item.id, reason, "label") for reason in repeated]
            yield Sample(item.id, split, item.image, item.stamp, objects=objects, relative=True)
    faults.refuse()
    images.refuse_shared()
    issues += images.without_image()


def _with_text(items: Iterable[Item]) -> Iterator[tuple[Item, bytes]]:
    waiting = iter(items)
    while part := list(islice(waiting, AT_A_TIME)):
        texts = read_many(item.labels for item in part if item.labels)
        for item in part:
            yield item, next(texts) if item.labels else b""


# ---------------------------------------------------------------------------------------------- label rows


def _objects(text: bytes, classes: int) -> tuple[tuple[Instance, ...], list[str]]:
    """The objects of a label file, and what was left out. Raises Wrong, which begins with the number of the line."""
    lines: dict[str, int] = {}
    objects: list[Instance] = []
    repeated: list[str] = []
    for number, line in enumerate(text.decode("utf-8-sig", "replace").splitlines(), 1):
        row = line.strip()
        if not row:
            continue
        if row in lines:
            repeated.append(f"line {number} of its labels repeats line {lines[row]}: kept once")
            continue
        lines[row] = number
        try:
            objects.append(_instance(row.split(), classes))
        except Wrong as wrong:
            raise Wrong(f"{number}: {wrong.what}", wrong.rule) from wrong
    return tuple(objects), repeated


def _instance(row: list[str], classes: int) -> Instance:
    try:
        index, *values = map(float, row)
    except ValueError as error:
        raise Wrong(short(" ".join(row)), "is not a row of numbers") from error
    if len(row) == 6:
        raise Wrong(
            "6 columns", "are one more than a box has: with a confidence these look like predictions, not labels"
        )
    if len(row) != 5 and (len(row) < 7 or len(row) % 2 == 0):
        raise Wrong(f"{len(row)} columns", "are neither a box (CLASS CX CY W H) nor a polygon of three or more points")
    if not index.is_integer():
        raise Wrong(f"class {row[0]}", "is not an integer")
    if not 0 <= index < classes:
        raise Wrong(f"class {row[0]}", f"is not one of the {classes} names (0 to {classes - 1})")
    if not all(LOWEST <= value <= HIGHEST for value in values):
        odd = next(text for text, value in zip(row[1:], values, strict=True) if not LOWEST <= value <= HIGHEST)
        raise Wrong(f"coordinate {odd}", "is no fraction of width or height, as YOLO labels are (are these pixels?)")
    if len(row) > 5:
        return Instance(int(index), mask=(tuple(values),))
    x, y, width, height = values
    return Instance(int(index), (x - width / 2, y - height / 2, x + width / 2, y + height / 2))


# -------------------------------------------------------------------------------------- images and their labels


class _Images:
    """The images of all splits, every folder listed once."""

    def __init__(self, layout: Layout) -> None:
        self._layout, self._files = layout, layout.root
        self._folders: dict[str, dict[str, str]] = {}
        """Stamps of the files of a folder, by name."""
        self._labels: dict[str, str] = {}
        """Label folders by image folder."""
        self._split_of: dict[str, str] = {}
        self._shared: list[str] = []

    def items(self, split: str, issues: list[Issue]) -> Iterator[Item]:
        """Raises ValueError where a split has no images, or the training images have no labels."""
        for place in self._layout.splits[split]:
            images = exist = labelled = 0
            for image, stamp in self._listed(place) if place.endswith(".txt") else self._below(place):
                item = Item(self.id(image), image, stamp, self._labels_of(image))
                images, exist, labelled = images + 1, exist + (stamp != MISSING), labelled + (item.labels is not None)
                if self._is_first(item.id, split, issues):
                    yield item
            if not images:
                raise ValueError(f"{place} has no images ({', '.join(sorted(EXTENSIONS))})")
            if not exist:
                raise ValueError(f"none of the {images} images of {place} exists, such as {image}")
            if split == "train" and not labelled:
                folder = posixpath.dirname(image)
                raise ValueError(
                    f"no image of {place} has labels: looked in {_mirrored(folder) or folder} for .txt files"
                )

    def refuse_shared(self) -> None:
        if self._shared:
            raise ValueError(
                f"{self._layout.told_by}: {len(self._shared)} images are in two splits, such as "
                f"{', '.join(self._shared[:EXAMPLES])}; without a val of its own a part of train is held back"
            )

    def without_image(self) -> Iterator[Issue]:
        """The label files that belong to no image."""
        for folder, labels in self._labels.items():
            stems = {posixpath.splitext(name)[0] for name in self._files_of(folder) if _is_image(name)}
            for name in self._files_of(labels):
                stem, suffix = posixpath.splitext(name)
                if suffix == ".txt" and stem not in stems and name != "classes.txt":
                    yield Issue(self.id(f"{labels}/{name}"), "there is no image for these labels", "label")

    def _is_first(self, id: str, split: str, issues: list[Issue]) -> bool:
        before = self._split_of.setdefault(id, "")
        if not before:
            self._split_of[id] = split
        elif before == split:
            issues.append(Issue(id, f"{split} lists it twice: kept once", "label"))
        elif split != "test":  # that some declare to be their val
            self._shared.append(f"{id} ({before} and {split})")
        return not before

    def _listed(self, place: str) -> Iterator[tuple[str, str]]:
        """The images that a text file names."""
        folder = Files(posixpath.dirname(place))
        for line in self._files.read_text(place).splitlines():
            if path := line.strip():
                image = (folder if path.startswith("./") else self._files).place(path)
                yield image, self._files_of(posixpath.dirname(image)).get(posixpath.basename(image), MISSING)

    def _below(self, place: str) -> Iterator[tuple[str, str]]:
        """The images of a folder. Its label folders are listed too: also of those whose images are gone."""
        labels = _mirrored(place)
        if labels and self._files.is_dir(labels):
            self._labels |= {place + folder[len(labels) :]: folder for folder in self._walk(labels)}
        for folder in self._walk(place):
            yield from ((f"{folder}/{name}", stamp) for name, stamp in self._folders[folder].items() if _is_image(name))

    def _walk(self, place: str) -> list[str]:
        found: dict[str, dict[str, str]] = {}
        for entry in self._files.walk(place):
            folder, _, name = entry.path.rpartition("/")
            found.setdefault(folder, {})[name] = entry.stamp
        self._folders |= found
        return list(found)

    def _files_of(self, folder: str) -> dict[str, str]:
        if folder not in self._folders:
            entries = self._files.entries(folder) if self._files.is_dir(folder) else []
            self._folders[folder] = {entry.name: entry.stamp for entry in entries if not entry.is_dir}
        return self._folders[folder]

    def _labels_of(self, image: str) -> str | None:
        folder, _, name = image.rpartition("/")
        text = posixpath.splitext(name)[0] + ".txt"
        for labels in (_mirrored(folder), folder):
            if labels and text in self._files_of(labels):
                self._labels[folder] = labels
                return f"{labels}/{text}"
        return None

    def id(self, place: str) -> str:
        """A path relative to the root."""
        root = self._files.location
        return place[len(root) + 1 :] if place.startswith(f"{root}/") else posixpath.relpath(place, root)


def _mirrored(folder: str) -> str | None:
    """The folder with the labels of a folder of images: its last "images" becomes "labels"."""
    before, found, after = f"{folder}/".rpartition("/images/")
    return f"{before}/labels/{after}".rstrip("/") if found else None


def _is_image(name: str) -> bool:
    return posixpath.splitext(name)[1].lower() in EXTENSIONS


FORMAT = Format(read, detect=detect)
