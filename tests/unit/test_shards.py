from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from orchestrator.data.images import Image
from orchestrator.data.shards import CACHE_LINE, Arena, Row, Shard, write_shard
from tests.pictures import noise
from tests.pictures import row as make_row

SAME = [(6, 5)] * 4
OTHERS = [(6, 5), (5, 6), (1, 1), (30, 2)]


def rows_of(shapes: list[tuple[int, int]]) -> list[Row]:
    return [make_row(f"train/é/{i}.png", 2**64 - 1 - i, i, noise(*shape, seed=i)) for i, shape in enumerate(shapes)]


@pytest.mark.parametrize(
    ("shapes", "kind"),
    [(SAME, "fixed_size_binary[90]"), (SAME[:1], "fixed_size_binary[90]"), (OTHERS, "large_binary")],
    ids=["one size", "one image", "several sizes"],
)
def test_what_is_written_is_what_is_read(tmp_path: Path, shapes: list[tuple[int, int]], kind: str) -> None:
    rows = rows_of(shapes)
    write_shard(tmp_path / "shard.arrow", rows)
    shard = Shard(tmp_path / "shard.arrow")
    assert len(shard) == len(rows)
    assert str(shard.batch["pixels"].type) == kind
    for name in ("id", "key", "image", "label"):
        assert shard.batch[name].to_pylist() == [getattr(row, name) for row in rows]
    for i, row in reversed(list(enumerate(rows))):
        assert row.pixels is not None
        assert np.array_equal(shard.image(i), row.pixels)
        assert shard.batch["pixels"][i].as_py() == row.pixels.tobytes(), "other readers of Arrow see the same"


def test_images_that_are_views_of_others_are_written_right(tmp_path: Path) -> None:
    whole: Image = noise(20, 20)
    views = [whole[::2, ::2], whole.transpose(1, 0, 2)[:10, :10], whole[5:15, 5:15]]
    write_shard(tmp_path / "shard.arrow", [make_row(str(i), i, 0, view) for i, view in enumerate(views)])
    shard = Shard(tmp_path / "shard.arrow")
    assert all(np.array_equal(shard.image(i), view) for i, view in enumerate(views))


@pytest.mark.parametrize("shapes", [SAME, OTHERS])
@pytest.mark.parametrize("length", range(1, 80, 7))
def test_pixels_start_on_a_cache_line(tmp_path: Path, shapes: list[tuple[int, int]], length: int) -> None:
    rows = [replace(row, image="x" * length) for row in rows_of(shapes)]
    write_shard(tmp_path / "shard.arrow", rows)
    assert Shard(tmp_path / "shard.arrow").image(0).ctypes.data % CACHE_LINE == 0


@pytest.mark.parametrize("shapes", [SAME, OTHERS])
def test_pixels_are_mapped_not_copied(tmp_path: Path, shapes: list[tuple[int, int]]) -> None:
    write_shard(tmp_path / "shard.arrow", rows_of(shapes))
    before = pa.total_allocated_bytes()
    shard = Shard(tmp_path / "shard.arrow")
    images = [shard.image(i) for i in range(len(shard))]
    assert pa.total_allocated_bytes() == before
    assert not any(image.flags.owndata or image.flags.writeable for image in images)
    data = shard.batch["pixels"].buffers()[-1]
    assert images[0].ctypes.data == data.address


def test_the_stored_example_of_format_version_1_is_read() -> None:
    """Written by the first version; see tests/stored/README.md."""
    shard = Shard(Path(__file__).parents[1] / "stored" / "shard-v1.arrow")
    assert shard.batch["id"].to_pylist() == ["train/a/0.png", "val/b/1.png"]
    assert shard.batch["key"].to_pylist() == [11, 2**64 - 1]
    assert shard.batch["split"].to_pylist() == ["train", "val"]
    assert shard.batch["label"].to_pylist() == [0, 1]
    assert [shard.image(i).shape for i in range(2)] == [(2, 3, 3), (4, 2, 3)]
    assert [shard.image(i).flatten().tolist() for i in range(2)] == [list(range(18)), list(range(24))]


@pytest.mark.parametrize("keep", [0, 7, 0.3, 0.9, -1])
def test_a_truncated_shard_is_not_opened(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "shard.arrow"
    write_shard(path, rows_of(OTHERS))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep) if isinstance(keep, float) else keep])
    with pytest.raises((OSError, ValueError)):
        Shard(path)


def test_damaged_offsets_and_sizes_are_noticed_instead_of_read(tmp_path: Path) -> None:
    """Reading text or pixels at an offset beyond the file would end the process."""
    rows, path = rows_of(OTHERS), tmp_path / "shard.arrow"
    write_shard(path, rows)
    content = path.read_bytes()
    images = [row.pixels for row in rows if row.pixels is not None]
    starts = np.cumsum([0, *(image.size for image in images)])
    ids = np.cumsum([0, *(len(row.id.encode()) for row in rows)])
    widths = np.array([image.shape[1] for image in images])
    for column in (
        starts.astype(np.int64).tobytes(),
        ids.astype(np.int32).tobytes(),
        widths.astype(np.int32).tobytes(),
    ):
        assert content.count(column) >= 1
        path.write_bytes(content.replace(column, column[:-1] + b"\x70"))
        with pytest.raises(ValueError):  # noqa: PT011 (arrow's own words)
            Shard(path)


@pytest.mark.parametrize("shapes", [SAME, OTHERS])
@pytest.mark.parametrize("room", [10_000, 100, 0])
def test_pixels_in_one_piece_of_memory_are_written_alike(
    tmp_path: Path, shapes: list[tuple[int, int]], room: int
) -> None:
    rows, arena = rows_of(shapes), Arena(room)
    moved = [replace(row, pixels=arena.move(row.pixels)) for row in rows if row.pixels is not None]
    write_shard(tmp_path / "moved", moved, arena)
    write_shard(tmp_path / "plain", rows)
    assert (tmp_path / "moved").read_bytes() == (tmp_path / "plain").read_bytes()
