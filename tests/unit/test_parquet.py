from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator.data import Issue, get_format, parquet
from orchestrator.data.files import Files
from orchestrator.data.manifest import read_manifest
from orchestrator.data.parquet import load, read
from trainables.contracts import Instance, Sample

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
CLASS_LABEL = {"names": ["cat", "dog"], "_type": "ClassLabel"}


def png(value: int = 0) -> bytes:
    return cv2.imencode(".png", np.full((4, 5, 3), value, np.uint8))[1].tobytes()


def images(count: int) -> pa.Array:
    return pa.array([{"bytes": png(i), "path": f"{i}.png"} for i in range(count)], IMAGE)


def write(path: Path, columns: dict[str, Any], features: dict[str, Any] | None = None, rows_per_group: int = 4) -> Path:
    """A Parquet file; `features` is what the Hugging Face library says about the columns."""
    count = max(len(column) for column in columns.values())
    table = pa.table({"image": images(count), **columns})
    if features:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=rows_per_group)
    return path


def samples(location: Path) -> list[Sample]:
    return list(read(str(location)).samples)


def objects(path: Path, columns: dict[str, Any]) -> list[tuple[Instance, ...] | None]:
    return [sample.objects for sample in samples(write(path / "a.parquet", columns))]


# ----------------------------------------------------------------------------------------------------- classes


def test_files_of_all_depths_with_the_split_by_name_and_the_names_by_metadata(tmp_path: Path) -> None:
    features = {"label": CLASS_LABEL}
    for name in ("data/train-00000-of-00002", "data/train-00001-of-00002", "data/validation-00000", "test/0000"):
        write(tmp_path / "pets" / f"{name}.parquet", {"label": [0, 1]}, features)
    source = read(str(tmp_path / "pets"))
    assert (source.name, source.classes) == ("pets", ("cat", "dog"))
    assert [(sample.id, sample.split, sample.label) for sample in source.samples] == [
        ("data/train-00000-of-00002.parquet:00000000", "train", 0),
        ("data/train-00000-of-00002.parquet:00000001", "train", 1),
        ("data/train-00001-of-00002.parquet:00000000", "train", 0),
        ("data/train-00001-of-00002.parquet:00000001", "train", 1),
        ("data/validation-00000.parquet:00000000", "val", 0),
        ("data/validation-00000.parquet:00000001", "val", 1),
        ("test/0000.parquet:00000000", "test", 0),
        ("test/0000.parquet:00000001", "test", 1),
    ]
    assert read(str(tmp_path / "pets" / "data")).name == "pets"


@pytest.mark.parametrize(
    ("labels", "classes", "indices"),
    [
        ([0, 3, 0], ("0", "1", "2", "3"), [0, 3, 0]),
        (["dog", "ape", "dog"], ("ape", "dog"), [1, 0, 1]),
        (pa.array(["dog", "ape", "dog"]).dictionary_encode(), ("ape", "dog"), [1, 0, 1]),
        (pa.array([1, 0, 1], pa.uint8()), ("0", "1"), [1, 0, 1]),
    ],
)
@pytest.mark.parametrize("column", ["label", "fine_label"])
def test_names_of_classes_without_metadata(
    tmp_path: Path, column: str, labels: Any, classes: tuple[str, ...], indices: list[int]
) -> None:
    source = read(str(write(tmp_path / "a.parquet", {"id": [1, 2, 3], column: labels}, rows_per_group=2)))
    assert source.classes == classes
    assert [sample.label for sample in source.samples] == indices


def test_rows_without_a_class_are_left_out_but_stay_in_a_test_split(tmp_path: Path) -> None:
    labels = pa.array([0, None, -1, 1])
    write(tmp_path / "train.parquet", {"label": labels})
    write(tmp_path / "test.parquet", {"label": labels})
    source = read(str(tmp_path))
    found = [(sample.split, sample.label) for sample in source.samples]
    assert found == [("test", 0), ("test", -1), ("test", -1), ("test", 1), ("train", 0), ("train", 1)]
    assert source.issues == [Issue(f"train.parquet:0000000{i}", "the row has no class") for i in (1, 2)]


# ----------------------------------------------------------------------------------------------------- objects


