"""Pascal VOC: an XML file of boxes per image, and lists of the images of each split.

    ROOT/Annotations/NAME.xml, ROOT/JPEGImages/NAME.jpg (or images/), ROOT/ImageSets/Main/{train,val,test}.txt
    ROOT/train/NAME.xml beside NAME.jpg, and the same under valid and test    as labelling sites export it
    ROOT/NAME.xml beside NAME.jpg                                             without splits

`trainval.txt` counts where train.txt or val.txt lacks; lists per class (aeroplane_train.txt) are ignored. Without lists
everything is for training, and validation is split off. Folders that only wrap ROOT (VOCdevkit/VOC2012) are looked
through. The image is the one with the XML's own name, else that of its <filename>. VOC has an XML also for an image
without objects, so a listed image without one is not labelled: it is left out and reported (a test list without any XML
is ignored, as VOC's own were not published).

Classes are the names found, sorted, unless ROOT has a classes.txt, labels.txt (a name per line) or labelmap.txt.
`difficult` objects are neither to be found nor to be missed, as in VOC's evaluation. SegmentationObject is not read.

VOC counts pixels from 1, and a box holds its last pixel: 1 and 500 are the sides of a box that spans an image 500 wide,
so 1 is taken off xmin and ymin. But many tools count edges from 0. VOC cannot have a side below 1, so one such xmin or
ymin tells that the whole data set counts from 0, and nothing is taken off. A box with xmin = xmax is a slip of the
labelling, not one pixel wide: it stays without area, so that it is dropped and listed with the others.
"""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from xml.etree import ElementTree

from orchestrator.data import Format, Source
from orchestrator.data.faults import Faults, Wrong
from orchestrator.data.files import Files
from orchestrator.data.voc_layout import Item, detect, find, items
from trainables.contracts import Instance, Sample
from trainables.registry import did_you_mean

CLASS_LISTS = ("classes.txt", "labels.txt", "labelmap.txt")
SIDES = ("xmin", "ymin", "xmax", "ymax")
READERS, CHUNK = 32, 1024
"""Files of a bucket that are read at a time, and that are asked for."""


@dataclass(frozen=True, slots=True)
class _Annotation:
    """What an XML file says of its image."""

    filename: str
    size: tuple[int, int] | None
    names: list[str]
    """Of its objects."""
    values: array[float]
    """Of all objects, four sides and `difficult`: a million images have ten million boxes."""


def read(location: str) -> Source:
    """List the images of a folder. Raises ValueError where files, lists or annotations make no sense."""
    files = Files(location)
    if not files.is_dir():
        raise ValueError(f"there is no folder {files.location}")
    found = find(files)
    if len(found) != 1:
        several = f"several data sets, name one: {', '.join(root.location for root, _ in found)}"
        none = "no VOC annotations: expected Annotations/*.xml, or *.xml beside the images"
        raise ValueError(f"{files.location} has {several if found else none}")
    root, folders = found[0]
    listed, issues = items(root, folders)
    annotations = _read_all(root, listed)
    if listed and not any(i.images.find(i.key, a.filename) for i, a in zip(listed, annotations, strict=True)):
        raise ValueError(
            f"{root.place(listed[0].xml)} and all others have no image: looked for {listed[0].key}.* and "
            f"{annotations[0].filename} in {root.place(listed[0].images.folder)}"
        )
    classes = _classes(root, listed, annotations)
    return Source(files.name, classes, _samples(root, listed, annotations, classes), issues)


def _read_all(root: Files, listed: list[Item]) -> list[_Annotation]:
    annotations: list[_Annotation] = []
    faults = Faults(root.location)
    for found in _parsed(root, [item.xml for item in listed]):
        if isinstance(found, Wrong):
            faults.add(found.what, found.rule)
        else:
            annotations.append(found)
    faults.refuse()
    return annotations


def _parsed(root: Files, paths: list[str]) -> Iterator[_Annotation | Wrong]:
    """In the order of the paths. Those of a bucket are read side by side: each takes a while to come."""
    if not root.remote:
        yield from (_parse(root, path) for path in paths)
        return
    with ThreadPoolExecutor(READERS) as pool:
        for start in range(0, len(paths), CHUNK):
            yield from pool.map(lambda path: _parse(root, path), paths[start : start + CHUNK])


