from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.data import FORMATS, detect
from orchestrator.data.files import Entry, Files, open_input, read_bytes, read_many


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def walked(location: Path, path: str = "") -> list[str]:
    return [entry.path for entry in Files(str(location)).walk(path)]


# ----------------------------------------------------------------------------------------------------- listing


def test_a_folder_lists_what_lies_in_it_and_what_lies_below(tmp_path: Path) -> None:
    files = Files(str(touch(tmp_path, "b.JPG", "a/2.png", "a/1.png", "a/.hidden", ".git/x")))
    assert [(entry.path, entry.is_dir) for entry in files.entries()] == [("a", True), ("b.JPG", False)]
    assert [(entry.name, entry.suffix) for entry in files.entries("a")] == [("1.png", ".png"), ("2.png", ".png")]
    assert walked(tmp_path) == ["a/1.png", "a/2.png", "b.JPG"]
    assert walked(tmp_path, "a") == ["a/1.png", "a/2.png"]
    assert walked(tmp_path, str(tmp_path / "a")) == [str(tmp_path / "a/1.png"), str(tmp_path / "a/2.png")]
    assert files.entries()[1].suffix == ".jpg"


def test_an_entry_tells_files_folders_and_nothing(tmp_path: Path) -> None:
    files = Files(str(touch(tmp_path, "a/1.png")))
    stat = (tmp_path / "a/1.png").stat()
    assert files.entry("a/1.png") == Entry("a/1.png", False, f"{stat.st_size}:{stat.st_mtime_ns}")
    assert (files.is_dir("a"), files.is_file("a"), files.is_file("a/1.png"), files.is_dir()) == (
        True,
        False,
        True,
        True,
    )
    assert files.entry("a/2.png") is None
    assert files.entry("a/1.png/deeper") is None


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    root = touch(tmp_path / "set", "a/1.png", "b/2.png")
    touch(tmp_path / "outside", "3.png")
    (root / "a" / "out").symlink_to(tmp_path / "outside")
    (root / "a" / "up").symlink_to(root)
    (root / "b" / "a").symlink_to(root / "a")
    (root / "b" / "none.png").symlink_to(tmp_path / "absent")
    assert walked(root) == ["a/1.png", "a/out/3.png", "b/2.png", "b/a/1.png", "b/a/out/3.png", "b/none.png"]
    stamps = {entry.path: entry.stamp for entry in Files(str(root)).walk()}
    assert stamps["b/none.png"] == "unreadable"
    assert stamps["b/a/1.png"] == stamps["a/1.png"]


def test_what_cannot_be_listed_is_told(tmp_path: Path) -> None:
    files = Files(str(touch(tmp_path, "a.txt")))
    for path in ("absent", "a.txt"):
        with pytest.raises(ValueError, match=f"there is no folder {tmp_path}/{path}"):
            files.entries(path)
        with pytest.raises(ValueError, match="there is no folder"):
            list(files.walk(path))


# ------------------------------------------------------------------------------------------------------ places


@pytest.mark.parametrize(
    ("location", "path", "place"),
    [
        ("/data/x", "a/../b.png", "/data/x/b.png"),
        ("/data/x/", "../y", "/data/y"),
        ("/data/x", "/abs/y", "/abs/y"),
        ("/data/x", "s3://bucket/y", "s3://bucket/y"),
        ("s3://bucket/x/", "a/./b.png", "s3://bucket/x/a/b.png"),
        ("s3://bucket/x", "../y", "s3://bucket/y"),
        ("gs://bucket", "y", "gs://bucket/y"),
    ],
)
def test_places_of_paths(location: str, path: str, place: str) -> None:
    assert Files(location).place(path) == place


def test_home_and_the_working_folder_are_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert Files("~/x").location == Files("x").location == f"{tmp_path}/x"


@pytest.mark.parametrize(
    ("location", "name"),
    [
        ("/sets/fruit", "fruit"),
        ("/sets/fruit/data", "fruit"),
        ("/sets/fruit/dataset/images/", "fruit"),
        ("s3://bucket/fruit/data", "fruit"),
        ("s3://bucket/data", "bucket"),
        ("/data", "/data"),
    ],
)
def test_a_data_set_is_called_by_the_folder_whose_name_says_most(location: str, name: str) -> None:
    assert Files(location).name == name


def test_the_folder_of_a_file(tmp_path: Path) -> None:
    assert Files(f"{tmp_path}/a/data.yaml").folder.location == f"{tmp_path}/a"
    assert Files("s3://bucket/data.yaml").folder.location == "s3://bucket"
    assert Files("/x").folder.location == "/"


# ----------------------------------------------------------------------------------------------------- reading


def test_files_are_read_as_bytes_as_text_and_many_in_order(tmp_path: Path) -> None:
    files = Files(str(touch(tmp_path, *(f"{i}.txt" for i in range(50)))))
    assert files.read("3.txt") == b"3.txt"
    places = [files.place(f"{i}.txt") for i in range(50)]
    assert list(read_many(iter(places))) == [read_bytes(place) for place in places]
    assert list(read_many([])) == []
    with open_input(places[7]) as file:
        file.seek(2)
        assert file.read() == b"txt"
    (tmp_path / "bom.txt").write_bytes("\ufeffgrün".encode())
    (tmp_path / "latin.txt").write_bytes("grün".encode("latin-1"))
    assert files.read_text("bom.txt") == "grün"
    with pytest.raises(ValueError, match=r"latin.txt is not text in UTF-8 \(byte 2\)"):
        files.read_text("latin.txt")


# --------------------------------------------------------------------------------------------------- detection


def test_what_is_nowhere_or_nothing_known_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=rf"there is no file or folder fruit \(looked for {tmp_path}/fruit\)"):
        detect("fruit")
    with pytest.raises(ValueError, match=rf"is in no known format \({', '.join(FORMATS)}\): name a folder with class"):
        detect(str(touch(tmp_path, "notes.txt", "images.zip")))


@pytest.mark.parametrize(
    ("data", "format"),
    [
        ("grocery_fruit/dataset", "imagefolder"),
        ("grocery_fruit", "imagefolder"),
        ("veg_yolo", "yolo"),
        ("veg_yolo/data.yaml", "yolo"),
        ("nuts_coco", "coco"),
        ("nuts_coco/data", "coco"),
        ("bccd_voc", "voc"),
        ("bccd_voc/BCCD", "voc"),
    ],
)
def test_real_data_sets_are_told_apart(test_data: Path, data: str, format: str) -> None:
    assert detect(os.path.join(test_data, data))[0] == format


def test_the_bundled_data_set_needs_no_place() -> None:
    assert detect("digits") == ("digits", "the bundled data set")
