"""A small data set of each format, as users have it on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.pictures import write_image, write_images

SIDES = "<xmin>1</xmin><ymin>1</ymin><xmax>3</xmax><ymax>4</ymax>"
XML = f"<annotation><object><name>cat</name><bndbox>{SIDES}</bndbox></object></annotation>"


def imagefolder(root: Path) -> None:
    write_images(root, {"train/Fruit/apple": 2, "train/Fruit/grün": 1, "val/Fruit/apple": 1})


def yolo(root: Path) -> None:
    write_images(root, {"images/train": 3, "images/train/deep": 1, "val/images": 2})
    for name, text in {
        "labels/train/0.txt": "0 0.5 0.5 0.2 0.2\n1 0.1 0.1 0.5 0.1 0.5 0.5\n",
        "labels/train/deep/0.txt": "1 0.5 0.5 0.2 0.2",
        "labels/train/gone.txt": "0 0.5 0.5 0.2 0.2",
        "val.txt": "./val/images/0.png\nval/images/1.png",
        "data.yaml": "train: ../images/train\nval: val.txt\nnames: [cat, dog]",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def coco(root: Path) -> None:
    write_images(root, {"train2017": 2, "val2017": 1})
    for split, count in {"train": 2, "val": 1}.items():
        annotation = {"id": 1, "image_id": 0, "category_id": 7, "bbox": [1, 1, 2, 2], "iscrowd": 0}
        content = {
            "images": [{"id": i, "file_name": f"{i}.png", "height": 4, "width": 5} for i in range(count)],
            "categories": [{"id": 7, "name": "cat"}],
            "annotations": [annotation],
        }
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))


def voc(root: Path) -> None:
    write_images(root, {"JPEGImages": 3})
    for name in ("Annotations", "ImageSets/Main"):
        (root / name).mkdir(parents=True)
    for i in range(3):
        (root / "Annotations" / f"{i}.xml").write_text(XML)
    (root / "ImageSets" / "Main" / "train.txt").write_text("0\n1\n")
    (root / "ImageSets" / "Main" / "val.txt").write_text("2\n")


def parquet(root: Path) -> None:
    image = root / "data" / "more" / "0.png"
    write_image(image)
    cells = [{"bytes": image.read_bytes(), "path": None}, {"bytes": None, "path": "more/0.png"}]
    for split in ("train", "validation"):
        table = pa.table({"image": cells, "label": ["cat", "dog"]})
        pq.write_table(table, root / "data" / f"{split}-00000-of-00001.parquet")


EXAMPLES: dict[str, Callable[[Path], None]] = {
    "imagefolder": imagefolder,
    "yolo": yolo,
    "coco": coco,
    "voc": voc,
    "parquet": parquet,
}