def _parse(root: Files, path: str) -> _Annotation | Wrong:
    try:
        data = root.read(path)
        # No entity is declared outside a DOCTYPE. The zeros are those of UTF-16, which expat reads as well.
        if b"<!DOCTYPE" in data.replace(b"\0", b""):
            raise Wrong(path, "has a DOCTYPE, which may blow up to any size: remove it")
        tree = ElementTree.fromstring(data)
        if tree.tag != "annotation":
            raise Wrong(path, f"is no VOC annotation but <{tree.tag}>")
        objects = tree.findall("object")
        names: list[str] = []
        values = array("d")
        for i, item in enumerate(objects):
            try:
                names.append(_name(item))
                values.extend(_values(item))
            except Wrong as wrong:
                raise Wrong(f"{path}, line {_line(data, i)}: {wrong.what}", wrong.rule) from wrong
    except Wrong as wrong:
        return wrong
    except OSError as error:
        return Wrong(path, f"cannot be read: {error.strerror}")
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        return Wrong(path, f"is not XML: {error}")
    return _Annotation((tree.findtext("filename") or "").strip(), _size(tree), names, values)


def _name(item: ElementTree.Element) -> str:
    name = (item.findtext("name") or "").strip()
    if not name:
        raise Wrong("<object>", "has no name")
    return name


def _values(item: ElementTree.Element) -> Iterator[float]:
    box = item.find("bndbox")
    if box is None:
        raise Wrong("<object>", "has no bndbox")
    for side in SIDES:
        yield _number(side, box.findtext(side))
    yield _number("difficult", item.findtext("difficult") or "0")


def _number(name: str, text: str | None) -> float:
    try:
        number = float(text or "")
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise Wrong(f"{name} = {text!r}" if text else f"{name}", "is not a number" if text else "is missing")
    return number


def _line(data: bytes, index: int) -> int:
    """Where an object begins; the tree does not remember."""
    starts = [match.start() for match in re.finditer(rb"<object[\s>]", data)]
    return data.count(b"\n", 0, starts[index] if index < len(starts) else 0) + 1


def _size(tree: ElementTree.Element) -> tuple[int, int] | None:
    try:
        height, width = (int(float(tree.findtext(f"size/{side}") or 0)) for side in ("height", "width"))
    except (OverflowError, ValueError):
        return None
    return (height, width) if height > 0 and width > 0 else None


def _classes(root: Files, listed: list[Item], annotations: list[_Annotation]) -> tuple[str, ...]:
    first: dict[str, str] = {}
    for item, annotation in zip(listed, annotations, strict=True):
        for name in annotation.names:
            first.setdefault(name, item.xml)
    path = next((path for path in CLASS_LISTS if root.is_file(path)), None)
    if path is None:
        return tuple(sorted(first))
    declared = _declared(root, path)
    faults = Faults(root.location)
    for name in sorted(first.keys() - declared):
        faults.add(f"{first[name]}: {name!r}", f"is not in {path}: {did_you_mean(name, declared)}")
    faults.refuse()
    return tuple(declared)


def _declared(root: Files, path: str) -> dict[str, int]:
    """{class name: its line}; a labelmap.txt has more in a line (name:color:parts:actions), and comments."""
    declared: dict[str, int] = {}
    for number, line in enumerate(root.read_text(path).splitlines(), 1):
        name = line.strip()
        if path == "labelmap.txt":
            name = "" if name.startswith("#") else name.partition(":")[0].strip()
            if name == "background":
                continue
        if name and name in declared:
            raise ValueError(f"{root.place(path)}, line {number}: {name!r} is also in line {declared[name]}")
        if name:
            declared[name] = number
    return declared


def _samples(
    root: Files, listed: list[Item], annotations: list[_Annotation], classes: tuple[str, ...]
) -> Iterator[Sample]:
    labels = {name: label for label, name in enumerate(classes)}
    first = 0 if any(_counts_from_zero(annotation) for annotation in annotations) else 1
    for item, annotation in zip(listed, annotations, strict=True):
        path = item.images.find(item.key, annotation.filename) or item.images.expected(item.key, annotation.filename)
        yield Sample(
            id=path,
            split=item.split,
            image=root.place(path),
            stamp=item.images.stamp(path),
            objects=tuple(_instances(annotation, labels, first)),
            size=annotation.size,
        )


def _boxes(annotation: _Annotation) -> Iterator[tuple[float, ...]]:
    """xmin, ymin, xmax, ymax, difficult of each object."""
    return zip(*[iter(annotation.values)] * 5, strict=True)


def _counts_from_zero(annotation: _Annotation) -> bool:
    return any(0 <= min(x0, y0) < 1 and x0 < x1 and y0 < y1 for x0, y0, x1, y1, _ in _boxes(annotation))


def _instances(annotation: _Annotation, labels: dict[str, int], first: int) -> Iterator[Instance]:
    for name, (x0, y0, x1, y1, difficult) in zip(annotation.names, _boxes(annotation), strict=True):
        left, top = x0 - first if x0 < x1 else x0, y0 - first if y0 < y1 else y0
        yield Instance(labels[name], (left, top, x1, y1), crowd=difficult > 0)


FORMAT = Format(read, detect=detect)
