from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.data import cache as cache_module
from orchestrator.data.cache import Cache, Issue, cache_folder, open_cache, stored_size
from orchestrator.data.manifest import read_manifest
from orchestrator.data.shards import write_shard
from tests.pictures import numbered_rows, write_cache, write_images

ROWS = numbered_rows(train=17, val=4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_cache(tmp_path / "cache", ROWS, rows_per_shard=8)


def test_samples_keep_their_columns_and_pixels_over_all_shards(folder: Path) -> None:
    cache = Cache(folder)
    assert len(cache) == len(ROWS) == 21
    assert cache.ids.to_pylist() == [row.id for row in ROWS]
    assert cache.keys.tolist() == [row.key for row in ROWS]
    assert cache.keys.dtype == np.uint64
    assert cache.labels.tolist() == [row.label for row in ROWS]
    assert cache.splits == [row.split for row in ROWS]
    for position in np.random.default_rng(0).permutation(len(ROWS)):
        assert np.array_equal(cache.image(position), ROWS[position].pixels)
    assert cache.bytes == sum(path.stat().st_size for path in folder.glob("*.arrow"))
    assert cache.build_seconds == 1.5


def test_what_was_left_out_is_known(tmp_path: Path) -> None:
    folder = write_cache(tmp_path / "cache", ROWS, issues=[{"id": "train/x", "reason": "the file is empty"}])
    assert Cache(folder).issues == [Issue("train/x", "the file is empty")]


def test_an_absent_cache_is_none(tmp_path: Path) -> None:
    assert open_cache(tmp_path / "absent") is None
    (tmp_path / "empty").mkdir()
    assert open_cache(tmp_path / "empty") is None


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def overwrite(path: Path) -> None:
    path.write_bytes(b"\0" * path.stat().st_size)


def exchange(path: Path) -> None:
    write_shard(path, ROWS[:2])


@pytest.mark.parametrize("damage", [Path.unlink, truncate, lengthen, overwrite, exchange], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", ["shard-00000.arrow", "shard-00002.arrow"])
def test_a_damaged_shard_is_not_opened(folder: Path, name: str, damage: Callable[[Path], None]) -> None:
    damage(folder / name)
    assert open_cache(folder) is None
    with pytest.raises((OSError, ValueError)):
        Cache(folder)


def changed(folder: Path, **values: Any) -> None:
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps({**index, **values}))


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", "3", '"text"', "{}", '{"format_version": 1}', '{"format_version": "x"}', "\xff\xfe"],
)
def test_a_damaged_index_is_not_opened(folder: Path, content: str) -> None:
    (folder / "index.json").write_bytes(content.encode("latin-1"))
    assert open_cache(folder) is None


@pytest.mark.parametrize(
    "values", [{"issues": [{"name": "x"}]}, {"issues": None}, {"shards": 3}, {"shards": [{}]}, {"shards": []}]
)
def test_an_index_of_another_shape_is_not_opened(folder: Path, values: dict[str, Any]) -> None:
    changed(folder, **values)
    assert open_cache(folder) is None


def test_a_newer_format_is_refused_with_a_message(folder: Path) -> None:
    changed(folder, format_version=2)
    with pytest.raises(ValueError, match=r"was made by a newer version \(format 2\)"):
        Cache(folder)


def test_the_place_goes_by_content_size_and_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = read_manifest(str(write_images(tmp_path / "pets", {"cat": 2, "dog": 2})))
    places = [cache_folder(tmp_path, manifest, 64)]
    assert cache_folder(tmp_path, manifest, 64) == places[0]
    assert places[0].parent == tmp_path
    places.append(cache_folder(tmp_path, manifest, 96))
    places.append(cache_folder(tmp_path, replace(manifest, fingerprint="other"), 64))
    for version in ("FORMAT_VERSION", "DECODE_VERSION"):
        with monkeypatch.context() as patch:
            patch.setattr(cache_module, version, 99)
            places.append(cache_folder(tmp_path, manifest, 64))
    assert len(set(places)) == 5


@pytest.mark.parametrize(("imgsz", "stored"), [(224, 255), (32, 36), (8, 9)])
def test_the_stored_side_leaves_room_for_crops(imgsz: int, stored: int) -> None:
    assert stored_size(imgsz) == stored