def test_objects_as_a_struct_of_lists(tmp_path: Path) -> None:
    cells = [
        {"id": [7, 8], "bbox": [[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 5.0, 1.0]], "category": [1, 0]},
        {"id": [], "bbox": [], "category": []},
        None,
    ]
    features = {"objects": {"feature": {"bbox": {}, "category": CLASS_LABEL}, "_type": "Sequence"}}
    columns = {"objects": cells, "width": [9, 8, None], "height": [6, 7, 7]}
    source = read(str(write(tmp_path / "a.parquet", columns, features)))
    first, second, third = source.samples
    assert source.classes == ("cat", "dog")
    assert first.objects == (Instance(1, (1, 2, 4, 6)), Instance(0, (0, 0, 5, 1)))
    assert (first.size, first.label, first.relative) == ((6, 9), -1, False)
    assert second.objects == () == third.objects
    assert third.size is None


def test_objects_as_a_list_of_structs_with_polygons_and_crowds(tmp_path: Path) -> None:
    cell = [
        {"bbox": [1, 1, 2, 2], "category": "owl", "segmentation": [[1, 1, 3, 1, 3, 3]], "iscrowd": 0},
        {"bbox": [0, 0, 1, 1], "category": "ape", "segmentation": [], "iscrowd": 1},
    ]
    assert objects(tmp_path, {"objects": [cell, []]}) == [
        (Instance(1, (1, 1, 3, 3), ((1, 1, 3, 1, 3, 3),)), Instance(0, (0, 0, 1, 1), crowd=True)),
        (),
    ]


@pytest.mark.parametrize(
    ("name", "box"), [("bbox", (1, 2, 4, 6)), ("bboxes", (1, 2, 4, 6)), ("boxes", (1, 2, 3, 4)), ("xyxy", (1, 2, 3, 4))]
)
def test_boxes_in_columns_of_their_own_go_by_the_columns_name(tmp_path: Path, name: str, box: tuple) -> None:
    assert objects(tmp_path, {name: [[[1, 2, 3, 4]], None], "labels": [[0], None]}) == [(Instance(0, box),), ()]


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ({"bbox": [[1, 2, 3, 4]], "category": [0, 1]}, "row 1: 1 boxes do not go with 2 of category"),
        ({"bbox": [[1, 2, 3]], "category": [0]}, r"row 1: bbox = \[1, 2, 3\] is not four numbers"),
        ({"bbox": [None], "category": [0]}, "row 1: bbox = null is not four numbers"),
        ({"bbox": [[1, 2, 3, 4]], "category": [2]}, r"row 1: class 2 is not one of the 2 classes \(0 to 1\)"),
        ({"bbox": [[1, 2, 3, 4]], "category": [None]}, "row 1: class None is not"),
    ],
)
def test_wrong_objects_are_refused_with_file_and_row(tmp_path: Path, cell: dict[str, Any], message: str) -> None:
    good = {"bbox": [[1, 2, 3, 4]], "category": [1]}
    path = write(tmp_path / "a.parquet", {"objects": [good, cell]}, {"objects": {"category": CLASS_LABEL}})
    with pytest.raises(ValueError, match=f"a.parquet {message}"):
        samples(path)


# ------------------------------------------------------------------------------------------------------ images


def test_images_come_row_by_row_in_any_order_and_from_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "KEPT_BYTES", 1)
    monkeypatch.setattr(parquet, "AT_A_TIME", 3)
    path = write(tmp_path / "#1.parquet", {"label": [0] * 20}, rows_per_group=10)
    references = [sample.image for sample in samples(path)]
    order = [*range(20), 3, 19, 0, 4, 11]
    assert [load(references[i]) for i in order] == [png(i) for i in order]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(load, references)) == [png(i) for i in range(20)]


@pytest.mark.parametrize("type", [pa.binary(), pa.large_binary(), IMAGE])
def test_an_image_may_be_plain_bytes_and_have_any_name_when_it_is_the_only_one(
    tmp_path: Path, type: pa.DataType
) -> None:
    cells = [{"bytes": png(7), "path": None}] if type == IMAGE else [png(7)]
    pq.write_table(pa.table({"photo": pa.array(cells, type), "label": [0]}), tmp_path / "a.parquet")
    assert load(samples(tmp_path)[0].image) == png(7)


def test_an_image_may_be_a_path_beside_the_file(tmp_path: Path) -> None:
    cells = pa.array([{"bytes": None, "path": "more/7.png"}, {"bytes": None, "path": None}, None], IMAGE)
    write(tmp_path / "set" / "a.parquet", {"image": cells, "label": [0, 0, 0]})
    (tmp_path / "set" / "more").mkdir()
    (tmp_path / "set" / "more" / "7.png").write_bytes(png(7))
    by_path, without, null = (sample.image for sample in samples(tmp_path / "set"))
    assert load(by_path) == png(7)
    for reference in (without, null):
        with pytest.raises(ValueError, match="the row has neither an image nor the path of one"):
            load(reference)


