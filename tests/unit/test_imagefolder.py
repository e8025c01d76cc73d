from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from orchestrator.data import get_format
from orchestrator.data.files import Files
from orchestrator.data.imagefolder import read
from orchestrator.data.manifest import read_manifest
from tests.pictures import write_image, write_images
from trainables.contracts import Sample


def samples(root: Path) -> list[Sample]:
    return list(read(str(root)).samples)


def found(root: Path) -> dict[str, tuple[str, int]]:
    """{id: (split, label)}"""
    return {sample.id: (sample.split, sample.label) for sample in samples(root)}


# ------------------------------------------------------------------------------------------------- layouts


def test_splits_classes_and_nested_folders(tmp_path: Path) -> None:
    write_images(tmp_path, {"train/cat": 1, "train/dog/big/old": 1, "train/dog": 1, "val/dog/small": 1, "test/cat": 1})
    assert read(str(tmp_path)).classes == ("cat", "dog")
    assert found(tmp_path) == {
        "train/cat/0.png": ("train", 0),
        "train/dog/0.png": ("train", 1),
        "train/dog/big/old/0.png": ("train", 1),
        "val/dog/small/0.png": ("val", 1),
        "test/cat/0.png": ("test", 0),
    }


@pytest.mark.parametrize(("train", "val"), [("train", "valid"), ("Train", "Validation"), ("training", "val")])
def test_splits_go_by_several_names(tmp_path: Path, train: str, val: str) -> None:
    write_images(tmp_path, {f"{train}/cat": 2, f"{train}/dog": 2, f"{val}/cat": 1})
    assert Counter(split for split, _ in found(tmp_path).values()) == {"train": 4, "val": 1}


def test_folders_that_only_wrap_the_classes_are_looked_through(tmp_path: Path) -> None:
    counts = {"train/Fruit/Fresh/apple": 1, "train/Fruit/Fresh/pear": 1, "val/Fruit/Fresh/pear": 1}
    assert read(str(write_images(tmp_path, counts))).classes == ("apple", "pear")
    assert found(tmp_path)["val/Fruit/Fresh/pear/0.png"] == ("val", 1)


def test_without_splits_everything_is_for_training(tmp_path: Path) -> None:
    write_images(tmp_path / "pets" / "images", {"cat": 2, "dog": 1})
    source = read(str(tmp_path / "pets" / "images"))
    assert (source.name, source.classes) == ("pets", ("cat", "dog"))
    assert set(found(tmp_path / "pets" / "images")) == {"cat/0.png", "cat/1.png", "dog/0.png"}
    assert {sample.split for sample in source.samples} == {"train"}


def test_class_ids_come_from_training_where_validation_lacks_a_class(tmp_path: Path) -> None:
    write_images(tmp_path, {"train/a": 1, "train/b": 1, "train/c": 1, "val/c": 1})
    assert found(tmp_path)["val/c/0.png"] == ("val", 2)


def test_only_images_are_listed(tmp_path: Path) -> None:
    write_images(tmp_path, {"cat": 1, "dog": 1})
    for name in ("notes.txt", ".hidden.png", "._0.png", "Thumbs.db"):
        (tmp_path / "cat" / name).write_text("x")
    (tmp_path / ".git").mkdir()
    (tmp_path / "classes.csv").write_text("cat,dog")
    write_image(tmp_path / "dog" / "UPPER.PNG")
    assert set(found(tmp_path)) == {"cat/0.png", "dog/0.png", "dog/UPPER.PNG"}


def test_links_are_followed_and_links_to_nowhere_are_left_to_the_reader(tmp_path: Path) -> None:
    root = write_images(tmp_path / "set", {"cat": 1, "dog": 1})
    outside = write_images(tmp_path / "outside", {"more": 1})
    (root / "cat" / "linked.png").symlink_to(outside / "more" / "0.png")
    (root / "dog" / "linked").symlink_to(outside / "more")
    (root / "dog" / "broken.png").symlink_to(tmp_path / "absent.png")
    assert set(found(root)) == {"cat/0.png", "cat/linked.png", "dog/0.png", "dog/broken.png", "dog/linked/0.png"}


