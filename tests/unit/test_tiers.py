from __future__ import annotations

import shutil
from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from orchestrator.data import store, tiers
from orchestrator.data.cache import Cache, Stored
from orchestrator.data.images import load_stored
from orchestrator.data.locks import Lease, exclusive
from orchestrator.data.manifest import read_manifest
from orchestrator.data.tiers import (
    Choice,
    Room,
    choose_tier,
    disk_room,
    estimate_bytes,
    gigabytes,
    on_network,
    ram_room,
)
from tests.pictures import numbered_rows, write_cache, write_image

GB = 10**9
NONE, SMALL, TIGHT, LARGE = (Room(int(size * GB), f"limit {size}") for size in (0, 1, 11, 100))
"""For 10 GB, of which the disk must have 10.5 and memory 12."""
DISK, RAM = "disk has", "memory has"
Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize(
    ("setting", "disk", "ram", "network", "tier", "reasons"),
    [
        ("auto", LARGE, LARGE, False, "disk", ()),
        ("auto", TIGHT, LARGE, False, "disk", ()),
        ("auto", SMALL, LARGE, False, "ram", (DISK,)),
        ("auto", SMALL, TIGHT, False, "false", (DISK, RAM)),
        ("auto", NONE, NONE, False, "false", (DISK, RAM)),
        ("auto", LARGE, LARGE, True, "ram", ("network",)),
        ("auto", LARGE, SMALL, True, "false", ("network", RAM)),
        ("disk", LARGE, NONE, False, "disk", ()),
        ("disk", LARGE, LARGE, True, "disk", ()),
        ("ram", NONE, LARGE, False, "ram", ()),
        ("ram", LARGE, LARGE, True, "ram", ()),
        ("ram", LARGE, TIGHT, False, "disk", (RAM,)),
        ("ram", SMALL, TIGHT, False, "false", (RAM, DISK)),
        (True, NONE, LARGE, False, "ram", ()),
        (True, LARGE, SMALL, False, "disk", (RAM,)),
        (False, LARGE, LARGE, False, "false", ()),
    ],
)
def test_the_tier_follows_the_setting_and_the_room(
    setting: Any, disk: Room, ram: Room, network: bool, tier: str, reasons: tuple[str, ...]
) -> None:
    """And what was not the first choice is told: what is needed, what there is, and by which limit."""
    choice = choose_tier(setting, 10 * GB, disk, ram, network)
    assert choice.tier == tier
    assert bool(choice.because) == bool(reasons)
    for reason in reasons:
        assert reason in choice.because
    if DISK in reasons:
        assert f"{gigabytes(disk.bytes)} of the 10.50 GB needed ({disk.limit})" in choice.because
    if RAM in reasons:
        assert f"{gigabytes(ram.bytes)} of the 12.00 GB needed ({ram.limit})" in choice.because


def test_a_disk_that_was_asked_for_and_is_full_is_refused_with_what_to_do() -> None:
    with pytest.raises(ValueError, match="cache = disk: the disk has") as refusal:
        choose_tier("disk", 10 * GB, SMALL, LARGE, network=False)
    message = str(refusal.value)
    assert "1.00 GB of the 10.50 GB needed (limit 1)" in message
    assert all(way in message for way in ("orchestrator cache", "cache_dir", "auto", "ram", "false"))


def test_nothing_is_needed_where_nothing_is_stored() -> None:
    assert choose_tier("auto", 0, NONE, NONE, network=False) == Choice("disk")


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0.0 MB"), (1_550_000, "1.6 MB"), (99_900_000, "99.9 MB"), (10**8, "0.10 GB")]
)
def test_sizes_in_words(count: int, text: str) -> None:
    assert gigabytes(count) == text


