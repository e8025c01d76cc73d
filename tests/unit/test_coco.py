from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.data.coco import FORMAT, read
from orchestrator.data.files import Files
from orchestrator.data.manifest import read_manifest
from trainables.contracts import Instance, Sample

CATEGORIES = [{"id": 90, "name": "dog"}, {"id": 7, "name": "cat"}]
"""With gaps, and not in the order of their ids."""
TRIANGLE = [1, 1, 5, 1, 3.5, 4]
COUNTS = {"size": [30, 40], "counts": [600, 20, 580]}


def image(number: int, name: str = "", **more: Any) -> dict[str, Any]:
    return {"id": number, "file_name": name or f"{number}.jpg", "height": 30, "width": 40, **more}


def box(image: Any, category: Any = 7, **more: Any) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": [1, 2, 10, 20], **more}


def write(path: Path, images: list[Any], annotations: list[Any] | None, **more: Any) -> Path:
    content = {"images": images, "categories": CATEGORIES, **more}
    if annotations is not None:
        content["annotations"] = annotations
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def touch(root: Path, *names: str) -> None:
    """A reader lists images and never opens them."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def samples(location: Path) -> dict[str, Sample]:
    return {sample.id: sample for sample in read(str(location)).samples}


def objects(root: Path, *annotations: dict[str, Any]) -> tuple[Instance, ...]:
    """Of one image, as its annotations are read."""
    touch(root, "1.jpg")
    write(root / "train.json", [image(1)], [{"image_id": 1, "category_id": 7, **given} for given in annotations])
    return samples(root)["1.jpg"].objects or ()


def refusal(location: Path) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the message is compared by the caller)
        list(read(str(location)).samples)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------- content


def test_classes_are_in_the_order_of_their_sparse_ids(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg", "2.jpg")
    write(tmp_path / "train.json", [image(1), image(2)], [box(1, 90), box(1, 7), box(2, 90)])
    assert read(str(tmp_path)).classes == ("cat", "dog")
    found = samples(tmp_path)
    assert [[o.label for o in sample.objects or ()] for sample in found.values()] == [[1, 0], [1]]
    assert found["1.jpg"].objects == (Instance(1, (1, 2, 11, 22)), Instance(0, (1, 2, 11, 22)))
    assert found["1.jpg"].size == (30, 40)
    assert found["1.jpg"].image == str(tmp_path / "1.jpg")


def test_images_without_annotations_are_background(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg", "2.jpg")
    write(tmp_path / "train.json", [image(1), image(2)], [box(2)])
    assert samples(tmp_path)["1.jpg"].objects == ()


@pytest.mark.parametrize(
    "mask", [[TRIANGLE], [TRIANGLE, [0, 0, 4, 0, 4, 4, 0, 4]], COUNTS, {"size": [30, 40], "counts": "U`0d0L2N"}]
)
def test_masks_are_polygons_and_both_kinds_of_run_lengths(tmp_path: Path, mask: Any) -> None:
    assert objects(tmp_path, {"bbox": [1, 1, 4, 3], "segmentation": mask}) == (Instance(0, (1, 1, 5, 4), mask),)
    assert read_manifest(str(tmp_path)).samples().__next__().objects == (Instance(0, (1, 1, 5, 4), mask),)


def test_a_box_or_a_mask_alone_is_enough(tmp_path: Path) -> None:
    found = objects(tmp_path, {"bbox": [0, 0, 2, 2], "segmentation": []}, {"bbox": [], "segmentation": [TRIANGLE]})
    assert found == (Instance(0, (0, 0, 2, 2)), Instance(0, None, [TRIANGLE]))


def test_crowds_are_marked(tmp_path: Path) -> None:
    found = objects(tmp_path, {"segmentation": COUNTS, "iscrowd": 1}, {"segmentation": COUNTS, "iscrowd": 0})
    assert [o.crowd for o in found] == [True, False]


def test_boxes_are_given_as_they_are(tmp_path: Path) -> None:
    """Clipping and dropping go by the pixels, later."""
    found = objects(tmp_path, {"bbox": [-5, -5, 100, 100]}, {"bbox": [3, 3, 0, 0]})
    assert [o.box for o in found] == [(-5, -5, 95, 95), (3, 3, 3, 3)]


def test_objects_with_nothing_to_show_are_left_out_and_listed(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg")
    nothing = [{"image_id": 1, "category_id": 7}, {"image_id": 1, "category_id": 7, "segmentation": [[1, 1, 2, 2]]}]
    partly = box(1, segmentation=[[1, 1, 2, 2], TRIANGLE])
    write(tmp_path / "train.json", [image(1)], [*nothing, partly])
    source = read(str(tmp_path))
    assert [s.objects for s in source.samples] == [(Instance(0, (1, 2, 11, 22), [TRIANGLE]),)]
    assert [(issue.id, issue.kind, issue.reason) for issue in source.issues] == [
        ("1.jpg", "label", "annotations[0]: it has neither bbox nor segmentation"),
        ("1.jpg", "label", "annotations[1]: a polygon of fewer than three points is left out"),
        ("1.jpg", "label", "annotations[2]: a polygon of fewer than three points is left out"),
    ]


def test_sizes_that_are_not_told_are_none(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg", "2.jpg")
    write(tmp_path / "train.json", [{"id": 1, "file_name": "1.jpg"}, image(2, height=0)], [])
    assert [sample.size for sample in samples(tmp_path).values()] == [None, None]


def test_ids_may_be_text_and_names_any_script(tmp_path: Path) -> None:
    touch(tmp_path, "Bäume 木.jpg")
    write(tmp_path / "train.json", [image(1, "Bäume 木.jpg", id="a")], [box("a")])
    assert len(samples(tmp_path)["Bäume 木.jpg"].objects or ()) == 1


def test_a_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg")
    path = write(tmp_path / "train.json", [image(1)], [])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert set(samples(tmp_path)) == {"1.jpg"}


# ------------------------------------------------------------------------------------------------- layouts


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            {
                "annotations/instances_train2017.json": "train2017/1.jpg",
                "annotations/instances_val2017.json": "val2017/2.jpg",
            },
            {"train2017/1.jpg": "train", "val2017/2.jpg": "val"},
        ),
        (
            {"train/_annotations.coco.json": "train/1.jpg", "valid/_annotations.coco.json": "valid/2.jpg"},
            {"train/1.jpg": "train", "valid/2.jpg": "val"},
        ),
        (
            {"train.json": "images/train/1.jpg", "validation.json": "images/validation/2.jpg"},
            {"images/train/1.jpg": "train", "images/validation/2.jpg": "val"},
        ),
        ({"annotations/instances_default.json": "images/default/1.jpg"}, {"images/default/1.jpg": "train"}),
        ({"labels.json": "data/1.jpg"}, {"data/1.jpg": "train"}),
        ({"data/trainval.json": "data/images/1.jpg"}, {"images/1.jpg": "train"}),
        ({"all.json": "1.jpg", "test.json": "test/2.jpg"}, {"1.jpg": "train", "test/2.jpg": "test"}),
    ],
)
def test_json_files_and_images_are_found(tmp_path: Path, files: dict[str, str], expected: dict[str, str]) -> None:
    for number, (path, name) in enumerate(files.items(), 1):
        touch(tmp_path, name)
        write(tmp_path / path, [image(number)], [box(number)])
    found = samples(tmp_path)
    assert {id: sample.split for id, sample in found.items()} == expected
    assert all(Path(sample.image).is_file() and sample.stamp.startswith("1:") for sample in found.values())
    assert FORMAT.detect(Files(str(tmp_path))) == f"{tmp_path / next(iter(files))} is COCO JSON"


def test_a_file_can_be_named_itself(tmp_path: Path) -> None:
    touch(tmp_path, "set/val2017/1.jpg")
    path = write(tmp_path / "set/annotations/instances_val2017.json", [image(1)], [])
    assert {id: sample.split for id, sample in samples(path).items()} == {"val2017/1.jpg": "val"}
    assert (read(str(path)).name, FORMAT.detect(Files(str(path)))) == ("set", "it is a JSON file")


def test_other_json_is_left_alone(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg")
    write(tmp_path / "annotations/instances_train.json", [image(1)], [box(1)])
    for name in ("captions_train.json", "person_keypoints_train.json", "notes.json"):
        (tmp_path / "annotations" / name).write_text('{"images": [], "annotations": []}')
    assert set(samples(tmp_path)) == {"1.jpg"}
    (tmp_path / "annotations/instances_train.json").rename(tmp_path / "annotations/train.json")
    (tmp_path / "annotations/notes.json").write_text('[{"images": []}]')
    assert set(samples(tmp_path)) == {"1.jpg"}


def test_what_is_no_coco_is_not_detected(tmp_path: Path) -> None:
    touch(tmp_path, "cat/1.jpg", "dog/2.jpg")
    (tmp_path / "package.json").write_text('{"version": 1}')
    assert FORMAT.detect(Files(str(tmp_path))) is None
    assert FORMAT.detect(Files(str(tmp_path / "cat/1.jpg"))) is None
    assert "has no COCO JSON: looked for files" in refusal(tmp_path)


def test_trainval_is_left_alone_where_train_is(tmp_path: Path) -> None:
    touch(tmp_path, "images/1.jpg", "images/2.jpg")
    write(tmp_path / "train.json", [image(1)], [])
    write(tmp_path / "val.json", [image(2)], [])
    write(tmp_path / "trainval.json", [image(1), image(2)], [])
    assert {id: s.split for id, s in samples(tmp_path).items()} == {"images/1.jpg": "train", "images/2.jpg": "val"}


def test_a_test_set_without_annotations_is_left_alone_unless_named(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg", "2.jpg")
    write(tmp_path / "train.json", [image(1)], [])
    test = write(tmp_path / "test.json", [image(2)], None)
    assert set(samples(tmp_path)) == {"1.jpg"}
    assert (
        refusal(test)
        == f"{test} has no 'annotations': COCO JSON is an object with the lists images, annotations, categories"
    )


@pytest.mark.parametrize("name", ["sub/deep/1.jpg", "./sub/deep/1.jpg", "sub\\deep\\1.jpg"])
def test_names_of_images_may_have_folders(tmp_path: Path, name: str) -> None:
    touch(tmp_path, "images/sub/deep/1.jpg")
    write(tmp_path / "train.json", [image(1, name)], [])
    assert samples(tmp_path)["images/sub/deep/1.jpg"].stamp.startswith("1:")


@pytest.mark.parametrize("name", ["/home/pi/set/1.jpg", "C:\\set\\1.jpg", "old/1.jpg"])
def test_folders_of_another_machine_are_looked_over(tmp_path: Path, name: str) -> None:
    touch(tmp_path, "images/1.jpg")
    write(tmp_path / "train.json", [image(1, name)], [])
    assert set(samples(tmp_path)) == {"images/1.jpg"}


def test_images_in_very_many_folders_are_listed_once(tmp_path: Path) -> None:
    names = [f"{i}/x.jpg" for i in range(150)]
    touch(tmp_path / "images", *names)
    write(tmp_path / "train.json", [image(i, name) for i, name in enumerate(names)], [])
    assert {sample.stamp[:2] for sample in samples(tmp_path).values()} == {"1:"}


def test_a_missing_image_stays_and_says_so(tmp_path: Path) -> None:
    touch(tmp_path, "images/1.jpg")
    write(tmp_path / "train.json", [image(0), image(1)], [box(0)])
    found = samples(tmp_path)
    assert found["images/0.jpg"].stamp == "missing"
    assert found["images/1.jpg"].stamp != "missing"


def test_stamps_change_with_the_bytes_and_links_are_followed(tmp_path: Path) -> None:
    touch(tmp_path, "far/1.jpg")
    (tmp_path / "set").mkdir()
    (tmp_path / "set/images").symlink_to(tmp_path / "far")
    write(tmp_path / "set/train.json", [image(1)], [])
    before = samples(tmp_path / "set")["images/1.jpg"].stamp
    os.utime(tmp_path / "far/1.jpg", ns=(1, 1))
    assert samples(tmp_path / "set")["images/1.jpg"].stamp == "1:1" != before


def test_a_real_data_set(test_data: Path) -> None:
    source = read(str(test_data / "nuts_coco"))
    found = list(source.samples)
    assert (source.name, source.classes, source.issues) == ("nuts_coco", ("date", "fig", "hazelnut"), [])
    assert Counter(sample.split for sample in found) == {"train": 18}
    assert sum(len(sample.objects or ()) for sample in found) == 165
    assert {sample.size for sample in found} == {(600, 800)}
    assert all(o.mask and o.box and 0 <= o.box[0] < o.box[2] <= 800 for s in found for o in s.objects or ())
    assert {s.id for s in found} == {s.id for s in read(str(test_data / "nuts_coco/data")).samples}
    assert len(read_manifest(str(test_data / "nuts_coco"))) == 18


# ----------------------------------------------------------------------------------------- what is refused


def broken(**more: Any) -> Callable[[Path], Path]:
    """A JSON of one image and one annotation, with other lists."""

    def make(root: Path) -> Path:
        touch(root, "1.jpg", "2.jpg")
        return write(root / "train.json", **{"images": [image(1)], "annotations": [box(1)], **more})

    return make


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (broken(annotations=[box(1), box(1, 99)]), "annotations[1].category_id = 99 is not in categories"),
        (
            broken(annotations=[box(1, i) for i in range(8, 13)]),
            "annotations[0].category_id = 8 is not in categories "
            "(also annotations[1].category_id = 9, annotations[2].category_id = 10, 2 more)",
        ),
        (broken(annotations=[box(5)]), "annotations[0].image_id = 5 is not in images"),
        (broken(annotations=[box("1")]), 'annotations[0].image_id = "1" is not in images'),
        (broken(annotations=[box([1])]), "annotations[0].image_id = [1] is not in images"),
        (broken(annotations=[{"image_id": 1}]), "annotations[0].category_id = null is not in categories"),
        (
            broken(annotations=[box(5), box(1, 99)]),
            "is not in images; annotations[1].category_id = 99 is not in categories",
        ),
        (broken(annotations=[box(1, bbox=[1, 2, 3])]), "annotations[0].bbox = [1, 2, 3] is not four numbers"),
        (broken(annotations=[box(1, bbox=[1, 2, 3, "4"])]), 'annotations[0].bbox = [1, 2, 3, "4"] is not four numbers'),
        (
            broken(annotations=[box(1, bbox=[1, 2, 3, float("nan")])]),
            "annotations[0].bbox = [1, 2, 3, null] is not four",
        ),
        (
            broken(annotations=[box(1, segmentation=[TRIANGLE, [1, 2, 3]])]),
            "annotations[0].segmentation[1] = [1, 2, 3] is not",
        ),
        (broken(annotations=[box(1, segmentation=TRIANGLE)]), "annotations[0].segmentation[0] = 1 is not a polygon"),
        (broken(annotations=[box(1, segmentation=[["a"] * 6])]), "is not a polygon: a list x0, y0, x1, y1, ..."),
        (
            broken(annotations=[box(1, segmentation="m.png")]),
            'annotations[0].segmentation = "m.png" is neither a list of',
        ),
        (
            broken(annotations=[box(1, segmentation={"counts": [1]})]),
            "annotations[0].segmentation.size = null is not a",
        ),
        (
            broken(annotations=[box(1, segmentation={**COUNTS, "counts": [1.5]})]),
            "annotations[0].segmentation.counts = [1.5]",
        ),
        (broken(annotations=[7]), "annotations[0] = 7 is not an object"),
        (broken(annotations={}), "annotations is not a list"),
        (broken(images=[image(1), image(1, "2.jpg")]), "images[1].id = 1 is the id of two images"),
        (broken(images=[image(1), image(2, "1.jpg")]), "images[1].file_name = '1.jpg' is also that of images[0]"),
        (broken(images=[{"id": 1}]), "images[0].file_name = null is not text"),
        (broken(images=[image(1, id=1.5)]), "images[0].id = 1.5 is not a whole number or text"),
        (broken(images=[image(1, height="30")]), 'images[0].height = "30" is not a number of pixels'),
        (broken(categories=[]), "categories is empty"),
        (broken(categories=[{"id": "7", "name": "cat"}]), 'categories[0].id = "7" is not a whole number'),
        (broken(categories=[{"id": 7, "name": ""}]), 'categories[0].name = "" is not text'),
        (broken(categories=[*CATEGORIES, {"id": 8, "name": "cat"}]), "categories[2].name = 'cat' is the name of two"),
        (broken(categories=[*CATEGORIES, {"id": 7, "name": "cow"}]), "categories[2].id = 7 is there twice"),
    ],
)
def test_nonsense_is_refused_with_its_place(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    path = make(tmp_path)
    answer = refusal(tmp_path)
    assert answer.startswith(f"{path}: ")
    assert message in answer


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_missing_lists_are_refused(tmp_path: Path, key: str) -> None:
    path = broken()(tmp_path)
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != key}))
    assert refusal(tmp_path).startswith(f"{path} has no {key!r}: COCO JSON is an object with the lists")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [],\n "annotations": [}', " is not JSON: line 2, column 18: Expecting value"),
        ('{"images": [', " is not JSON: line 1, column 13: Expecting value"),
        ("[1, 2]", " is not COCO JSON, an object with the lists images, annotations, categories"),
        ("[" * 200_000, " is not COCO JSON: it is nested too deeply"),
        ("", " is not JSON: line 1, column 1"),
    ],
)
def test_what_is_no_json_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "instances_train.json"
    path.write_text(text)
    for location in (tmp_path, path):
        assert refusal(location).startswith(f"{path}{message}")


@pytest.mark.parametrize(
    ("categories", "difference"),
    [
        ([*CATEGORIES, {"id": 8, "name": "cow"}], "id 8 is 'cow', not None"),
        (CATEGORIES[:1], "id 7 is not there, not 'cat'"),
        ([CATEGORIES[0], {"id": 7, "name": "Cat"}], "id 7 is 'Cat', not 'cat'"),
    ],
)
def test_all_files_have_the_same_categories(tmp_path: Path, categories: list[Any], difference: str) -> None:
    touch(tmp_path, "1.jpg", "2.jpg")
    train = write(tmp_path / "train.json", [image(1)], [])
    val = write(tmp_path / "val.json", [image(2)], [], categories=categories)
    assert refusal(tmp_path) == f"{val} has other categories than {train}: {difference}"


def test_an_image_in_two_splits_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg", "2.jpg")
    train = write(tmp_path / "train.json", [image(1)], [])
    val = write(tmp_path / "val.json", [image(2), image(1)], [])
    assert refusal(tmp_path) == f"1.jpg is in {train} and in {val} (images[1]): it may be in one split only"


def test_images_that_are_nowhere_are_refused_with_where_they_were_looked_for(tmp_path: Path) -> None:
    touch(tmp_path, "images/2.jpg")
    path = write(tmp_path / "train.json", [image(1)], [])
    assert refusal(tmp_path) == (
        f"{path}: its images are not to be found (images[0].file_name = '1.jpg'); "
        f"looked below {tmp_path}, {tmp_path}/images"
    )


def test_a_missing_location_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "absent") == f"there is no file or folder {tmp_path}/absent"
