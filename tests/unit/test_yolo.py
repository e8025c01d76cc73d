from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.data import Issue, Source, get_format
from orchestrator.data.files import Files
from orchestrator.data.manifest import read_manifest
from orchestrator.data.yolo import read
from trainables.contracts import Instance, Sample

BOX = "0 0.5 0.5 0.2 0.4"


def write(root: Path, files: dict[str, str], **description: Any) -> Path:
    """Label files with their text; images (never opened by a reader) are one byte; data.yaml from the keywords."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    if description:
        (root / "data.yaml").write_text(yaml.safe_dump(description))
    return root


def simple(root: Path, rows: str = BOX, **description: Any) -> Path:
    files = {"images/train/a.jpg": "x", "labels/train/a.txt": rows}
    return write(root, files, **{"train": "images/train", "names": ["cat", "dog"], **description})


def samples(location: Path) -> dict[str, Sample]:
    return {sample.id: sample for sample in read(str(location)).samples}


def objects(root: Path, rows: str) -> tuple[Instance, ...]:
    found = samples(simple(root, rows))["images/train/a.jpg"].objects
    assert found is not None
    return found


def listed(source: Source) -> tuple[dict[str, str], list[Issue]]:
    """{id: split} and the issues, which are complete once the samples were read."""
    return {sample.id: sample.split for sample in source.samples}, source.issues


# -------------------------------------------------------------------------------------------------- label rows


def test_boxes_and_polygons_stand_in_one_file(tmp_path: Path) -> None:
    box, polygon = objects(tmp_path, "1 0.5 0.5 0.2 0.4\n\n0 0.1 0.1 0.9 0.1 0.5 0.75\n")
    assert (box.label, box.mask) == (1, None)
    assert box.box == pytest.approx((0.4, 0.3, 0.6, 0.7))
    assert polygon == Instance(0, mask=((0.1, 0.1, 0.9, 0.1, 0.5, 0.75),))
    sample = samples(tmp_path)["images/train/a.jpg"]
    assert sample.relative
    assert sample.image == str(tmp_path / "images/train/a.jpg")
    assert sample.label == -1


def test_what_reaches_over_the_edge_is_left_to_be_clipped(tmp_path: Path) -> None:
    (box,) = objects(tmp_path, "0 1.0 0.5 0.2 1.02")
    assert box.box == pytest.approx((0.9, -0.01, 1.1, 1.01))


def test_images_without_labels_are_background(tmp_path: Path) -> None:
    write(
        simple(tmp_path), {"images/train/none.jpg": "x", "images/train/empty.jpg": "x", "labels/train/empty.txt": "\n"}
    )
    found = samples(tmp_path)
    assert found["images/train/none.jpg"].objects == () == found["images/train/empty.jpg"].objects


def test_rows_that_repeat_are_kept_once(tmp_path: Path) -> None:
    source = read(str(simple(tmp_path, f"{BOX}\n1 0.5 0.5 0.2 0.4\n {BOX}\n")))
    assert [len(sample.objects or ()) for sample in source.samples] == [2]
    assert source.issues == [
        Issue("images/train/a.jpg", "line 3 of its labels repeats line 1: kept once", "label"),
    ]


def test_labels_without_an_image_are_listed(tmp_path: Path) -> None:
    write(
        simple(tmp_path), {"labels/train/gone.txt": BOX, "labels/train/b/c.txt": BOX, "labels/train/classes.txt": "cat"}
    )
    _, issues = listed(read(str(tmp_path)))
    assert sorted((issue.id, issue.kind) for issue in issues) == [
        ("labels/train/b/c.txt", "label"),
        ("labels/train/gone.txt", "label"),
    ]
    assert issues[0].reason == "there is no image for these labels"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (f"{BOX}\n2 0.5 0.5 0.2 0.2", "a.txt:2: class 2 is not one of the 2 names (0 to 1)"),
        ("-1 0.5 0.5 0.2 0.2", "a.txt:1: class -1 is not one of the 2 names"),
        ("0.5 0.5 0.5 0.2 0.2", "a.txt:1: class 0.5 is not an integer"),
        ("nan 0.5 0.5 0.2 0.2", "a.txt:1: class nan is not an integer"),
        ("0 0.5 0.5 nan 0.2", "a.txt:1: coordinate nan"),
        ("cat 0.5 0.5 0.2 0.2", 'a.txt:1: "cat 0.5 0.5 0.2 0.2" is not a row of numbers'),
        ("0 0.5 0.5 0.2", "a.txt:1: 4 columns are neither a box (CLASS CX CY W H) nor a polygon"),
        (
            "0 0.5 0.5 0.2 0.2 0.9",
            "a.txt:1: 6 columns are one more than a box has: with a confidence these look like predictions",
        ),
        ("0 0.1 0.1 0.2 0.2 0.3 0.3 0.9", "a.txt:1: 8 columns are neither"),
        (
            "0 320 240 64 64",
            "a.txt:1: coordinate 320 is no fraction of width or height, as YOLO labels are (are these pixels?)",
        ),
        ("0 0.5 -0.6 0.2 0.2", "a.txt:1: coordinate -0.6"),
    ],
)
def test_rows_that_make_no_sense_are_refused_with_file_and_line(tmp_path: Path, rows: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the message is compared below)
        samples(simple(tmp_path, rows))
    assert f"{tmp_path}: labels/train/{message}" in str(caught.value)


def test_the_first_three_wrong_files_are_named_and_the_others_counted(tmp_path: Path) -> None:
    names = "bcdef"
    simple(tmp_path, val="images/val")
    write(tmp_path, {f"images/{split}/{split}{name}.jpg": "x" for name in names for split in ("train", "val")})
    write(tmp_path, {f"labels/{split}/{split}{name}.txt": "7 0 0 1 1" for name in names for split in ("train", "val")})
    with pytest.raises(ValueError, match=r"trainb.txt:1: class 7 is not .*trainc.txt:1: class 7.*, 7 more\)") as caught:
        samples(tmp_path)
    assert "trainf" not in str(caught.value)


# ----------------------------------------------------------------------------------------------- splits and paths


def test_a_split_is_a_folder_a_text_file_or_a_list_of_these(tmp_path: Path) -> None:
    files = {f"images/{name}.jpg": "x" for name in ("one/a", "one/deep/b", "two/c", "lists/d")}
    write(tmp_path, files, path=".", train=["images/one", "lists/more.txt"], val="val.txt", names=["cat"])
    write(tmp_path, {"labels/one/deep/b.txt": BOX, "labels/two/c.txt": BOX, "labels/lists/d.txt": BOX})
    write(tmp_path, {"lists/more.txt": "./../images/lists/d.jpg\n\n", "val.txt": "images/two/c.jpg\nimages/two/no.jpg"})
    found = samples(tmp_path)
    assert {id: (s.split, len(s.objects or ())) for id, s in found.items()} == {
        "images/one/a.jpg": ("train", 0),
        "images/one/deep/b.jpg": ("train", 1),
        "images/lists/d.jpg": ("train", 1),
        "images/two/c.jpg": ("val", 1),
        "images/two/no.jpg": ("val", 0),
    }
    assert found["images/two/no.jpg"].stamp == "missing"
    assert ":" in found["images/two/c.jpg"].stamp


def test_labels_lie_in_the_mirrored_folder_or_beside_the_image(tmp_path: Path) -> None:
    root = tmp_path / "images" / "set"
    write(root, {"train/images/a.jpg": "x", "train/labels/a.txt": BOX}, train="train", names=["cat"])
    write(root, {"train/b.jpg": "x", "train/b.txt": BOX, "train/c.txt": BOX})
    source = read(str(root))
    assert {sample.id: len(sample.objects or ()) for sample in source.samples} == {
        "train/b.jpg": 1,
        "train/images/a.jpg": 1,
    }
    assert [issue.id for issue in source.issues] == ["train/c.txt"]


def test_paths_start_at_path_or_else_at_the_file_and_lose_dots_that_lead_nowhere(tmp_path: Path) -> None:
    files = {"train/images/a.jpg": "x", "train/labels/a.txt": BOX, "valid/images/b.jpg": "x"}
    write(tmp_path / "site", files, train="../train/images", val="../valid/images", path="/content/gone", names=["cat"])
    assert {id: s.split for id, s in samples(tmp_path / "site").items()} == {
        "train/images/a.jpg": "train",
        "valid/images/b.jpg": "val",
    }
    write(tmp_path, {"there.yaml": yaml.safe_dump({"path": "site", "train": "train/images", "names": {0: "cat"}})})
    source = read(str(tmp_path / "there.yaml"))
    assert source.name == "there"
    assert [sample.id for sample in source.samples] == ["train/images/a.jpg"]


def test_an_image_that_is_listed_twice_counts_once(tmp_path: Path) -> None:
    simple(tmp_path, train=["images/train", "images/train"])
    found, issues = listed(read(str(tmp_path)))
    assert list(found) == ["images/train/a.jpg"]
    assert issues == [Issue("images/train/a.jpg", "train lists it twice: kept once", "label")]


def test_an_image_in_two_splits_is_refused_but_a_test_split_may_repeat_val(tmp_path: Path) -> None:
    write(simple(tmp_path), {"images/val/v.jpg": "x"})
    simple(tmp_path, val="images/val", test="images/val")
    assert {sample.split for sample in read(str(tmp_path)).samples} == {"train", "val"}
    simple(tmp_path, val="images/train")
    with pytest.raises(ValueError, match=r"1 images are in two splits, such as images/train/a.jpg \(train and val\)"):
        samples(tmp_path)


def test_names_are_a_list_or_go_by_index(tmp_path: Path) -> None:
    assert read(str(simple(tmp_path, names={1: "dog", 0: "cat"}, nc=2))).classes == ("cat", "dog")
    assert read(str(simple(tmp_path, names=["cat", 7]))).classes == ("cat", "7")


def test_without_a_description_folders_and_class_names_will_do(tmp_path: Path) -> None:
    flat = write(tmp_path / "flat", {"images/a.jpg": "x", "labels/a.txt": BOX, "classes.txt": "cat\ndog\n"})
    assert listed(read(str(flat))) == ({"images/a.jpg": "train"}, [])
    split = {
        "images/Train/a.jpg": "x",
        "labels/Train/a.txt": BOX,
        "images/valid/b.jpg": "x",
        "labels/classes.txt": "cat",
    }
    assert listed(read(str(write(tmp_path / "split", split)))) == (
        {"images/Train/a.jpg": "train", "images/valid/b.jpg": "val"},
        [],
    )
    inner = {"train/images/a.jpg": "x", "train/labels/a.txt": BOX, "val/images/b.jpg": "x", "val/labels/b.txt": BOX}
    inner_root = write(tmp_path / "inner", {**inner, "classes.txt": "cat"})
    assert listed(read(str(inner_root)))[0] == {"train/images/a.jpg": "train", "val/images/b.jpg": "val"}
    (inner_root / "classes.txt").unlink()
    with pytest.raises(ValueError, match=f"write {inner_root}/classes.txt with a name per line"):
        read(str(inner_root))


# ------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": None}, "data.yaml has no names of classes: write them as `names: [cat, dog]`"),
        ({"names": ["cat", True]}, "names[1] is True: write a text, in quotes"),
        ({"names": ["cat", "cat"]}, "names has 'cat' twice (index 0 and 1)"),
        ({"names": {0: "cat", 2: "dog"}}, "names lacks the index 1: 2 names are 0 to 1"),
        ({"nc": 3}, "nc is 3, but there are 2 names"),
        ({"path": 5}, "path is 5"),
        ({"train": 5}, "train is 5: write a folder"),
        ({"train": "images/no"}, "train does not exist; looked for {root}/images/no"),
        ({"train": "../no", "path": "images"}, "looked for {root}/no, {root}/images/no, "),
        ({"val": "gone.txt"}, "val does not exist; looked for {root}/gone.txt"),
        ({"train": "data.yaml"}, "{root}/data.yaml is neither a folder nor a .txt file with image paths"),
        ({"train": "labels"}, "{root}/labels has no images (.bmp"),
        ({"train": "images/other"}, "no image of {root}/images/other has labels: looked in {root}/labels/other"),
        ({"train": "list.txt"}, "none of the 1 images of {root}/list.txt exists, such as {root}/no/a.jpg"),
    ],
)
def test_a_wrong_description_is_refused_with_what_to_do(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write(simple(tmp_path, **change), {"images/other/b.jpg": "x", "list.txt": "no/a.jpg"})
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the message is compared below)
        samples(tmp_path)
    assert message.format(root=tmp_path) in str(caught.value)


def test_a_test_split_that_nobody_has_is_no_error(tmp_path: Path) -> None:
    assert set(samples(simple(tmp_path, test="images/test"))) == {"images/train/a.jpg"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: images\nnames: [cat\nval: x", "data.yaml:3: invalid YAML"),
        ("- train", "data.yaml is not a mapping"),
        ("!!python/object/apply:os.system ['true']", "data.yaml:1: invalid YAML: could not determine a constructor"),
    ],
)
def test_a_broken_description_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path, {"data.yaml": text})
    with pytest.raises(ValueError, match=message):
        read(str(tmp_path))


def test_one_of_several_descriptions_must_be_named(tmp_path: Path) -> None:
    content = (simple(tmp_path) / "data.yaml").read_text()
    write(tmp_path, {"data.yaml": "version: 1", "a.yaml": content, "b.yaml": content, "config.yaml": "task: detect"})
    with pytest.raises(ValueError, match=r"has several descriptions \(a.yaml, b.yaml\): name one of the files"):
        read(str(tmp_path))
    assert read(str(tmp_path / "b.yaml")).name == "b"


# -------------------------------------------------------------------------------------------------- detection


def test_what_is_detected(tmp_path: Path) -> None:
    detect = get_format("yolo").detect
    simple(tmp_path / "described")
    assert detect(Files(str(tmp_path / "described"))) == "there is a data.yaml with names"
    assert detect(Files(str(tmp_path / "described" / "data.yaml"))) == "there is a data.yaml with names"
    write(tmp_path / "folders", {"train/images/a.jpg": "x", "train/labels/a.txt": BOX})
    assert detect(Files(str(tmp_path / "folders"))) == "there are images/ beside labels/ with text files"
    write(tmp_path / "masks", {"images/a.jpg": "x", "labels/a.png": "x", "config.yaml": "train: 1", "broken.yaml": "{"})
    assert detect(Files(str(tmp_path / "masks"))) is None
    assert detect(Files(str(tmp_path / "masks" / "a.json"))) is None


def test_a_real_data_set(test_data: Path) -> None:
    source = read(str(test_data / "veg_yolo"))
    boxes = Counter[str]()
    classes = set()
    for sample in source.samples:
        assert sample.objects is not None
        boxes[sample.split] += len(sample.objects)
        classes |= {item.label for item in sample.objects}
    assert boxes == {"train": 88, "val": 73}
    assert (source.name, len(source.classes), len(classes), source.issues) == ("veg_yolo", 12, 6, [])
    manifest = read_manifest(str(test_data / "veg_yolo" / "data.yaml"))
    assert Counter(manifest.table["split"].to_pylist()) == {"train": 28, "val": 12}
    assert (manifest.format, manifest.reason) == ("yolo", "there is a data.yaml with names")
