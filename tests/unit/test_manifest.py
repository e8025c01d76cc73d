from __future__ import annotations

import os
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.data import Format, Source
from orchestrator.data.manifest import Manifest, read_manifest
from tests.pictures import write_image, write_images
from trainables.contracts import Instance, Sample


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_images(tmp_path / "pets", {"train/cat": 3, "train/dog": 3, "val/cat": 1, "test/cat": 2})


def fingerprint(root: Path) -> str:
    return read_manifest(str(root)).fingerprint


def test_the_table_holds_what_training_reads(root: Path) -> None:
    manifest = read_manifest(str(root))
    assert (manifest.name, manifest.format, manifest.classes) == ("pets", "imagefolder", ("cat", "dog"))
    columns = manifest.table.to_pydict()
    assert columns["id"] == sorted(columns["id"])
    assert columns["split"] == ["train"] * 6 + ["val"]
    assert columns["label"] == [0, 0, 0, 1, 1, 1, 0]
    assert columns["image"] == [str(root / name) for name in columns["id"]]


def test_why_this_format_is_told(root: Path) -> None:
    assert read_manifest(str(root)).reason == "a folder of class folders"
    assert read_manifest(str(root), "imagefolder").reason == "as configured"


def touch(root: Path) -> None:
    os.utime(root / "train/cat/0.png", ns=(5, 5))


def grow(root: Path) -> None:
    path = root / "train/cat/0.png"
    stamp = path.stat().st_mtime_ns
    path.write_bytes(path.read_bytes() + b"\0")
    os.utime(path, ns=(stamp, stamp))


def add(root: Path) -> None:
    write_image(root / "train/dog/new.png")


def remove(root: Path) -> None:
    (root / "train/dog/2.png").unlink()


def rename_image(root: Path) -> None:
    (root / "train/dog/2.png").rename(root / "train/dog/3.png")


def relabel(root: Path) -> None:
    (root / "train/dog/2.png").rename(root / "train/cat/3.png")


def rename_class(root: Path) -> None:
    (root / "train/dog").rename(root / "train/wolf")


def change_split(root: Path) -> None:
    (root / "train/cat/2.png").rename(root / "val/cat/2.png")


@pytest.mark.parametrize(
    "change", [touch, grow, add, remove, rename_image, relabel, rename_class, change_split], ids=lambda f: f.__name__
)
def test_the_fingerprint_changes_with_the_data(root: Path, change: Callable[[Path], None]) -> None:
    before = fingerprint(root)
    change(root)
    assert fingerprint(root) != before


def test_the_fingerprint_stays_where_the_data_stay(root: Path) -> None:
    before = fingerprint(root)
    assert fingerprint(root) == before
    write_image(root / "test/cat/new.png")
    (root / "train/cat/notes.txt").write_text("x")
    assert fingerprint(root) == before, "neither test images nor other files are trained on"
    moved = root.rename(root.with_name("animals"))
    assert fingerprint(moved) == before, "a moved data set is the same data set"


def read_listed(samples: list[Sample], classes: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> Manifest:
    """Through a format of the user's own."""
    module = types.ModuleType("users_format")
    module.FORMAT = Format(lambda location: Source("own", classes, samples))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "users_format", module)
    return read_manifest("s3://somewhere", "users_format:FORMAT")


def test_the_order_of_the_listing_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [Sample(f"{i}", "train", f"s3://somewhere/{i}", "etag", i % 2) for i in range(9)]
    first = read_listed(samples, ("a", "b"), monkeypatch)
    second = read_listed(samples[::-1], ("a", "b"), monkeypatch)
    assert first.fingerprint == second.fingerprint
    assert first.table.equals(second.table)


