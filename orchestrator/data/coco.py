"""COCO JSON: boxes and masks (polygons, run lengths), as the COCO data set and most labelling tools have them.

    ROOT/annotations/instances_train2017.json, ...   captions, key points and the like beside them are left alone
    ROOT/train.json, ...                             one JSON without a split: validation is then split off
    ROOT/train/_annotations.coco.json, ...           a JSON in the folder of each split
    x.json                                           one file alone

A word of the file's name, else its folder, tells the split: `instances_val2017` is "val"; `trainval` and all others are
"train". Images lie below the JSON's folder, ROOT, ROOT/images, ROOT/data, or a folder of the split in ROOT or
ROOT/images. A folder that only wraps ROOT is looked through. A JSON for testing without annotations is left alone.

Classes are in the order of their category ids, which may have gaps. A box alone, or a mask alone, is enough; an object
with neither is left out, and so is a polygon of fewer than three points.
"""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Collection, Iterator
from typing import Any

from orchestrator.data import Format, Issue, Source
from orchestrator.data.coco_layout import Images, Part, detect, find
from orchestrator.data.faults import Faults, Wrong, short
from orchestrator.data.files import Files
from trainables.contracts import Instance, Polygons, RunLengths, Sample

LISTS = ("images", "annotations", "categories")
NUMBER = {int, float}
TYPES = {int: "a whole number", str: "text"}
Box = tuple[float, float, float, float]
Key = int | str


def read(location: str) -> Source:
    """List the images of one or several JSON files. Raises ValueError, also while the samples are read."""
    files = Files(location)
    if files.entry() is None:
        raise ValueError(f"there is no file or folder {files.location}")
    root, parts = find(files)
    if not parts:
        raise ValueError(
            f"{files.location} has no COCO JSON: looked for files with images, annotations and categories as "
            "annotations/*.json, *.json and {train,valid,test}/*.json"
        )
    content = _load(root, parts[0])
    categories = _categories(root.place(parts[0].path), content)
    issues: list[Issue] = []
    samples = _samples(root, parts, content, categories, issues)
    return Source(_name(files), tuple(categories.values()), samples, issues)


def _name(files: Files) -> str:
    folder = files.below("..") if files.is_file() else files
    while folder.name in ("annotations", "data", "dataset", "images"):
        folder = folder.below("..")
    return folder.name or files.name


def _load(root: Files, part: Part) -> dict[str, Any]:
    place = root.place(part.path)
    collects = gc.isenabled()
    try:
        gc.disable()  # it would go through millions of new objects again and again: a third of the time
        # NaN becomes null, which is no number where one is asked for.
        content = json.loads(root.read_text(part.path), parse_constant=lambda name: None)
    except OSError as error:
        raise ValueError(f"{place} cannot be read: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{place} is not JSON: line {error.lineno}, column {error.colno}: {error.msg}") from error
    except RecursionError as error:
        raise ValueError(f"{place} is not COCO JSON: it is nested too deeply") from error
    finally:
        if collects:
            gc.enable()
    if not isinstance(content, dict):
        raise ValueError(f"{place} is not COCO JSON, an object with the lists {', '.join(LISTS)}")
    return content


def _records(place: str, content: dict[str, Any], key: str) -> list[dict[str, Any]]:
    if key not in content:
        raise ValueError(f"{place} has no {key!r}: COCO JSON is an object with the lists {', '.join(LISTS)}")
    records = content[key]
    if not isinstance(records, list):
        raise ValueError(f"{place}: {key} is not a list")
    for i, record in enumerate(records):
        if not isinstance(record, dict):
            raise ValueError(f"{place}: {key}[{i}] = {short(record)} is not an object")
    return records


def _categories(place: str, content: dict[str, Any]) -> dict[int, str]:
    """{id: name} in the order of the ids."""
    found: dict[int, str] = {}
    faults = Faults(place)
    for i, record in enumerate(_records(place, content, "categories")):
        try:
            number, name = _of_type(record, "id", int), _of_type(record, "name", str)
            if number in found:
                raise Wrong(f"id = {number}", "is there twice")
            if name in found.values():
                raise Wrong(f"name = {name!r}", "is the name of two categories")
            found[number] = name
        except Wrong as wrong:
            faults.add(f"categories[{i}].{wrong.what}", wrong.rule)
    faults.refuse()
    if not found:
        raise ValueError(f"{place}: categories is empty")
    return dict(sorted(found.items()))


def _samples(
    root: Files, parts: list[Part], content: dict[str, Any], categories: dict[int, str], issues: list[Issue]
) -> Iterator[Sample]:
    """`content` is that of the first part. One file is in memory at a time."""
    images = Images(root)
    labels = {number: label for label, number in enumerate(categories)}
    first = root.place(parts[0].path)
    seen: dict[str, str] = {}
    for part in parts:
        if part is not parts[0]:
            content.clear()
            content = _load(root, part)
        if part.split == "test" and "annotations" not in content and len(parts) > 1:
            continue
        place = root.place(part.path)
        if difference := _difference(categories, _categories(place, content)):
            raise ValueError(f"{place} has other categories than {first}: {difference}")
        sizes, names = _sizes_and_names(place, content)
        paths = images.paths(part, names)
        for i, path in enumerate(paths):
            if (other := seen.setdefault(path, place)) is not place:
                raise ValueError(f"{path} is in {other} and in {place} (images[{i}]): it may be in one split only")
        ids = dict(zip(sizes, paths, strict=True))
        objects = _objects(place, content, labels, ids, issues)
        for key, path in ids.items():
            yield Sample(
                id=path,
                split=part.split,
                image=root.place(path),
                stamp=images.stamp(path),
                objects=tuple(objects.pop(key, ())),
                size=sizes[key],
            )