# -------------------------------------------------------------------------------------------------- the disk


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Lets every disk have so many bytes free."""

    def set_to(count: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10 * count, 9 * count, count))

    return set_to


def test_room_on_disk_is_what_is_free_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = {tmp_path: Usage(10, 7, 3)}
    monkeypatch.setattr(shutil, "disk_usage", usage.__getitem__)
    root = tmp_path / "not" / "yet"  # lies where its parents do
    assert disk_room(root, None) == Room(3, f"free on the disk of {root}")
    assert disk_room(root, None, begun=5).bytes == 8, "a build that goes on needs only what it lacks"


def test_the_quota_counts_what_cannot_be_removed(tmp_path: Path, free: Callable[[int], None]) -> None:
    free(10**6)
    folders = [write_cache(tmp_path / name, numbered_rows(9)) for name in ("read", "built", "idle")]
    each = store.folder_bytes(folders[0])
    assert disk_room(tmp_path, 10**7) == Room(10**6, f"free on the disk of {tmp_path}")
    assert disk_room(tmp_path, 50_000) == Room(50_000, f"cache_quota of {tmp_path}")
    cache = Cache(folders[0])
    assert disk_room(tmp_path, 50_000).bytes == 50_000 - each
    with exclusive(folders[1].with_suffix(".lock")):
        assert disk_room(tmp_path, 50_000).bytes == 50_000 - 2 * each
        assert disk_room(tmp_path, each) == Room(0, f"cache_quota of {tmp_path}")
    cache.close()
    assert disk_room(tmp_path, 50_000).bytes == 50_000
    lease = Lease(tmp_path / "gone.use")
    assert disk_room(tmp_path, 50_000).bytes == 50_000
    lease.release()


Mount = namedtuple("Mount", "mountpoint fstype")


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/me/.cache", None),
        ("/data", "nfs4"),
        ("/data/sets/cache", "nfs4"),
        ("/database", None),
        ("/data/local/cache", None),
        ("/auto/cache", "nfs"),
        ("/bucket/cache", "fuse.s3fs"),
        ("/layers/cache", None),
        ("/disk/cache", None),
    ],
)
def test_network_file_systems_are_known_by_their_mounts(
    path: str, kind: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = [
        Mount("/", "overlay"),
        Mount("/data", "nfs4"),
        Mount("/data/local", "xfs"),
        Mount("/auto", "autofs"),
        Mount("/auto", "nfs"),
        Mount("/bucket", "fuse.s3fs"),
        Mount("/layers", "fuse.fuse-overlayfs"),
        Mount("/disk", "fuseblk"),
    ]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: mounts if all else [])
    monkeypatch.setattr(Path, "resolve", lambda self: self)
    assert on_network(Path(path)) == kind


def test_links_are_followed_to_where_the_folder_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "near").symlink_to(tmp_path / "far")
    mounts = [Mount("/", "ext4"), Mount(str((tmp_path / "far").resolve()), "lustre")]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: mounts)
    assert on_network(tmp_path / "near" / "cache") == "lustre"


# -------------------------------------------------------------------------------------------------- memory

PLENTY = 2**62
"""What version 1 says where there is no limit, or nearly so."""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: Callable[[int], None]) -> Path:
    """One with 9 GB free in shared memory and 8 GB of free memory; its control groups lie below `groups`."""
    free(9 * GB)
    (tmp_path / "shm").mkdir()
    (tmp_path / "own").write_text("4:memory:/job/task\n3:cpuset:/\n0::/job/task\n")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=8 * GB))
    monkeypatch.setattr(store, "MEMORY", tmp_path / "shm")
    monkeypatch.setattr(tiers, "CGROUPS", tmp_path / "groups")
    monkeypatch.setattr(tiers, "OWN_CGROUPS", tmp_path / "own")
    return tmp_path


def group(folder: Path, limit: object, used: int, cached: int) -> None:
    """A control group of version 2, or of version 1 below memory/."""
    first = "memory" in folder.parts
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ("memory.limit_in_bytes" if first else "memory.max")).write_text(f"{limit}\n")
    (folder / ("memory.usage_in_bytes" if first else "memory.current")).write_text(f"{used}\n")
    name = "total_inactive_file" if first else "inactive_file"
    (folder / "memory.stat").write_text(f"anon 5\n{name} {cached}\nslab 7\n")


def test_room_in_memory_is_the_least_of_its_limits(machine: Path, free: Callable[[int], None]) -> None:
    assert ram_room() == Room(8 * GB, "free memory")
    free(3 * GB)
    assert ram_room() == Room(3 * GB, f"free in {machine / 'shm'}")


@pytest.mark.parametrize("version", ["", "memory"])
@pytest.mark.parametrize("place", ["", "job", "job/task"])
def test_the_containers_limit_counts_wherever_it_is_set(machine: Path, version: str, place: str) -> None:
    """In a container its group is the root; on a machine of a cluster it lies deeper, and those above limit it too."""
    root = machine / "groups" / version
    for each in ("", "job", "job/task"):
        group(root / each, PLENTY if version else "max", 3 * GB, 0)
    assert ram_room() == Room(8 * GB, "free memory")
    group(root / place, 6 * GB, 3 * GB, GB)
    assert ram_room() == Room(4 * GB, "memory limit of the container"), "cached files are given back"
    group(root / place, 6 * GB, 7 * GB, 0)
    assert ram_room().bytes == 0


def test_limits_of_other_groups_do_not_count(machine: Path) -> None:
    group(machine / "groups" / "job" / "other", 10, 5, 0)
    group(machine / "groups" / "cpuset", 10, 5, 0)
    assert ram_room() == Room(8 * GB, "free memory")


def test_a_machine_without_control_groups_has_no_such_limit(machine: Path) -> None:
    (machine / "own").unlink()
    assert ram_room() == Room(8 * GB, "free memory")


def test_no_shared_memory_is_no_room(machine: Path) -> None:
    (machine / "shm").rmdir()
    assert ram_room() == Room(0, "there is no shared memory here")


def test_a_folder_of_another_user_is_not_written_to(machine: Path) -> None:
    (machine / "theirs").mkdir()
    store.ram_root().symlink_to(machine / "theirs")
    assert ram_room() == Room(0, f"{store.ram_root()} is not this user's")


# ------------------------------------------------------------------------------------------------ the estimate


def test_the_estimate_is_close_to_what_is_stored(tmp_path: Path) -> None:
    """Of images of several sizes, some of which cannot be read."""
    sizes = [(60, 80), (90, 60), (30, 30)] * 40
    for i, (height, width) in enumerate(sizes):
        write_image(tmp_path / "train" / "ab"[i % 2] / f"{i:03d}.png", i, height, width)
    manifest = read_manifest(str(tmp_path))
    stored = Stored("imagefolder", 40)
    expected = 40 * 3 * (40 * 53 + 60 * 40 + 30 * 30)
    assert estimate_bytes(manifest, stored) == pytest.approx(expected, rel=0.05)
    assert estimate_bytes(manifest, replace(stored, fit="long")) < 0.8 * expected
    for path in list((tmp_path / "train" / "a").iterdir())[::4]:
        path.write_bytes(b"")
    assert estimate_bytes(manifest, stored) == pytest.approx(expected, rel=0.2)


def test_all_of_few_images_count(tmp_path: Path) -> None:
    for name, size in {"a": 20, "b": 30, "c": 10}.items():
        write_image(tmp_path / "train" / name / "1.png", 0, size, size)
    assert estimate_bytes(read_manifest(str(tmp_path)), Stored("imagefolder", 40)) == 3 * (400 + 900 + 100)


def test_only_some_images_are_read_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Any] = []

    def load(content: Any, *rest: Any) -> Any:
        read.append(content)
        return load_stored(content, *rest)

    monkeypatch.setattr(tiers, "load_stored", load)
    assert estimate_bytes(read_manifest("digits"), Stored("digits", 36)) == 1797 * 8 * 8 * 3
    assert len(read) == tiers.PROBES


def test_of_images_that_cannot_be_read_nothing_is_needed(tmp_path: Path) -> None:
    """The build tells what is wrong with them."""
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "train" / name / "1.jpg").write_bytes(b"no image")
    assert estimate_bytes(read_manifest(str(tmp_path)), Stored("imagefolder", 36)) == 0
