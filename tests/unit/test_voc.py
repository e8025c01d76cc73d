from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from orchestrator.data import voc
from orchestrator.data.faults import Wrong
from orchestrator.data.files import Files
from orchestrator.data.manifest import read_manifest
from orchestrator.data.voc import FORMAT, read
from trainables.contracts import Instance, Sample

Box = tuple[Any, Any, Any, Any]


def item(name: str, box: Box, more: str = "") -> str:
    sides = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return f"<object>\n<name>{name}</name>\n{more}<bndbox>{sides}</bndbox>\n</object>\n"


def document(*items: str, filename: str = "", size: tuple[Any, Any] | None = (30, 40)) -> str:
    told = f"<size><width>{size[1]}</width><height>{size[0]}</height></size>\n" if size else ""
    return f"<annotation>\n<filename>{filename}</filename>\n{told}{''.join(items)}</annotation>\n"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def voc_set(root: Path, annotations: dict[str, str], lists: dict[str, str] | None = None) -> Path:
    """With an image (which is never opened) for each annotation."""
    write(root, {f"JPEGImages/{name}.jpg": "x" for name in annotations})
    write(root, {f"ImageSets/Main/{name}.txt": text for name, text in (lists or {}).items()})
    return write(root, {f"Annotations/{name}.xml": text for name, text in annotations.items()})


CAT = item("cat", (1, 2, 10, 20))
ONE = document(CAT)


def samples(location: Path) -> dict[str, Sample]:
    return {sample.id: sample for sample in read(str(location)).samples}


def splits(location: Path) -> dict[str, str]:
    return {id.rpartition("/")[2].removesuffix(".jpg"): sample.split for id, sample in samples(location).items()}


def boxes(root: Path, *given: Box) -> list[Any]:
    voc_set(root, {"a": document(*(item("cat", box) for box in given))})
    return [o.box for o in samples(root)["JPEGImages/a.jpg"].objects or ()]


def refusal(location: Path) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the message is compared by the caller)
        list(read(str(location)).samples)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------- content


def test_objects_and_sizes_are_read(tmp_path: Path) -> None:
    two = document(item("dog", (5, 6, 7.5, 9)), CAT, filename="a.jpg")
    voc_set(tmp_path, {"a": two, "b": document(size=None)})
    source = read(str(tmp_path))
    first, second = source.samples
    assert (source.classes, source.issues) == (("cat", "dog"), [])
    assert first.objects == (Instance(1, (4, 5, 7.5, 9)), Instance(0, (0, 1, 10, 20)))
    assert (first.id, first.split, first.size) == ("JPEGImages/a.jpg", "train", (30, 40))
    assert (first.image, first.stamp[:2]) == (str(tmp_path / "JPEGImages/a.jpg"), "1:")
    assert (second.objects, second.size) == ((), None)


def test_pixels_are_counted_from_one(tmp_path: Path) -> None:
    assert boxes(tmp_path, (1, 1, 40, 30), (3, 4, 5, 6)) == [(0, 0, 40, 30), (2, 3, 5, 6)]


@pytest.mark.parametrize("edge", [(0, 5, 9, 9), (5, 0, 9, 9), (0.4, 5, 9, 9)])
def test_one_side_below_one_tells_that_the_whole_set_counts_from_zero(tmp_path: Path, edge: Box) -> None:
    voc_set(tmp_path, {"b": document(item("cat", edge))})
    assert boxes(tmp_path, (1, 1, 40, 30)) == [(1, 1, 40, 30)]


@pytest.mark.parametrize("slip", [(-2, 5, 9, 9), (0, 0, 0, 0)])
def test_slips_of_the_labelling_tell_nothing(tmp_path: Path, slip: Box) -> None:
    voc_set(tmp_path, {"b": document(item("cat", slip))})
    assert boxes(tmp_path, (1, 1, 40, 30)) == [(0, 0, 40, 30)]


def test_boxes_without_area_stay_so(tmp_path: Path) -> None:
    assert boxes(tmp_path, (5, 5, 5, 5), (9, 2, 9, 4)) == [(5, 5, 5, 5), (9, 1, 9, 4)]


def test_difficult_objects_are_neither_found_nor_missed(tmp_path: Path) -> None:
    hard = item("cat", (1, 1, 2, 2), "<difficult>1</difficult>")
    easy = item("cat", (1, 1, 2, 2), "<difficult>0</difficult>")
    voc_set(tmp_path, {"a": document(hard, easy, CAT)})
    assert [o.crowd for o in samples(tmp_path)["JPEGImages/a.jpg"].objects or ()] == [True, False, False]


