"""The cache as Ray Data builds it: every kind of image, broken ones, found again, and built twice at once."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from orchestrator import launch
from orchestrator.config import ConfigError
from orchestrator.data.build import build_cache
from orchestrator.data.cache import Cache, Stored, stored_side
from orchestrator.data.manifest import read_manifest
from orchestrator.train import train
from tests.colours import TRAIN, VAL, ids, write_colours
from tests.ray.conftest import MakeConfig
from tests.results import received

IMGSZ = 16
STORED = Stored("imagefolder", stored_side(IMGSZ, 0))
RED, BLUE, GREY = (254, 0, 0), (0, 0, 254), (90, 90, 90)


@pytest.fixture
def connected(cluster: str) -> Iterator[None]:
    """This process on the cluster, so that a run in this process needs no Ray of its own to build its cache."""
    assert launch.connect(cluster, verbose=False)
    yield
    launch.disconnect()


# ------------------------------------------------------------------------------------------- kinds of images


def _halves() -> Image.Image:
    """24 wide, 12 high: the left half red, the right half blue."""
    picture = Image.new("RGB", (24, 12), RED)
    picture.paste(BLUE, (12, 0, 24, 12))
    return picture


def _on_its_side() -> bytes:
    """As a phone writes it: the left edge of the pixels is the top of the picture (EXIF orientation 6)."""
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    _halves().save(file, "JPEG", quality=100, subsampling=0, exif=exif.tobytes())
    return file.getvalue()


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


KINDS = {
    "on_its_side.jpg": (_on_its_side(), (24, 12), (RED, BLUE)),
    "palette.png": (_png(_halves().quantize(2)), (12, 24), (RED, RED)),
    "transparent.png": (_png(_halves().convert("RGBA")), (12, 24), (RED, RED)),
    "grey.png": (_png(Image.new("L", (12, 12), GREY[0])), (12, 12), (GREY, GREY)),
    "grey16.png": (_png(Image.fromarray(np.full((12, 12), GREY[0] * 257, np.uint16))), (12, 12), (GREY, GREY)),
}
"""File: its bytes, (height, width) as one sees it, and the colours of its upper and lower left corners."""


@pytest.fixture(scope="module")
def kinds(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """The cached pixels of each kind of image."""
    folder = tmp_path_factory.mktemp("kinds")
    for name, (content, *_) in KINDS.items():
        for kind in ("a", "b"):
            (folder / "data" / kind).mkdir(parents=True, exist_ok=True)
            (folder / "data" / kind / name).write_bytes(content)
    manifest = read_manifest(str(folder / "data"))
    assert launch.connect(cluster, verbose=False)
    try:
        cache = build_cache(folder / "cache" / "kinds", manifest, STORED, 0, lambda done, total: None)
    finally:
        launch.disconnect()
    return {Path(name.as_py()).name: cache.image(i) for i, name in enumerate(cache.ids)}


@pytest.mark.parametrize("name", KINDS)
def test_images_are_rgb_and_upright(kinds: dict[str, np.ndarray], name: str) -> None:
    _, size, corners = KINDS[name]
    image = kinds[name]
    assert image.dtype == np.uint8
    assert image.shape == (*size, 3)
    for row, colour in zip((2, -3), corners, strict=True):
        np.testing.assert_allclose(image[row, 2], colour, atol=3)


# ---------------------------------------------------------------------------------------------- broken images


@pytest.fixture
def flawed(tmp_path: Path) -> Path:
    """The usual folder with two images that cannot be read: one empty, one cut off."""
    folder = write_colours(tmp_path / "flawed")
    cut = folder / "train" / "red" / "1.png"
    cut.write_bytes(cut.read_bytes()[:-200])
    (folder / "val" / "blue" / "0.png").write_bytes(b"")
    return folder


BROKEN = ["train/red/1.png", "val/blue/0.png"]


@pytest.mark.usefixtures("connected")
def test_broken_images_are_left_out_and_told(make_config: MakeConfig, flawed: Path) -> None:
    config = make_config(data=str(flawed), max_bad_fraction=0.1, record_samples=True, epochs=1)
    result = train(config, local=True)
    data = result.summary["dataset"]
    assert (data["train"], data["val"], data["skipped"]) == (sum(TRAIN) - 1, sum(VAL) - 1, 2)
    with (result.folder / "data_issues.csv").open(newline="") as file:
        listed = list(csv.DictReader(file))
    assert {row["kind"] for row in listed} == {"image"}
    issues = {row["id"]: row["reason"] for row in listed}
    assert list(issues) == BROKEN
    assert "cut off" in issues[BROKEN[0]]
    assert "empty" in issues[BROKEN[1]]
    seen = received(result.folder)
    used = sorted(seen.validation + [name for batch in seen.batches.values() for name in batch])
    assert used == sorted(set(ids(flawed, "train") + ids(flawed, "val")) - set(BROKEN))


@pytest.mark.usefixtures("connected")
def test_too_many_broken_images_are_refused(make_config: MakeConfig, flawed: Path, tmp_path: Path) -> None:
    storage, caches = tmp_path / "runs", tmp_path / "cache"
    config = make_config(data=str(flawed), max_bad_fraction=0.05, storage=str(storage), cache_dir=str(caches))
    with pytest.raises(ConfigError) as refusal:
        train(config, local=True)
    message = str(refusal.value)
    assert str(flawed) in message
    assert "2 of 29 images" in message
    assert "max_bad_fraction=0.05" in message
    assert all(name in message for name in BROKEN)
    assert not storage.exists()
    assert not list(caches.glob("*/index.json"))


# ---------------------------------------------------------------------------------------------------- reuse


@pytest.mark.usefixtures("connected")
def test_the_second_run_finds_the_cache(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(cache_dir=str(tmp_path), epochs=1)
    first = train(config, local=True).summary["cache"]
    assert (first["tier"], first["reused"]) == ("disk", False)
    [shard] = tmp_path.glob("*/shard-*.arrow")
    assert first["bytes"] == shard.stat().st_size
    before = {path: path.stat().st_mtime_ns for path in shard.parent.glob("shard-*")}
    second = train(config, local=True).summary["cache"]
    assert second == {**first, "reused": True}
    assert {path: path.stat().st_mtime_ns for path in shard.parent.glob("shard-*")} == before


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


@pytest.mark.usefixtures("connected")
def test_a_damaged_or_outdated_cache_is_built_again(tmp_path: Path) -> None:
    data = write_colours(tmp_path / "data")

    def build() -> tuple[Cache, bool]:
        manifest, built = read_manifest(str(data)), []
        folder = tmp_path / "cache" / STORED.key(manifest)
        return build_cache(folder, manifest, STORED, 0, lambda done, total: built.append(done)), bool(built)

    cache, built = build()
    assert built
    folder = cache.folder
    _cut(next(folder.glob("*.arrow")))
    cache, built = build()
    assert (built, cache.folder, len(cache)) == (True, folder, sum(TRAIN) + sum(VAL))
    assert build()[1] is False
    changed = data / "train" / "red" / "0.png"
    assert cv2.imwrite(str(changed), np.zeros((20, 20, 3), np.uint8))
    cache, built = build()
    assert built
    assert cache.folder != folder
    assert not cache.image(cache.ids.to_pylist().index("train/red/0.png")).any()


@pytest.mark.usefixtures("connected")
def test_only_a_damaged_shard_is_built_again(tmp_path: Path) -> None:
    data = write_colours(tmp_path / "data", {"train": (70, 70, 60)})
    manifest = read_manifest(str(data))
    folder, told = tmp_path / "cache" / "key", []
    cache = build_cache(folder, manifest, STORED, 0, lambda done, total: None)
    pixels = [cache.image(i).copy() for i in range(len(cache))]
    shards = sorted(folder.glob("*.arrow"))
    assert len(shards) == 4
    before = {path.name: path.stat().st_ino for path in shards}
    content = bytearray(shards[1].read_bytes())
    content[-200] ^= 255
    shards[1].write_bytes(content)
    cache = build_cache(folder, manifest, STORED, 0, lambda done, total: told.append((done, total)))
    assert (136, 200) in told
    assert (200, 200) not in told[:3], "the others are looked at first"
    assert told[-1] == (200, 200)
    after = {path.name: path.stat().st_ino for path in folder.glob("*.arrow")}
    assert [name for name in before if after[name] != before[name]] == ["shard-00001.arrow"]
    assert all(np.array_equal(cache.image(i), image) for i, image in enumerate(pixels))


# ----------------------------------------------------------------------------------------------- concurrently

BUILD = """
import sys, time
from pathlib import Path
from orchestrator import launch
from orchestrator.data.build import build_cache
from orchestrator.data.cache import Stored
from orchestrator.data.manifest import read_manifest
address, data, folder, me, other = sys.argv[1:]
manifest = read_manifest(data)
launch.connect(address, verbose=False)
Path(me).touch()
while not Path(other).exists():
    time.sleep(0.01)