def _difference(expected: dict[int, str], found: dict[int, str]) -> str:
    for number in sorted(expected.keys() | found.keys()):
        here, there = found.get(number), expected.get(number)
        if here != there:
            return f"id {number} is {'not there' if here is None else repr(here)}, not {there!r}"
    return ""


def _sizes_and_names(place: str, content: dict[str, Any]) -> tuple[dict[Key, tuple[int, int] | None], list[str]]:
    """{image id: (height, width), where told}, and the names of their files."""
    sizes: dict[Key, tuple[int, int] | None] = {}
    names: dict[str, int] = {}
    faults = Faults(place)
    for i, record in enumerate(_records(place, content, "images")):
        try:
            key, name = _of_type(record, "id", int, str), _of_type(record, "file_name", str)
            if key in sizes:
                raise Wrong(f"id = {key!r}", "is the id of two images")
            if name in names:
                raise Wrong(f"file_name = {name!r}", f"is also that of images[{names[name]}]")
            names[name] = i
            sizes[key] = _size(record)
        except Wrong as wrong:
            faults.add(f"images[{i}].{wrong.what}", wrong.rule)
    faults.refuse()
    return sizes, list(names)


def _size(record: dict[str, Any]) -> tuple[int, int] | None:
    height, width = record.get("height"), record.get("width")
    if not height or not width:  # 0, null: not told
        return None
    for key, value in (("height", height), ("width", width)):
        if type(value) not in NUMBER or value != int(value) or value < 0:
            raise Wrong(f"{key} = {short(value)}", "is not a number of pixels")
    return int(height), int(width)


def _objects(
    place: str, content: dict[str, Any], labels: dict[int, int], ids: dict[Key, str], issues: list[Issue]
) -> dict[Key, list[Instance]]:
    """{image id: its objects}, of images that have any."""
    objects: dict[Key, list[Instance]] = {}
    faults = Faults(place)
    for i, record in enumerate(_records(place, content, "annotations")):
        try:
            image = _one_of(record, "image_id", ids, "images")
            label = labels[_one_of(record, "category_id", labels, "categories")]
            box = _box(record.get("bbox"))
            mask, flaw = _mask(record.get("segmentation"))
        except Wrong as wrong:
            faults.add(f"annotations[{i}].{wrong.what}", wrong.rule)
            continue
        if box is None and mask is None:
            flaw = flaw or "it has neither bbox nor segmentation"
        else:
            objects.setdefault(image, []).append(Instance(label, box, mask, bool(record.get("iscrowd"))))
        if flaw:
            issues.append(Issue(ids[image], f"annotations[{i}]: {flaw}", "label"))
    faults.refuse()
    return objects


def _box(value: Any) -> Box | None:
    if value is None or value == []:
        return None
    if not isinstance(value, list) or len(value) != 4 or not _are_numbers(value) or not all(map(math.isfinite, value)):
        raise Wrong(f"bbox = {short(value)}", "is not four numbers: x, y, width, height")
    x, y, width, height = value
    return x, y, x + width, y + height


def _mask(value: Any) -> tuple[Polygons | RunLengths | None, str]:
    """The mask, and what was left out of it."""
    if not value:
        return None, ""
    if isinstance(value, dict):
        return _run_lengths(value), ""
    if not isinstance(value, list):
        raise Wrong(f"segmentation = {short(value)}", "is neither a list of polygons nor run lengths")
    for j, polygon in enumerate(value):
        if not isinstance(polygon, list) or len(polygon) % 2 or not _are_numbers(polygon):
            raise Wrong(f"segmentation[{j}] = {short(polygon)}", "is not a polygon: a list x0, y0, x1, y1, ...")
    polygons = [polygon for polygon in value if len(polygon) >= 6]
    flaw = "a polygon of fewer than three points is left out" if len(polygons) < len(value) else ""
    return polygons or None, flaw


def _run_lengths(value: dict[str, Any]) -> RunLengths:
    counts, size = value.get("counts"), value.get("size")
    if not isinstance(size, list) or len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
        raise Wrong(f"segmentation.size = {short(size)}", "is not a height and a width")
    if not isinstance(counts, str) and not (isinstance(counts, list) and set(map(type, counts)) <= {int}):
        raise Wrong(f"segmentation.counts = {short(counts)}", "is neither a list of whole numbers nor text")
    return {"size": size, "counts": counts}


def _are_numbers(values: list[Any]) -> bool:
    return set(map(type, values)) <= NUMBER


def _of_type(record: dict[str, Any], key: str, *types: type) -> Any:
    value = record.get(key)
    if type(value) not in types or value == "":
        raise Wrong(f"{key} = {short(value)}", f"is not {' or '.join(TYPES[kind] for kind in types)}")
    return value


def _one_of(record: dict[str, Any], key: str, known: Collection[Any], where: str) -> Any:
    value = record.get(key)
    if type(value) not in (int, str) or value not in known:
        raise Wrong(f"{key} = {short(value)}", f"is not in {where}")
    return value


FORMAT = Format(read, detect=detect)