def test_links_back_to_a_folder_above_are_not_entered(tmp_path: Path) -> None:
    write_images(tmp_path, {"cat": 1, "dog/deep": 1})
    (tmp_path / "cat" / "again").symlink_to(tmp_path / "cat")
    (tmp_path / "dog" / "deep" / "root").symlink_to(tmp_path)
    assert found(tmp_path) == {"cat/0.png": ("train", 0), "dog/deep/0.png": ("train", 1)}


def test_stamps_change_with_the_bytes(tmp_path: Path) -> None:
    write_images(tmp_path, {"cat": 1, "dog": 1})
    before = {sample.id: sample.stamp for sample in samples(tmp_path)}
    os.utime(tmp_path / "cat" / "0.png", ns=(1, 1))
    write_image(tmp_path / "dog" / "0.png", value=7, height=50)
    after = {sample.id: sample.stamp for sample in samples(tmp_path)}
    assert all(before[name] != after[name] for name in before)


def test_a_real_data_set(test_data: Path) -> None:
    """Nested in a folder that only wraps the classes; validation lacks three of them."""
    source = read(str(test_data / "grocery_fruit" / "dataset"))
    assert (source.name, len(source.classes)) == ("grocery_fruit", 19)
    assert Counter(sample.split for sample in source.samples) == {"train": 962, "val": 111, "test": 448}
    assert len({sample.label for sample in source.samples if sample.split == "val"}) == 16
    for sample in source.samples:
        assert sample.id.split("/")[1:3] == ["Fruit", source.classes[sample.label]]
    manifest = read_manifest(str(test_data / "grocery_fruit" / "dataset"))
    assert len(manifest.table) == 962 + 111
    assert get_format("imagefolder").load(manifest.table["image"][0].as_py())[:2] == b"\xff\xd8"


# ----------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({}, "{root} has no class folders: expected {root}/CLASS/image.jpg"),
        ({"train": 3}, "{root}/train has no class folders: expected {root}/train/CLASS/image.jpg"),
        ({"train/cat": 0, "train/dog": 0}, "{root}/train has no images"),
        ({"train/cat": 2, "train/dog": 0, "train/owl": 0}, "class folders without images in {root}/train: dog, owl;"),
        ({"train/cat": 2, "train/dog": 0, "val/dog": 1}, "class folders without images in {root}/train: dog;"),
        (
            {"train/cat": 1, "train/dog": 1, "val/cow": 1},
            "{root}/val has class folders that the training images lack: cow; the classes are cat, dog",
        ),
        ({"train/cat": 1, "train/dog": 1, "val/cat": 0}, "{root}/val has no images: add some, or remove {root}/val"),
        ({"train/x/cat": 1, "train/x/dog": 1, "val/cat": 1}, "{root}/val/x has no images"),
        ({"val/cat": 1, "test/cat": 1}, "{root} has test and val but no train folder"),
    ],
)
def test_a_useless_folder_is_refused_with_what_to_do(tmp_path: Path, counts: dict[str, int], message: str) -> None:
    write_images(tmp_path, counts)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the message is compared below)
        read_manifest(str(tmp_path), "imagefolder")
    assert message.format(root=tmp_path) in str(caught.value)


def test_a_missing_folder_and_a_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=f"{tmp_path}/absent is not a folder: ImageFolder is a folder of class folders"
    ):
        read(str(tmp_path / "absent"))
    (tmp_path / "images.zip").write_text("")
    with pytest.raises(ValueError, match=r"images\.zip is not a folder"):
        read(str(tmp_path / "images.zip"))


def test_an_unknown_format_answers_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown format 'imagefolders': did you mean imagefolder"):
        read_manifest(str(tmp_path), "imagefolders")


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        ({"train/Fruit/Fresh/apple": 1, "train/Fruit/Fresh/pear": 1}, "a folder of class folders"),
        ({"empty": 0, "cat": 1}, "a folder of class folders"),
        ({"": 3}, None),
        ({"cat": 0, "dog": 0}, None),
    ],
)
def test_a_folder_is_detected_by_images_in_its_subfolders(
    tmp_path: Path, counts: dict[str, int], reason: str | None
) -> None:
    assert get_format("imagefolder").detect(Files(str(write_images(tmp_path, counts)))) == reason


def test_detection_enters_a_link_to_a_folder_above_at_most_a_few_times(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    assert get_format("imagefolder").detect(Files(str(tmp_path))) is None