def test_parts_of_an_object_are_not_objects(tmp_path: Path) -> None:
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    voc_set(tmp_path, {"a": document(item("person", (1, 1, 9, 9), part))})
    assert (read(str(tmp_path)).classes, len(samples(tmp_path)["JPEGImages/a.jpg"].objects or ())) == (("person",), 1)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("classes.txt", "zebra\ncat\n\nant\n"),
        ("labels.txt", "zebra\ncat\nant"),
        ("labelmap.txt", "# label:color:parts:actions\nbackground:0,0,0::\nzebra:1,2,3::\ncat:4,5,6::\nant:::\n"),
    ],
)
def test_a_list_of_classes_gives_their_order(tmp_path: Path, name: str, text: str) -> None:
    voc_set(tmp_path, {"a": ONE})
    write(tmp_path, {name: text})
    assert read(str(tmp_path)).classes == ("zebra", "cat", "ant")
    assert [o.label for o in samples(tmp_path)["JPEGImages/a.jpg"].objects or ()] == [1]


# ------------------------------------------------------------------------------------------------- layouts


@pytest.mark.parametrize(
    ("lists", "expected"),
    [
        ({"train": "a\nb\n", "val": "c\n", "trainval": "a\nb\nc\n"}, {"a": "train", "b": "train", "c": "val"}),
        ({"train": "a\n", "trainval": "a\nb\n", "test": "c"}, {"a": "train", "b": "train", "c": "test"}),
        ({"train": "a\r\n\r\n b \r\n", "valid": "c.jpg"}, {"a": "train", "b": "train", "c": "val"}),
        ({"train": "a\na\nb", "cat_train": "a  1\nb -1\nc -1"}, {"a": "train", "b": "train"}),
        ({"cat_train": "a 1", "default": "a"}, {"a": "train", "b": "train", "c": "train"}),
        ({}, {"a": "train", "b": "train", "c": "train"}),
    ],
)
def test_lists_tell_the_splits(tmp_path: Path, lists: dict[str, str], expected: dict[str, str]) -> None:
    voc_set(tmp_path, {"a": ONE, "b": ONE, "c": ONE}, lists)
    assert splits(tmp_path) == expected


@pytest.mark.parametrize("wrapper", ["", "BCCD", "VOCdevkit/VOC2012"])
def test_wrappers_are_looked_through(tmp_path: Path, wrapper: str) -> None:
    voc_set(tmp_path / wrapper, {"a": ONE})
    source = read(str(tmp_path))
    assert (source.name, [sample.id for sample in source.samples]) == (tmp_path.name, ["JPEGImages/a.jpg"])
    assert FORMAT.detect(Files(str(tmp_path))) == f"{tmp_path / wrapper / 'Annotations'} has XML annotations"


def test_several_sets_below_one_folder_are_refused(tmp_path: Path) -> None:
    voc_set(tmp_path / "VOC2007", {"a": ONE})
    voc_set(tmp_path / "VOC2012", {"a": ONE})
    expected = f"{tmp_path} has several data sets, name one: {tmp_path}/VOC2007, {tmp_path}/VOC2012"
    assert refusal(tmp_path) == expected


def test_annotations_may_lie_beside_the_images_of_a_split(tmp_path: Path) -> None:
    write(
        tmp_path, {f"{name}{suffix}": ONE for name in ("train/a", "valid/b", "test/c") for suffix in (".xml", ".jpg")}
    )
    assert {id: s.split for id, s in samples(tmp_path).items()} == {
        "train/a.jpg": "train",
        "valid/b.jpg": "val",
        "test/c.jpg": "test",
    }


@pytest.mark.parametrize(
    ("xml", "image"),
    [
        ("a.xml", "a.png"),
        ("annotations/a.xml", "images/a.PNG"),
        ("Annotations/a.xml", "Annotations/a.jpg"),
        ("Annotations/north/a.xml", "JPEGImages/north/a.jpg"),
    ],
)
def test_annotations_and_images_may_lie_otherwise(tmp_path: Path, xml: str, image: str) -> None:
    top = xml.split("/")[0] if "/" in xml else "."
    write(tmp_path, {xml: ONE, image: "x", f"{top}/b.xml": ONE})
    assert set(samples(tmp_path)) >= {image}


def test_folders_without_annotations_are_not_detected(tmp_path: Path) -> None:
    write(tmp_path, {"train/cat/1.jpg": "x", "train/meta.xml": "<notes/>", "Annotations/x.txt": ""})
    assert FORMAT.detect(Files(str(tmp_path))) is None
    assert "has no VOC annotations: expected Annotations/*.xml" in refusal(tmp_path)


