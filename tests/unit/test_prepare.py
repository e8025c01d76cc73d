"""Which cache a run gets: found, copied to memory, or built in the tier that has room. Building itself is faked."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.data import Issue, store, tiers
from orchestrator.data import prepare as prepare_module
from orchestrator.data.build import BrokenData, NoRoom
from orchestrator.data.cache import Cache, ShardFile, Stored
from orchestrator.data.manifest import Manifest, read_manifest
from orchestrator.data.nodes import Place
from orchestrator.data.prepare import Prepared, Wanted, prepare
from orchestrator.data.tiers import Room
from tests.pictures import numbered_rows, write_cache

GB = 10**9
STORED = Stored("digits", 36)
LARGE = Room(10 * GB, "free memory")


@dataclass
class Machine:
    """Its rooms, which of its places turn out to be full while a cache is built there, and what happened."""

    root: Path
    memory: Path
    manifest: Manifest
    full: set[str] = field(default_factory=set)
    built: list[Path] = field(default_factory=list)
    connected: int = 0
    warnings: list[str] = field(default_factory=list)

    def prepare(self, setting: Any, **wanted: Any) -> Prepared:
        values: dict[str, Any] = {
            "max_bad_fraction": 0.01,
            "quota": None,
            "cache_dir": str(self.root),
            "used": self.manifest,
        }
        values |= {"setting": setting, "stored": STORED, "whole": self.manifest} | wanted
        return prepare(Wanted(**values), self._connect, lambda done, total: None, self.warnings.append)

    def build(self, folder: Path, manifest: Manifest, stored: Stored, *_: Any) -> Cache:
        self.built.append(folder)
        assert self.connected, "Ray is there before anything is built"
        if ("memory" if folder.is_relative_to(self.memory) else "disk" if stored.pixels else "labels") in self.full:
            raise NoRoom(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return Cache(write_cache(folder, numbered_rows(9)))

    def _connect(self) -> None:
        self.connected += 1


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """With room everywhere."""
    machine = Machine(tmp_path / "disk", tmp_path / "shm", read_manifest("digits"))
    machine.memory.mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(store, "MEMORY", machine.memory)
    monkeypatch.setattr(prepare_module, "build_cache", machine.build)
    monkeypatch.setattr(prepare_module, "on_network", lambda root: None)
    rooms(monkeypatch)
    return machine


def rooms(monkeypatch: pytest.MonkeyPatch, disk: Room = LARGE, ram: Room = LARGE) -> None:
    monkeypatch.setattr(
        prepare_module, "disk_room", lambda root, quota, begun=0: replace(disk, bytes=disk.bytes + begun)
    )
    for module in (prepare_module, "orchestrator.data.nodes"):
        name = module if isinstance(module, str) else module.__name__
        monkeypatch.setattr(f"{name}.ram_room", lambda begun=0: ram)


@pytest.mark.parametrize(
    ("setting", "tier"), [("auto", "disk"), ("disk", "disk"), ("ram", "ram"), (True, "ram"), (False, "false")]
)
def test_with_room_it_is_built_where_it_was_asked_for(machine: Machine, setting: Any, tier: str) -> None:
    prepared = machine.prepare(setting)
    assert (prepared.tier, prepared.reused, prepared.because) == (tier, False, "")
    assert machine.connected == len(machine.built) == 1
    assert prepared.cache.folder == machine.built[0]
    assert machine.built[0].parent == store.tier_root(tier, str(machine.root))
    assert ("built" in prepared.describe()) == (tier != "false")
    prepared.release()
    assert machine.built[0].exists() == (tier != "ram"), "memory is given back at the end"


@pytest.mark.parametrize("setting", ["auto", "disk"])
def test_a_ready_cache_is_found_without_starting_ray(machine: Machine, setting: Any) -> None:
    machine.prepare("disk").release()
    machine.connected = 0
    prepared = machine.prepare(setting)
    assert (prepared.tier, prepared.reused, machine.connected) == ("disk", True, 0)
    assert prepared.describe().startswith("found on disk")
    prepared.release()


def test_the_cache_of_the_whole_set_serves_a_part_of_it(machine: Machine) -> None:
    machine.prepare("disk").release()
    part = replace(machine.manifest, fingerprint="of a part")
    prepared = machine.prepare("auto", used=part)
    assert prepared.reused
    assert prepared.cache.folder.name == STORED.key(machine.manifest)
    prepared.release()
    other = machine.prepare("auto", whole=part, used=part)
    assert not other.reused
    assert other.cache.folder.name == STORED.key(part)
    other.release()


def test_a_full_disk_is_answered_with_memory_and_full_memory_with_nothing(machine: Machine) -> None:
    machine.full = {"disk", "memory"}
    prepared = machine.prepare("auto")
    assert prepared.tier == "false"
    assert [folder.parent for folder in machine.built] == [machine.root, store.ram_root(), machine.root]
    assert prepared.because.count("was full while the cache was built") == 2
    assert os.strerror(errno.ENOSPC) in prepared.because
    assert prepared.because.index("disk") < prepared.because.index("memory")
    assert prepared.because in prepared.describe()
    prepared.release()


def test_full_memory_is_answered_with_the_disk(machine: Machine) -> None:
    machine.full = {"memory"}
    prepared = machine.prepare("ram")
    assert (prepared.tier, prepared.cache.folder.parent) == ("disk", machine.root)
    assert "memory" in prepared.because
    prepared.release()


def test_memory_without_room_is_not_tried(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """To fill the memory of a machine may end other processes, not just this build."""
    machine.full = {"disk"}
    rooms(monkeypatch, ram=Room(1000, "memory limit of the container"))
    prepared = machine.prepare("auto")
    assert prepared.tier == "false"
    assert store.ram_root() not in {folder.parent for folder in machine.built}
    assert "memory limit of the container" in prepared.because
    prepared.release()


def test_a_disk_that_was_asked_for_is_not_replaced(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.full = {"disk"}
    with pytest.raises(ValueError, match=r"cache = disk: .*was full while the cache was built.*set cache to auto"):
        machine.prepare("disk")
    assert len(machine.built) == 1
    rooms(monkeypatch, disk=Room(1000, "free on the disk"))
    with pytest.raises(ValueError, match=r"cache = disk: .*0\.0 MB .*free on the disk"):
        machine.prepare("disk")
    assert len(machine.built) == 1, "what cannot fit is not begun"


def test_a_disk_without_room_for_labels_ends_it(machine: Machine) -> None:
    machine.full = {"disk", "memory", "labels"}
    with pytest.raises(NoRoom):
        machine.prepare("auto")
    assert len(machine.built) == 3


def test_room_is_needed_only_for_what_is_not_built_yet(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build that was interrupted goes on, though the whole cache would not fit any more."""
    needed = tiers.estimate_bytes(machine.manifest, STORED)
    rooms(monkeypatch, disk=Room(needed // 2, "free on the disk"), ram=Room(0, "none"))
    prepared = machine.prepare("auto")
    assert prepared.tier == "false"
    prepared.release()
    begun = machine.root / STORED.key(machine.manifest) / "shard-00000.arrow"
    begun.parent.mkdir()
    begun.write_bytes(bytes(needed))
    machine.full = {"disk"}  # which ends the faked build
    with pytest.raises(ValueError, match="was full while the cache was built"):
        machine.prepare("disk")
    assert machine.built[-1] == begun.parent, "it was begun"


def test_the_quota_takes_the_oldest_caches_away(machine: Machine) -> None:
    old, new = (write_cache(machine.root / (letter * 24), numbered_rows(9)) for letter in "ab")
    os.utime(old / "index.json", (1000, 1000))
    needed = tiers.estimate_bytes(machine.manifest, STORED)
    machine.prepare("disk", quota=needed + store.folder_bytes(new)).release()
    assert not old.exists()
    assert new.exists()


def test_the_quota_leaves_what_the_build_goes_on_with(machine: Machine) -> None:
    begun = write_cache(machine.root / STORED.key(machine.manifest), numbered_rows(9))
    (begun / "index.json").unlink()
    os.utime(begun, (1000, 1000))
    other = write_cache(machine.root / ("a" * 24), numbered_rows(9))
    machine.full = {"disk"}
    with pytest.raises(ValueError, match="was full"):
        machine.prepare("disk", quota=tiers.estimate_bytes(machine.manifest, STORED))
    assert not other.exists()
    assert begun.exists()


# --------------------------------------------------------------------------------- from the disk to memory


@pytest.mark.parametrize("setting", ["ram", True])
def test_a_ready_disk_cache_is_copied_to_memory(machine: Machine, setting: Any) -> None:
    machine.prepare("disk").release()
    machine.connected = 0
    prepared = machine.prepare(setting)
    assert (prepared.tier, prepared.reused, machine.connected) == ("ram", True, 0)
    copy, folder = prepared.cache.folder, machine.built[0]
    assert copy == store.ram_root() / folder.name
    assert {p.name: p.read_bytes() for p in copy.glob("*.arrow")} == {
        p.name: p.read_bytes() for p in folder.glob("*.arrow")
    }
    assert len(machine.built) == 1
    prepared.release()
    assert not copy.exists()
    assert len(Cache(folder)) == 9, "the one on disk stays"


def test_without_room_in_memory_a_ready_cache_is_read_from_disk(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.prepare("disk").release()
    rooms(monkeypatch, ram=Room(10, "memory limit of the container"))
    prepared = machine.prepare("ram")
    assert (prepared.tier, prepared.reused) == ("disk", True)
    assert "memory limit of the container" in prepared.because
    assert prepared.cache.folder.parent == machine.root
    prepared.release()


def test_two_runs_share_one_copy_in_memory(machine: Machine) -> None:
    machine.prepare("disk").release()
    first, second = machine.prepare("ram"), machine.prepare("ram")
    assert first.cache.folder == second.cache.folder
    first.release()
    assert second.cache.folder.is_dir(), "the other one still reads it"
    second.release()
    assert not second.cache.folder.exists()


# ------------------------------------------------------------------------------------- what stands in the way


def test_a_network_file_system_is_avoided_or_warned_about(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_module, "on_network", lambda root: "nfs4")
    prepared = machine.prepare("auto")
    assert prepared.tier == "ram"
    assert "network" in prepared.because
    assert not machine.warnings
    prepared.release()
    prepared = machine.prepare("disk")
    assert (prepared.tier, prepared.because) == ("disk", "")
    assert len(machine.warnings) == 1
    assert "nfs4" in machine.warnings[0]
    assert str(machine.root) in machine.warnings[0]
    prepared.release()


def test_what_a_dead_run_left_in_memory_goes_first(machine: Machine) -> None:
    left = write_cache(store.ram_root() / ("a" * 24), numbered_rows(9))
    machine.prepare("disk").release()
    assert not left.exists()


def test_a_copy_that_was_taken_away_already_does_not_stop_the_end(machine: Machine) -> None:
    """As by a run that starts between the two steps of `release`."""
    prepared = machine.prepare("ram")
    prepared.cache.close()
    store.sweep()
    assert not store.ram_root().exists()
    prepared.release()


def test_a_ready_cache_with_too_much_left_out_is_refused_and_kept(machine: Machine) -> None:
    issues = [asdict(Issue(f"train/x{i}", "the file is empty")) for i in range(2)]
    folder = write_cache(machine.root / STORED.key(machine.manifest), numbered_rows(9), issues=issues)
    with pytest.raises(BrokenData, match=r"2 of 11 images cannot be read, more than max_bad_fraction=0\.01"):
        machine.prepare("disk")
    assert (folder / "index.json").exists()
    machine.prepare("disk", max_bad_fraction=0.2).release()


def test_memory_on_several_nodes_is_a_copy_of_what_all_of_them_see(machine: Machine, tmp_path: Path) -> None:
    for own_copies in (False, True):
        shared = tmp_path / f"shared-{own_copies}"
        prepared = machine.prepare("ram", shared=shared, own_copies=own_copies)
        assert (prepared.tier, prepared.place.spread) == ("ram", True)
        assert prepared.place.folder.parent == shared
        copy = prepared.place.open()
        assert copy.folder.parent == store.ram_root()
        copy.close()
        prepared.release()
        assert prepared.place.folder.exists(), "only the copies go"
        assert not copy.folder.exists()


def test_a_second_run_takes_what_the_first_one_holds_in_memory(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = machine.prepare("ram")
    rooms(monkeypatch, ram=Room(0, "free memory"))
    second = machine.prepare("ram")
    assert (second.tier, second.reused, len(machine.built)) == ("ram", True, 1)
    first.release()
    assert second.place.folder.exists()
    second.release()
    assert not second.place.folder.exists()


def test_caches_that_go_for_the_quota_are_told(machine: Machine) -> None:
    machine.prepare("disk").release()
    size = sum(entry.bytes for entry in store.entries(machine.root))
    other = replace(machine.manifest, fingerprint="another")
    machine.prepare("disk", used=other, whole=other, quota=size).release()
    [warning] = machine.warnings
    assert "removed from the cache to stay within cache_quota" in warning


def test_a_node_that_cannot_write_reads_where_all_see_it(machine: Machine, tmp_path: Path) -> None:
    folder = write_cache(tmp_path / "shared" / "key", numbered_rows(9))
    (tmp_path / "file").touch()
    place = Place(folder, "disk", spread=True, cache_dir=str(tmp_path / "file" / "cache"))
    index = json.loads((folder / "index.json").read_text())
    place.keep(folder, ShardFile.parse(index["shards"][0]))
    assert place.open().folder == folder


def test_what_a_killed_copy_left_is_removed(machine: Machine, tmp_path: Path) -> None:
    folder = write_cache(tmp_path / "shared" / "key", numbered_rows(9))
    place = Place(folder, "disk", spread=True, cache_dir=str(machine.root))
    place.copy.mkdir(parents=True)
    draft = place.copy / ".shard-00000.arrow.123"
    draft.write_bytes(b"half")
    waits: list[int] = []
    assert place.open(lambda: waits.append(1)).folder == place.copy
    assert not draft.exists()
    assert waits, "so that Ctrl-C is heard"