class Counted:
    """A file that counts the bytes that are read of it."""

    total = 0

    def __init__(self, place: str) -> None:
        self._file = open(place, "rb")  # noqa: SIM115 (closed by pyarrow)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        Counted.total += len(data)
        return data


def test_listing_does_not_read_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).bytes(100_000)
    cells = pa.array([{"bytes": noise[i:], "path": None} for i in range(20)], IMAGE)
    path = write(tmp_path / "a.parquet", {"image": cells, "label": list(range(20))}, rows_per_group=5)
    monkeypatch.setattr(parquet, "open_input", Counted)
    monkeypatch.setattr(Counted, "total", 0)
    assert len(samples(path)) == 20
    assert 0 < Counted.total < 300_000 < 1_000_000 < path.stat().st_size


def test_a_row_group_is_not_read_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of one row group that is larger than memory are common: pandas writes nothing else."""
    noise = np.random.default_rng(0).bytes(10_000)
    table = pa.table({"image": [noise[i:] for i in range(400)], "label": [0] * 400})
    pq.write_table(table, tmp_path / "a.parquet", use_dictionary=False, data_page_size=10_000, write_batch_size=4)
    monkeypatch.setattr(parquet, "open_input", Counted)
    monkeypatch.setattr(Counted, "total", 0)
    monkeypatch.setattr(parquet, "READ_BUFFER", 100_000)
    references = [sample.image for sample in samples(tmp_path)]
    assert [load(references[i]) for i in range(20)] == [noise[i:] for i in range(20)]
    assert Counted.total < 1_000_000 < 2_000_000 < (tmp_path / "a.parquet").stat().st_size


# ---------------------------------------------------------------------------------------- refusals, detection


def test_what_is_no_such_data_set_is_refused(tmp_path: Path) -> None:
    def refused(columns: dict[str, Any], message: str) -> None:
        pq.write_table(pa.table(columns), tmp_path / "a.parquet")
        with pytest.raises(ValueError, match=message):
            read(str(tmp_path))

    refused({"text": ["a"], "label": [0]}, r"a.parquet has no column of images .*: text \(string\), label \(int64\)$")
    refused({"x": [b""], "y": [b""], "label": [0]}, "has several columns of images .*: call one of them image; its col")
    refused(
        {"image": [b""], "label": [0.5]}, r"neither a class column .* nor boxes.*: image \(binary\), label \(double"
    )
    refused({"image": [b""], "bbox": [[1.0, 2.0, 3.0, 4.0]]}, "neither a class column")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(ValueError, match=r"a.parquet is not a Parquet file that can be read: Parquet magic bytes"):
        read(str(tmp_path))
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(ValueError, match=r"has no \.parquet files"):
        read(str(tmp_path))
    with pytest.raises(ValueError, match="there is no file or folder"):
        read(str(tmp_path / "absent"))


def test_labels_beyond_the_names_are_refused_with_the_first_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"label": [0, 2, 1, 3, 4, 5]}, {"label": CLASS_LABEL})
    with pytest.raises(
        ValueError, match=r"row 1: class 2 is not one of the 2 classes .*row 3: .*row 4: class 4, 1 more"
    ) as caught:
        samples(path)
    assert "row 5" not in str(caught.value)


def test_files_of_different_data_sets_are_not_mixed(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"label": [0]})
    write(tmp_path / "b.parquet", {"label": ["cat"]})
    with pytest.raises(ValueError, match=r"b.parquet has other columns than .*a.parquet"):
        read(str(tmp_path))
    write(tmp_path / "b.parquet", {"label": [0]}, {"label": CLASS_LABEL})
    with pytest.raises(ValueError, match=r"b.parquet has other names of classes than .*a.parquet"):
        read(str(tmp_path))


def test_what_is_detected(tmp_path: Path) -> None:
    detect = get_format("parquet").detect
    path = write(tmp_path / "default" / "train" / "0000.parquet", {"label": [0]})
    assert detect(Files(str(tmp_path))) == "there are Parquet files"
    assert detect(Files(str(path))) == "a Parquet file"
    assert detect(Files(str(tmp_path / "a.json"))) is None
    path.unlink()
    assert detect(Files(str(tmp_path))) is None


def test_a_manifest_of_a_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"label": [0, 1] * 6})
    manifest = read_manifest(str(path), "parquet")
    assert [load(sample.image) for sample in manifest.samples()] == [png(i) for i in range(12)]