def test_the_image_has_the_name_of_the_xml_or_else_its_filename(tmp_path: Path) -> None:
    voc_set(tmp_path, {"a": document(filename="b.jpg"), "b": ONE})
    write(tmp_path, {"Annotations/x.xml": document(filename="photo.png"), "JPEGImages/photo.png": "x"})
    write(tmp_path, {"Annotations/y.xml": document(filename="y.png"), "JPEGImages/y.png": "x", "JPEGImages/y.jpg": "x"})
    assert {Path(id).name for id in samples(tmp_path)} == {"a.jpg", "b.jpg", "photo.png", "y.png"}


def test_a_missing_image_stays_and_says_so(tmp_path: Path) -> None:
    voc_set(tmp_path, {"a": ONE})
    write(tmp_path, {"Annotations/b.xml": document(CAT, filename="C:\\set\\b.jpeg"), "Annotations/c.xml": ONE})
    found = {id: sample.stamp == "missing" for id, sample in samples(tmp_path).items()}
    assert found == {"JPEGImages/a.jpg": False, "JPEGImages/b.jpeg": True, "JPEGImages/c.jpg": True}


def test_listed_images_without_annotation_are_left_out_and_reported(tmp_path: Path) -> None:
    voc_set(tmp_path, {"a": ONE, "b": ONE}, {"train": "a\nx\ny", "val": "b"})
    write(tmp_path, {"JPEGImages/x.jpg": "x"})
    assert splits(tmp_path) == {"a": "train", "b": "val"}
    assert [(issue.id, issue.kind, issue.reason) for issue in read(str(tmp_path)).issues] == [
        ("JPEGImages/x.jpg", "image", "ImageSets/Main/train.txt lists it, but Annotations has no x.xml"),
        ("y", "image", "ImageSets/Main/train.txt lists it, but Annotations has no y.xml"),
    ]


def test_a_test_list_without_any_annotation_is_ignored(tmp_path: Path) -> None:
    voc_set(tmp_path, {"a": ONE, "b": ONE}, {"train": "a", "val": "b", "test": "x\ny"})
    assert (splits(tmp_path), read(str(tmp_path)).issues) == ({"a": "train", "b": "val"}, [])


def test_files_of_a_bucket_are_read_side_by_side_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    voc_set(tmp_path, {f"{i:02d}": document(item(f"c{i}", (1, 1, 9, 9))) for i in range(20)})
    two = threading.Barrier(2, timeout=5)

    def read_when_two_ask(self: Files, path: str) -> bytes:
        two.wait()
        return (tmp_path / path).read_bytes()

    monkeypatch.setattr(voc, "CHUNK", 8)
    monkeypatch.setattr(Files, "read", read_when_two_ask)
    bucket = Files("s3://bucket/set")
    found = list(voc._parsed(bucket, [f"Annotations/{i:02d}.xml" for i in range(20)]))
    assert [a.names for a in found if not isinstance(a, Wrong)] == [[f"c{i}"] for i in range(20)]


def test_a_real_data_set(test_data: Path) -> None:
    source = read(str(test_data / "bccd_voc"))
    found = list(source.samples)
    objects = [o for sample in found for o in sample.objects or ()]
    assert (source.name, source.classes, source.issues) == ("bccd_voc", ("Platelets", "RBC", "WBC"), [])
    assert Counter(sample.split for sample in found) == {"train": 205, "val": 87, "test": 72}
    assert Counter(source.classes[o.label] for o in objects) == {"RBC": 4155, "WBC": 372, "Platelets": 361}
    # Counted from 1: the outermost boxes reach exactly from edge to edge.
    assert {sample.size for sample in found} == {(480, 640)}
    sides = list(zip(*(o.box or () for o in objects), strict=True))
    assert (min(sides[0]), min(sides[1]), max(sides[2]), max(sides[3])) == (0, 0, 640, 480)
    flat = {s.id for s in found for o in s.objects or () if o.box and o.box[0] == o.box[2] and o.box[1] == o.box[3]}
    assert flat == {"JPEGImages/BloodImage_00338.jpg", "JPEGImages/BloodImage_00343.jpg"}
    assert len(read_manifest(str(test_data / "bccd_voc"))) == 205 + 87


