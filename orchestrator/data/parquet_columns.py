"""Which columns of a Parquet data set hold images, classes and objects, and what a row of them says."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.data.faults import Wrong, short
from trainables.contracts import Instance

IMAGES = ("image", "img", "picture")
LABELS = ("label", "labels", "class", "category", "fine_label", "target")
OBJECTS = ("objects", "annotations", "instances")
BOXES = ("bbox", "bboxes", "boxes", "xyxy")
CORNERS = ("boxes", "xyxy")
"""Boxes of these names are x0, y0, x1, y1, those of the others x, y, width, height."""
CATEGORIES = ("category", "categories", "category_id", "label", "labels", "class", "classes")
POLYGONS = ("segmentation", "segmentations", "polygons")
CROWDS = ("iscrowd", "is_crowd")

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Columns:
    """Names of columns; of objects those of the fields in the column `objects`, or of columns where it is None."""

    image: str
    label: str
    """Of the class, of the image or of each object."""
    text: bool
    """Classes are text, not numbers."""
    objects: str | None = None
    box: str | None = None
    polygons: str | None = None
    crowd: str | None = None
    size: tuple[str, ...] = ()

    @property
    def read(self) -> list[str]:
        """What listing reads: all but the images."""
        names = [self.objects] if self.objects else [self.label, self.box, self.polygons, self.crowd]
        return [name for name in (*names, *self.size) if name]


def find_columns(schema: pa.Schema, place: str) -> Columns:
    """Raises ValueError that lists the columns where there are no images, or nothing to learn."""
    shown = ", ".join(f"{field.name} ({_short(field.type)})" for field in schema)
    images = [field.name for field in schema if _is_image(field.type)]
    image = next((name for name in IMAGES if name in images), images[0] if len(images) == 1 else None)
    if image is None:
        raise ValueError(
            f"{place} has {'several columns' if images else 'no column'} of images (struct of bytes and path, or "
            f"binary){': call one of them image' if images else ''}; its columns: {shown}"
        )
    top = {field.name: field.type for field in schema}
    size = ("height", "width") if all(pa.types.is_integer(top.get(n, pa.null())) for n in ("height", "width")) else ()
    for objects in (*OBJECTS, None):
        fields = top if objects is None else _fields(top.get(objects, pa.null()))
        lists = {name: type.value_type for name, type in fields.items() if _is_list(type)}
        box, label = _first(BOXES, lists), _first(CATEGORIES, lists)
        if box and label and _is_list(lists[box]) and _is_class(lists[label]):
            polygons, crowd = _first(POLYGONS, lists), _first(CROWDS, lists)
            return Columns(image, label, _is_text(lists[label]), objects, box, polygons, crowd, size)
    label = next((name for name in LABELS if name in top and _is_class(top[name])), None)
    if label is None:
        raise ValueError(
            f"{place} has neither a class column ({', '.join(LABELS)}: integers or text) nor boxes with categories "
            f"(a column objects, or the columns bbox and category); its columns: {shown}"
        )
    return Columns(image, label, _is_text(top[label]), size=size)


def told_names(schema: pa.Schema, columns: Columns) -> tuple[str, ...] | None:
    """The names of numbered classes from the metadata that the Hugging Face library writes."""
    if columns.text:
        return None
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        within = features[columns.objects] if columns.objects else features
        names = next(_class_labels(next(_values(within, columns.label))))
    except (KeyError, TypeError, ValueError, StopIteration):
        return None
    return tuple(map(str, names))


def classes_in(table: pa.Table, columns: Columns) -> set[Any]:
    """The values of all classes of a table."""
    values = table[columns.objects or columns.label]
    while pa.types.is_nested(values.type):
        is_struct = pa.types.is_struct(values.type)
        values = pc.struct_field(values, columns.label) if is_struct else pc.list_flatten(values)
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    return set(pc.unique(values).to_pylist()) - {None}


def objects_of(row: Row, columns: Columns, index: Mapping[Any, int]) -> tuple[Instance, ...]:
    """The objects of a row. `index` maps values of classes to indices. Raises Wrong."""
    cell = row[columns.objects] if columns.objects else row
    assert columns.box is not None
    if isinstance(cell, list):
        cell = {key: [item[key] for item in cell] for key in cell[0]} if cell else None
    if cell is None:
        return ()
    boxes, labels = cell[columns.box] or [], cell[columns.label] or []
    polygons = (cell[columns.polygons] if columns.polygons else None) or [None] * len(boxes)
    crowds = (cell[columns.crowd] if columns.crowd else None) or [False] * len(boxes)
    if not len(boxes) == len(labels) == len(polygons) == len(crowds):
        raise Wrong(
            f"{len(boxes)} boxes", f"do not go with {len(labels)} of {columns.label} (or other lists beside it)"
        )
    return tuple(
        Instance(class_index(label, index), _box(box, columns.box), _polygons(parts), bool(crowd))
        for box, label, parts, crowd in zip(boxes, labels, polygons, crowds, strict=True)
    )


def class_index(label: Any, index: Mapping[Any, int]) -> int:
    if label not in index:
        raise Wrong(f"class {label}", f"is not one of the {len(index)} classes (0 to {len(index) - 1})")
    return index[label]


def _box(box: Any, name: str) -> tuple[float, float, float, float]:
    if box is None or len(box) != 4 or None in box:
        raise Wrong(f"{name} = {short(box)}", "is not four numbers")
    a, b, c, d = map(float, box)
    return (a, b, c, d) if name in CORNERS else (a, b, a + c, b + d)


def _polygons(parts: Any) -> tuple[tuple[float, ...], ...] | None:
    """One list of coordinates, or a list of such lists."""
    if not parts:
        return None
    return tuple(map(tuple, parts if isinstance(parts[0], list) else [parts]))


# --------------------------------------------------------------------------------------------------- types


def _fields(type: pa.DataType) -> dict[str, pa.DataType]:
    """The lists of a struct of lists; a list of structs seen as one."""
    if pa.types.is_struct(type):
        return {field.name: field.type for field in type}
    if _is_list(type) and pa.types.is_struct(type.value_type):
        return {field.name: pa.list_(field.type) for field in type.value_type}
    return {}


def _first(names: tuple[str, ...], fields: Mapping[str, Any]) -> str | None:
    return next((name for name in names if name in fields), None)


def _is_list(type: pa.DataType) -> bool:
    return bool(pa.types.is_list(type) or pa.types.is_large_list(type) or pa.types.is_fixed_size_list(type))


def _is_image(type: pa.DataType) -> bool:
    if pa.types.is_struct(type):
        return any(field.name == "bytes" and _is_image(field.type) for field in type)
    return bool(pa.types.is_binary(type) or pa.types.is_large_binary(type))


def _is_class(type: pa.DataType) -> bool:
    return bool(pa.types.is_integer(type)) or _is_text(type)


def _is_text(type: pa.DataType) -> bool:
    if pa.types.is_dictionary(type):
        type = type.value_type
    return bool(pa.types.is_string(type) or pa.types.is_large_string(type))


def _short(type: pa.DataType) -> str:
    text = str(type)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _values(node: Any, key: str) -> Iterator[Any]:
    """The values of a key anywhere in nested JSON."""
    if isinstance(node, dict):
        if key in node:
            yield node[key]
        node = list(node.values())
    for item in node if isinstance(node, list) else []:
        yield from _values(item, key)


def _class_labels(node: Any) -> Iterator[list[str]]:
    if isinstance(node, dict) and node.get("_type") == "ClassLabel":
        yield node["names"]
    for item in node.values() if isinstance(node, dict) else node if isinstance(node, list) else []:
        yield from _class_labels(item)