told = []
cache = build_cache(Path(folder), manifest, Stored("imagefolder", 9), 0, lambda done, total: told.append(total))
assert len(cache) == len(manifest.table)
assert all(cache.image(i).shape == (9, 9, 3) for i in range(len(cache)))
launch.disconnect()
print("built" if told else "found")
"""


def test_two_processes_build_the_same_cache_at_once(cluster: str, colours: Path, tmp_path: Path) -> None:
    """Both get it; one of them has made it."""
    folder = tmp_path / "cache" / "key"
    names = [str(tmp_path / "first"), str(tmp_path / "second")]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", BUILD, cluster, str(colours), str(folder), me, other],
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for me, other in (names, names[::-1])
    ]
    try:
        finished = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], finished
    assert "built" in {out.split()[-1] for out, _ in finished}
    assert sorted(path.name for path in folder.parent.iterdir()) == ["key", "key.lock", "key.use"]


@pytest.mark.usefixtures("connected")
def test_a_cache_folder_that_cannot_be_written(make_config: MakeConfig, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cache_dir") as refusal:
        train(make_config(cache_dir=str(tmp_path / "file" / "cache"), storage=str(tmp_path / "runs")), local=True)
    assert str(tmp_path / "file" / "cache") in str(refusal.value)
    assert not (tmp_path / "runs").exists()
