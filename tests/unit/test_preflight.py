"""What is checked of data and model before anything starts, for each task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config import Config
from orchestrator.data.manifest import read_manifest
from orchestrator.data.selection import select
from orchestrator.preflight import check_labels, preflight
from tests import layouts
from tests.pictures import write_images

MODELS = {"detect": "tests.tiny_detectors:boxes", "segment": "tests.tiny_detectors:masks"}


def config(data: Path, task: str, storage: Path, **settings: Any) -> Config:
    values = {"data": str(data), "task": task, "model": MODELS.get(task, "tests.tiny:linear"), "imgsz": 32}
    return Config.model_validate({**values, "storage": str(storage), "val_fraction": 0.5, **settings})


def coco(root: Path, **train: Any) -> Path:
    """Objects with masks; `train` changes the one that trains."""
    layouts.EXAMPLES["coco"](root)
    for split in ("train", "val"):
        file = root / "annotations" / f"instances_{split}2017.json"
        content = json.loads(file.read_text())
        content["annotations"][0] |= {"segmentation": [[1, 1, 3, 1, 3, 3, 1, 3]]} | (train if split == "train" else {})
        file.write_text(json.dumps(content))
    return root


def problems(data: Path, task: str, storage: Path, **settings: Any) -> dict[str, str]:
    return {problem.key: problem.message for problem in preflight(config(data, task, storage, **settings))[1]}


def test_pictures_with_a_class_are_no_data_for_detection(tmp_path: Path) -> None:
    data = write_images(tmp_path / "set", {"train/a": 3, "train/b": 3})
    for task in ("detect", "segment"):
        assert problems(data, task, tmp_path)["data"].endswith(
            "the images have a class but no boxes: this is data for task: classify"
        )


def test_boxes_alone_are_no_data_for_segmentation_and_the_way_out_is_told(tmp_path: Path) -> None:
    layouts.EXAMPLES["voc"](tmp_path / "set")
    message = problems(tmp_path / "set", "segment", tmp_path)["data"]
    assert "boxes but no masks" in message
    assert "set task to detect" in message


def test_boxes_are_no_data_for_classification(tmp_path: Path) -> None:
    layouts.EXAMPLES["voc"](tmp_path / "set")
    assert "this is data for task: detect" in problems(tmp_path / "set", "classify", tmp_path)["data"]


def test_training_images_without_an_object_teach_nothing(tmp_path: Path) -> None:
    crowd = {"iscrowd": 1, "segmentation": {"size": [4, 5], "counts": [6, 2, 12]}}
    nothing = coco(tmp_path / "nothing")
    file = nothing / "annotations" / "instances_train2017.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"annotations": []}))
    for data in (nothing, coco(tmp_path / "crowd", **crowd)):
        assert "no training image has an object" in problems(data, "detect", tmp_path)["data"]


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_masks_are_data_for_both(tmp_path: Path, task: str) -> None:
    coco(tmp_path / "set")
    manifest = read_manifest(str(tmp_path / "set"))
    selection, _ = select(manifest, 0.5, 1.0, 0)
    check_labels(manifest, selection, task)


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_the_model_of_each_task_is_checked(tmp_path: Path, task: str) -> None:
    coco(tmp_path / "set")
    checked, found = preflight(config(tmp_path / "set", task, tmp_path))
    assert not found
    assert checked is not None
    assert checked.parameters > 1000
    assert checked.metric == {"detect": "map", "segment": "mask_map"}[task]
    wrong = problems(tmp_path / "set", task, tmp_path, model="resnet18", metric="top1")
    assert wrong["model"].startswith("model resnet18 is for task: classify")
    assert wrong["metric"].startswith("unknown metric 'top1': choose one of: map, map50")


def test_a_pattern_that_freezes_nothing_and_a_size_that_is_too_small_are_told_by_their_keys(tmp_path: Path) -> None:
    data = coco(tmp_path / "set")
    changes: list[tuple[dict[str, Any], str, str]] = [
        ({"freeze": ["body.*"], "imgsz": 300}, "freeze", "matches nothing"),
        ({"imgsz": 128}, "imgsz", "it needs"),
    ]
    for change, key, message in changes:
        found = problems(data, "detect", tmp_path, model="ssd300_vgg16", **change)
        assert list(found) == [key]
        assert message in found[key]


@pytest.mark.parametrize(
    ("task", "model", "size"),
    [("detect", "ssdlite320_mobilenet_v3_large", 320), ("segment", "maskrcnn_mobilenet_v3_large_fpn", 512)],
)
def test_the_size_is_the_models_own_where_none_is_named(tmp_path: Path, task: str, model: str, size: int) -> None:
    checked, _ = preflight(config(coco(tmp_path / "set"), task, tmp_path, imgsz=None, model=model))
    assert checked is not None
    assert checked.imgsz == size


def test_validation_images_without_any_object_are_refused(tmp_path: Path) -> None:
    data = coco(tmp_path / "set")
    file = data / "annotations" / "instances_val2017.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"annotations": []}))
    assert "no validation image has an object" in problems(data, "detect", tmp_path)["data"]
