from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.data import Issue
from orchestrator.data import cache as cache_module
from orchestrator.data.cache import Cache, DamagedCache, Stored, open_cache, stored_side
from orchestrator.data.manifest import read_manifest
from orchestrator.data.objects import Objects
from orchestrator.data.shards import write_shard
from tests.pictures import noise, numbered_rows, row, write_cache, write_images

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
    assert cache.images.to_pylist() == [row.image for row in ROWS]
    assert [cache.full_size(i) for i in range(21)] == [row.pixels.shape[:2] for row in ROWS if row.pixels is not None]
    for position in np.random.default_rng(0).permutation(len(ROWS)):
        assert np.array_equal(cache.image(position), ROWS[position].pixels)
    assert cache.bytes == sum(path.stat().st_size for path in folder.glob("*.arrow"))
    assert cache.build_seconds == 1.5


def test_what_was_left_out_is_known(tmp_path: Path) -> None:
    found = [Issue("train/x", "the file is empty"), Issue("train/y", "box 1 has no area: dropped", "label")]
    cache = Cache(write_cache(tmp_path / "cache", ROWS, issues=[asdict(issue) for issue in found]))
    assert cache.issues == found
    assert cache.skipped == 1, "a dropped box leaves its image"


def test_samples_are_found_by_their_keys_in_the_order_asked_for(folder: Path) -> None:
    cache = Cache(folder)
    keys = cache.keys[[7, 3, 20]]
    assert cache.positions(keys).tolist() == [7, 3, 20]
    left_out = np.array([keys[0], 12345, keys[2]], np.uint64)
    assert cache.positions(left_out).tolist() == [7, 20]
    assert cache.positions(np.empty(0, np.uint64)).tolist() == []


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


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_flipped_bit_is_found_though_size_and_structure_are_right(folder: Path) -> None:
    path = folder / "shard-00001.arrow"
    flip_a_bit(path)
    with pytest.raises(DamagedCache, match="shard-00001"):
        Cache(folder)
    flip_a_bit(path)
    assert len(Cache(folder)) == len(ROWS), "the same bytes at another time: looked at again, and found sound"
    index = json.loads((folder / "index.json").read_text())
    assert path.stat().st_mtime_ns == index["shards"][1]["mtime_ns"], "so that the next look is a short one"


def test_shards_that_a_node_lacks_are_read_from_elsewhere(folder: Path, tmp_path: Path) -> None:
    node = tmp_path / "node"
    shutil.copytree(folder, node)
    (node / "shard-00001.arrow").unlink()
    truncate(node / "shard-00002.arrow")
    with pytest.raises(DamagedCache):
        Cache(node)
    cache = Cache(node, elsewhere=folder)
    assert all(np.array_equal(cache.image(i), row.pixels) for i, row in enumerate(ROWS) if row.pixels is not None)


def test_objects_come_back_with_their_masks(tmp_path: Path) -> None:
    boxes = np.array([[0, 1, 5, 6], [2, 2, 3, 4]], np.float32)
    labels, crowd = np.array([1, 0]), np.array([False, True])
    with_masks = Objects(labels, boxes, crowd, (b"", b"\x01mask"))
    none = Objects(labels[:0], boxes[:0], crowd[:0])
    rows = [row("a", 1, -1, noise(6, 6), with_masks), row("b", 2, -1, noise(6, 6), none)]
    rows.append(row("c", 3, -1, noise(6, 6), Objects(labels[:1], boxes[:1], crowd[:1], (b"x",))))
    cache = Cache(write_cache(tmp_path / "cache", rows, rows_per_shard=2))
    assert cache.has_objects
    first, second, third = (cache.objects(i) for i in range(3))
    assert first is not None and second is not None and third is not None  # noqa: PT018
    assert (first.labels.tolist(), first.boxes.tolist(), first.crowd.tolist()) == (
        [1, 0],
        boxes.tolist(),
        [False, True],
    )
    assert first.masks == (b"", b"\x01mask")
    assert len(second) == 0
    assert third.masks == (b"x",)
    assert Cache(write_cache(tmp_path / "plain", ROWS)).objects(0) is None


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
    changed(folder, format_version=99)
    with pytest.raises(ValueError, match=r"was made by a newer version \(format 99\)"):
        Cache(folder)


def test_the_key_goes_by_content_and_by_what_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = read_manifest(str(write_images(tmp_path / "pets", {"cat": 2, "dog": 2})))
    stored = Stored("imagefolder", 64)
    keys = [stored.key(manifest)]
    assert Stored("imagefolder", 64).key(manifest) == keys[0]
    others: list[dict[str, Any]] = [{"side": 96}, {"fit": "long"}, {"frame": "upright"}, {"pixels": False}]
    keys += [replace(stored, **other).key(manifest) for other in others]
    keys.append(stored.key(replace(manifest, fingerprint="other")))
    for version in ("FORMAT_VERSION", "DECODE_VERSION"):
        with monkeypatch.context() as patch:
            patch.setattr(cache_module, version, 99)
            keys.append(stored.key(manifest))
    assert len(set(keys)) == 8


def test_labels_alone_belong_to_the_place_of_the_images(tmp_path: Path) -> None:
    """They tell where to read, which a moved data set has changed."""
    root = write_images(tmp_path / "pets", {"cat": 2, "dog": 2})
    before = read_manifest(str(root))
    after = read_manifest(str(root.rename(tmp_path / "animals")))
    after = replace(after, fingerprint=before.fingerprint)
    assert Stored("imagefolder", 64).key(after) == Stored("imagefolder", 64).key(before)
    labels = Stored("imagefolder", 64, pixels=False)
    assert labels.key(after) != labels.key(before)


@pytest.mark.parametrize(
    ("imgsz", "multi_scale", "side"), [(224, 0, 255), (32, 0, 36), (8, 0, 9), (224, 0.1, 255), (224, 0.5, 336)]
)
def test_the_stored_side_leaves_room_for_crops_and_large_batches(imgsz: int, multi_scale: float, side: int) -> None:
    assert stored_side(imgsz, multi_scale) == side