# ----------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation>\n<object>\n</annotation>", "Annotations/b.xml is not XML: mismatched tag: line 3, column 2"),
        ("", "Annotations/b.xml is not XML: no element found: line 1, column 0"),
        ('<?xml version="1.0" encoding="nonsense"?><annotation/>', "Annotations/b.xml is not XML: unknown encoding"),
        ("<labels/>", "Annotations/b.xml is no VOC annotation but <labels>"),
        (document(item(" ", (1, 1, 2, 2))), "Annotations/b.xml, line 4: <object> has no name"),
        (document(CAT, "<object><name>cat</name></object>"), "Annotations/b.xml, line 8: <object> has no bndbox"),
        (document(CAT, item("cat", (1, "two", 3, 4))), "Annotations/b.xml, line 8: ymin = 'two' is not a number"),
        (document(item("cat", (1, 2, "nan", 4))), "Annotations/b.xml, line 4: xmax = 'nan' is not a number"),
        (document(item("cat", (1, 2, 3, ""))), "Annotations/b.xml, line 4: ymax is missing"),
        (
            document(item("cat", (1, 2, 3, 4), "<difficult>very</difficult>")),
            "Annotations/b.xml, line 4: difficult = 'very' is not a number",
        ),
        (
            '<!DOCTYPE x [<!ENTITY a "1"><!ENTITY b "&a;&a;&a;">]>' + document(item("&b;", (1, 2, 3, 4))),
            "Annotations/b.xml has a DOCTYPE, which may blow up to any size: remove it",
        ),
    ],
)
def test_broken_annotations_are_refused_with_their_line(tmp_path: Path, text: str, message: str) -> None:
    voc_set(tmp_path, {"a": ONE, "b": text})
    assert refusal(tmp_path).startswith(f"{tmp_path}: {message}")


def test_a_doctype_in_another_encoding_is_refused_as_well(tmp_path: Path) -> None:
    voc_set(tmp_path, {"a": ONE, "b": ""})
    text = '<?xml version="1.0" encoding="utf-16"?><!DOCTYPE x [<!ENTITY a "cat">]><annotation>&a;</annotation>'
    (tmp_path / "Annotations/b.xml").write_bytes(text.encode("utf-16"))
    assert "has a DOCTYPE" in refusal(tmp_path)


def test_the_first_of_many_broken_ones_are_named(tmp_path: Path) -> None:
    voc_set(tmp_path, {"a": ONE} | {f"b{i}": document(item("", (1, 1, 2, 2))) for i in range(5)})
    assert refusal(tmp_path) == (
        f"{tmp_path}: Annotations/b0.xml, line 4: <object> has no name "
        "(also Annotations/b1.xml, line 4: <object>, Annotations/b2.xml, line 4: <object>, 2 more)"
    )


def test_a_link_to_nowhere_is_refused(tmp_path: Path) -> None:
    voc_set(tmp_path, {"a": ONE})
    (tmp_path / "Annotations/b.xml").symlink_to(tmp_path / "absent")
    assert refusal(tmp_path) == f"{tmp_path}: Annotations/b.xml cannot be read: No such file or directory"


def test_names_that_the_list_lacks_are_refused_with_the_nearest(tmp_path: Path) -> None:
    voc_set(tmp_path, {"a": document(item("zebar", (1, 1, 2, 2)), CAT)})
    write(tmp_path, {"classes.txt": "cat\nzebra"})
    assert refusal(tmp_path) == f"{tmp_path}: Annotations/a.xml: 'zebar' is not in classes.txt: did you mean zebra?"
    write(tmp_path, {"classes.txt": "cat\nzebra\ncat"})
    assert refusal(tmp_path) == f"{tmp_path}/classes.txt, line 3: 'cat' is also in line 1"


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"train": "a\nb", "val": "b"}, "b is in {main}/train.txt and in {main}/val.txt: it may be in one split only"),
        ({"val": "a", "test": "b"}, "{main} has val and test but neither train.txt nor trainval.txt"),
        ({"train": "x\ny", "val": "a"}, "{main}/train.txt: none of its 2 images, such as x, has an XML file in"),
    ],
)
def test_lists_that_make_no_sense_are_refused(tmp_path: Path, lists: dict[str, str], message: str) -> None:
    voc_set(tmp_path, {"a": ONE, "b": ONE}, lists)
    assert refusal(tmp_path).startswith(message.format(main=tmp_path / "ImageSets/Main"))


def test_a_set_without_its_images_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"Annotations/a.xml": document(filename="b.jpg")})
    assert refusal(tmp_path).startswith(f"{tmp_path}/Annotations has no images (.bmp")
    write(tmp_path, {"JPEGImages/other.jpg": "x"})
    assert refusal(tmp_path) == (
        f"{tmp_path}/Annotations/a.xml and all others have no image: looked for a.* and b.jpg in {tmp_path}/JPEGImages"
    )


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "absent") == f"there is no folder {tmp_path}/absent"