def test_every_column_and_the_classes_are_part_of_the_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [Sample(f"{i}", "train", f"{i}", "etag", i % 2) for i in range(4)]
    changes: list[dict[str, Any]] = [{}, {"id": "x"}, {"split": "val"}, {"stamp": "newer"}, {"label": 1}]
    listed = [[replace(samples[0], **change), *samples[1:]] for change in changes]
    made = {read_listed(some, ("a", "b"), monkeypatch).fingerprint for some in listed}
    made |= {read_listed(samples, classes, monkeypatch).fingerprint for classes in (("b", "a"), ("a", "b", "c"))}
    assert len(made) == 7
    elsewhere = [replace(sample, image=f"copy/{sample.image}") for sample in samples]
    assert read_listed(elsewhere, ("a", "b"), monkeypatch).fingerprint in made


def test_the_bundled_digits_have_a_manifest() -> None:
    manifest = read_manifest("digits")
    assert (manifest.name, manifest.format, len(manifest.table)) == ("digits", "digits", 1797)
    assert manifest.fingerprint == read_manifest("digits").fingerprint


def test_every_kind_of_sample_comes_back_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    outline = [[0.1, 0.2, 0.3, 0.4, 0.5, 0.6]]
    runs = {"size": [3, 4], "counts": "0PPP"}
    instances = (Instance(1, (0, 1, 2, 3.5)), Instance(0, None, outline, crowd=True), Instance(0, None, runs))
    samples = [
        Sample("a", "train", "/a.png", "s", 1),
        Sample("b", "train", "/b.png", "s", objects=(), size=(3, 4)),
        Sample("c", "val", "/c.png", "s", objects=(*instances, Instance(1, None, "/m.png")), relative=True),
    ]
    manifest = read_listed(samples[::-1], ("x", "y"), monkeypatch)
    assert list(manifest.samples()) == samples
    assert manifest.has_objects
    for change in ({"crowd": False}, {"label": 1}, {"mask": [[0.0] * 6]}):
        other = (instances[0], replace(instances[1], **change), instances[2])
        changed = read_listed([*samples[:2], replace(samples[2], objects=other)], ("x", "y"), monkeypatch)
        assert changed.fingerprint != manifest.fingerprint


def test_run_lengths_may_be_bytes_and_polygons_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    masks: list[Any] = [{"size": [3, 4], "counts": b"0PPP"}, [np.array([0, 1, 2, 3, 4, 5.5])]]
    sample = Sample("a", "train", "", "", objects=tuple(Instance(0, None, mask) for mask in masks))
    [found] = read_listed([sample], ("x", "y"), monkeypatch).samples()
    assert found.objects is not None
    assert [item.mask for item in found.objects] == [{"size": [3, 4], "counts": "0PPP"}, [[0, 1, 2, 3, 4, 5.5]]]


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (Sample("pic", "train", "", "", 2), "pic has class index 2, but there are 2 classes"),
        (Sample("pic", "train", "", "", objects=(Instance(-1),)), "pic has class index -1"),
    ],
)
def test_a_class_that_is_not_there_is_refused(sample: Sample, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=message):
        read_listed([sample], ("a", "b"), monkeypatch)


def test_an_id_that_stands_for_two_images_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    twice = [Sample("a", "train", "1", "", 0), Sample("b", "train", "2", "", 0), Sample("a", "val", "3", "", 0)]
    with pytest.raises(ValueError, match="'a' stands for several images"):
        read_listed(twice, ("a", "b"), monkeypatch)


def test_a_reader_that_gives_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("users_format")
    module.read = lambda location: []  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "users_format", module)
    with pytest.raises(ValueError, match=r"users_format:read gave a list instead of an orchestrator\.data\.Source"):
        read_manifest("x", "users_format:read")


def test_a_part_of_a_manifest_is_one_of_its_own(root: Path) -> None:
    manifest = read_manifest(str(root))
    part = manifest.take(np.array([0, 2, 5]))
    assert part.table["id"].to_pylist() == [manifest.table["id"][i].as_py() for i in (0, 2, 5)]
    assert part.fingerprint != manifest.fingerprint
    assert manifest.take(np.arange(len(manifest))).fingerprint == manifest.fingerprint
