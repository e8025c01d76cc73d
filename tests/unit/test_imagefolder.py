from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from orchestrator.data import detect, get_format
from orchestrator.data.imagefolder import read
from orchestrator.data.manifest import read_manifest, split_positions
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
    assert get_format("imagefolder").load(manifest.table["image"][0].as_py()).shape[2] == 3


# ------------------------------------------------------------------------------- a validation split of our own


def cut(root: Path, seed: int = 0, fraction: float = 0.2) -> tuple[set[str], set[str]]:
    table = read_manifest(str(root)).table
    ids = table["id"].to_pylist()
    train, val = split_positions(
        table["split"].to_pylist(), table["key"].to_numpy(), table["label"].to_numpy(), fraction, seed
    )
    assert sorted([*train, *val]) == list(range(len(ids)))
    return {ids[i] for i in train}, {ids[i] for i in val}


def test_without_validation_images_a_stratified_part_is_held_back(tmp_path: Path) -> None:
    write_images(tmp_path, {"train/cat": 40, "train/dog": 10, "train/rare": 2})
    train, val = cut(tmp_path)
    assert Counter(name.split("/")[1] for name in val) == {"cat": 8, "dog": 2, "rare": 1}
    assert Counter(name.split("/")[1] for name in train) == {"cat": 32, "dog": 8, "rare": 1}


def test_the_held_back_part_goes_by_the_seed_and_survives_new_images(tmp_path: Path) -> None:
    write_images(tmp_path, {"cat": 20, "dog": 20})
    _, before = cut(tmp_path)
    assert cut(tmp_path)[1] == before
    assert cut(tmp_path, seed=1)[1] != before
    assert cut(tmp_path, fraction=0.1)[1] < before
    write_image(tmp_path / "cat" / "new.png")
    assert len(cut(tmp_path)[1] ^ before) <= 1


def test_given_validation_images_are_taken_as_they_are(tmp_path: Path) -> None:
    write_images(tmp_path, {"train/a": 4, "train/b": 4, "val/a": 1})
    assert cut(tmp_path)[1] == {"val/a/0.png"}


def test_splits_of_nothing_are_empty() -> None:
    none = np.empty(0, np.int64)
    train, val = split_positions([], none.astype(np.uint64), none, 0.2, 0)
    assert (len(train), len(val)) == (0, 0)


# ----------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({}, "{root} has no class folders: expected {root}/CLASS/image.jpg"),
        ({"train": 3}, "{root}/train has no class folders: expected {root}/train/CLASS/image.jpg"),
        ({"train/cat": 0, "train/dog": 0}, "{root}/train has no images"),
        ({"train/cat": 2, "train/dog": 0, "train/owl": 0}, "class folders without images in {root}/train: dog, owl;"),
        ({"train/cat": 2, "train/dog": 0, "val/dog": 1}, "class folders without images in {root}/train: dog;"),
        ({"train/cat": 2}, "{root} has one class only (cat): a classifier needs two or more class folders"),
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
        read_manifest(str(tmp_path))
    assert message.format(root=tmp_path) in str(caught.value)


def test_a_missing_folder_and_a_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"there is no folder {tmp_path}/absent"):
        read_manifest(str(tmp_path / "absent"))
    (tmp_path / "images.zip").write_text("")
    with pytest.raises(ValueError, match=r"images\.zip is a file; name the folder"):
        read_manifest(str(tmp_path / "images.zip"))


def test_an_unknown_format_answers_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown format 'imagefolders': did you mean imagefolder"):
        read_manifest(str(tmp_path), "imagefolders")


def test_folders_are_detected_and_the_bundled_set_is_known(tmp_path: Path) -> None:
    assert detect(str(tmp_path)) == ("imagefolder", "a folder of class folders")
    assert detect("digits") == ("digits", "the bundled data set")
