from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from orchestrator.data import store
from orchestrator.data.cache import Cache, open_cache
from orchestrator.data.locks import Lease, exclusive
from orchestrator.data.store import Entry, OtherVersion
from tests.holder import holder, kill
from tests.pictures import numbered_rows, write_cache

A, B, C, D = (letter * 24 for letter in "abcd")
HOUR = 3600


def make(root: Path, key: str, hours_ago: float = 0, train: int = 9, ready: bool = True) -> Path:
    folder = write_cache(root / key, numbered_rows(train), rows_per_shard=4)
    if not ready:
        index = json.loads((folder / "index.json").read_text())
        for shard in index["shards"]:
            (folder / shard["file"]).with_suffix(".json").write_text(json.dumps(shard))
        (folder / "index.json").unlink()
    then = time.time() - hours_ago * HOUR
    os.utime(folder / "index.json" if ready else folder, (then, then))
    return folder


def keys(root: Path) -> list[str]:
    return [entry.key for entry in store.entries(root)]


def entry_of(folder: Path) -> Entry:
    return next(entry for entry in store.entries(folder.parent) if entry.folder == folder)


# --------------------------------------------------------------------------------------------- what there is


def test_where_disk_caches_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {"HOME": "/home/me", "XDG_CACHE_HOME": "", "ORCHESTRATOR_CACHE": ""}.items():
        monkeypatch.setenv(name, value)
    assert store.disk_root(None) == Path("/home/me/.cache/orchestrator")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert store.disk_root(None) == Path("/xdg/orchestrator")
    monkeypatch.setenv("ORCHESTRATOR_CACHE", "~/fast")
    assert store.disk_root(None) == Path("/home/me/fast")
    monkeypatch.chdir(tmp_path)
    assert store.disk_root("here") == tmp_path / "here"
    assert store.tier_root("ram", "here") == store.ram_root()
    assert store.tier_root("disk", "here") == store.tier_root("false", "here") == tmp_path / "here"


def test_entries_tell_what_a_store_holds_the_last_used_first(tmp_path: Path) -> None:
    assert store.entries(tmp_path / "absent") == []
    old, unfinished, new = make(tmp_path, A, 50), make(tmp_path, B, 20, ready=False), make(tmp_path, C, 1, train=20)
    entries = store.entries(tmp_path)
    assert [(e.key, e.ready, e.images) for e in entries] == [(C, True, 20), (B, False, 9), (A, True, 9)]
    assert [e.folder for e in entries] == [new, unfinished, old]
    assert {(e.name, e.side) for e in entries} == {("made", 12)}
    assert all(e.bytes == sum(f.stat().st_size for f in e.folder.iterdir()) > 2000 for e in entries)
    assert [round((time.time() - e.used) / HOUR) for e in entries] == [1, 20, 50]


def test_opening_a_cache_is_using_it(tmp_path: Path) -> None:
    make(tmp_path, A, hours_ago=5)
    make(tmp_path, B, hours_ago=1)
    assert keys(tmp_path) == [B, A]
    Cache(tmp_path / A).close()
    assert keys(tmp_path) == [A, B]
    assert store.entries(tmp_path)[0].used == pytest.approx(time.time(), abs=60)


def test_what_else_lies_in_the_folder_is_not_taken_for_a_cache(tmp_path: Path) -> None:
    """A cache_dir may be a folder of other things, which must never be removed."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "plan.json").write_text("{}")
    for name, plan in {"project": '{"name": "x"}', "list": "[]", "text": "see below"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "plan.json").write_text(plan)
    (tmp_path / A).touch()
    assert store.entries(tmp_path) == []


@pytest.mark.parametrize("plan", [None, "", "{", "[]", '{"name": "x"}', "\udcff"])
def test_a_cache_without_its_plan_can_be_seen_and_removed(tmp_path: Path, plan: str | None) -> None:
    """As a copy from another node is, which was interrupted; it takes room like any other."""
    folder = make(tmp_path, A)
    (folder / "plan.json").unlink()
    if plan is not None:
        (folder / "plan.json").write_bytes(plan.encode(errors="surrogateescape"))
    entry = entry_of(folder)
    assert (entry.name, entry.images, entry.side) == ("", 0, 0)
    assert entry.bytes > 2000
    assert store.make_room(tmp_path, 1, quota=1)
    assert not folder.exists()


def test_labels_alone_have_no_side(tmp_path: Path) -> None:
    folder = make(tmp_path, A)
    plan = json.loads((folder / "plan.json").read_text())
    plan["stored"]["pixels"] = False
    (folder / "plan.json").write_text(json.dumps(plan))
    assert entry_of(folder).side == 0


# ---------------------------------------------------------------------------------------------- who may go


def test_what_is_read_or_built_is_not_removed(tmp_path: Path) -> None:
    folder = make(tmp_path, A)
    entry = entry_of(folder)
    cache = Cache(folder)
    assert (entry.is_read, entry.is_built) == (True, False)
    assert not store.remove(folder)
    assert len(Cache(folder)) == 9, "not a file of it is gone"
    cache.close()
    with exclusive(folder.with_suffix(".lock")):
        assert (entry.is_read, entry.is_built) == (False, True)
        assert not store.remove(folder)
    assert folder.is_dir()
    assert not entry.is_read
    assert not entry.is_built
    assert store.remove(folder)
    assert list(tmp_path.iterdir()) == [], "nor are the files of its locks left"
    assert store.remove(folder), "there is nothing to remove any more"
    assert store.remove(tmp_path / "absent" / A)


def test_room_is_made_by_removing_what_was_not_used_for_longest(tmp_path: Path) -> None:
    for hours, key in enumerate((A, B, C, D)):
        make(tmp_path, key, hours_ago=hours)
    each = entry_of(tmp_path / A).bytes
    assert store.make_room(tmp_path, needed=each, quota=5 * each) == [], "it fits"
    assert [e.key for e in store.make_room(tmp_path, needed=each + 1, quota=5 * each)] == [D]
    assert keys(tmp_path) == [A, B, C]
    assert [e.key for e in store.make_room(tmp_path, needed=2 * each, quota=3 * each)] == [C, B]
    assert keys(tmp_path) == [A]


def test_room_is_never_made_of_what_is_in_use(tmp_path: Path) -> None:
    for hours, key in enumerate((A, B, C, D)):
        make(tmp_path, key, hours_ago=hours)
    with ExitStack() as held:
        held.enter_context(exclusive((tmp_path / D).with_suffix(".lock")))
        reader = Lease((tmp_path / B).with_suffix(".use"))
        held.callback(reader.release)
        assert [e.key for e in store.make_room(tmp_path, needed=1, quota=1)] == [C, A]
        assert keys(tmp_path) == [B, D]
    assert [e.key for e in store.make_room(tmp_path, needed=1, quota=1)] == [D, B]


def test_room_for_a_build_that_goes_on_is_not_made_of_what_it_has(tmp_path: Path) -> None:
    begun = make(tmp_path, A, hours_ago=9, ready=False)
    make(tmp_path, B)
    needed, other = 9000, entry_of(tmp_path / B).bytes
    assert store.make_room(tmp_path, needed, quota=needed + other, keep=begun) == []
    assert [e.key for e in store.make_room(tmp_path, needed, quota=needed, keep=begun)] == [B]
    assert begun.is_dir()


# ------------------------------------------------------------------------------------------------- damage


PIXELS = {"shard-00000.arrow": b"\1" * 400, "shard-00001.arrow": b"\5" * 400}
"""Of the second image of a shard."""


def damage(path: Path) -> None:
    """One other bit of a pixel, at the same size and time: nothing but a hash can tell."""
    stat = path.stat()
    content = bytearray(path.read_bytes())
    content[content.index(PIXELS[path.name]) + 100] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("ready", [True, False])
def test_damage_that_only_a_hash_can_tell_is_found_and_taken_away(tmp_path: Path, ready: bool) -> None:
    folder = make(tmp_path, A, ready=ready)
    assert store.verify(entry_of(folder)) == []
    before = {path.name for path in folder.iterdir()}
    damage(folder / "shard-00001.arrow")
    if ready:
        assert len(Cache(folder)) == 9, "it opens"
    (folder / "shard-00002.arrow").unlink()
    assert store.verify(entry_of(folder)) == ["shard-00001.arrow", "shard-00002.arrow"]
    assert store.discard(folder, store.verify(entry_of(folder)))
    assert before - {path.name for path in folder.iterdir()} == {"shard-00001.arrow", "shard-00002.arrow"}
    assert open_cache(folder) is None, "so that the next run builds what is missing"


def test_damage_of_a_cache_in_use_is_left(tmp_path: Path) -> None:
    folder = make(tmp_path, A)
    damage(folder / "shard-00000.arrow")
    cache = Cache(folder)
    assert not store.discard(folder, store.verify(entry_of(folder)))
    assert (folder / "shard-00000.arrow").exists()
    cache.close()
    assert store.discard(folder, store.verify(entry_of(folder)))
    assert not (folder / "shard-00000.arrow").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format_version": 2}', '{"format_version": 2, "shards": [{}]}'])
def test_a_damaged_index_is_found(tmp_path: Path, content: str) -> None:
    folder = make(tmp_path, A)
    (folder / "index.json").write_text(content)
    assert store.verify(entry_of(folder)) == ["index.json"]


def test_a_cache_of_another_version_is_not_called_damaged(tmp_path: Path) -> None:
    folder = make(tmp_path, A)
    (folder / "index.json").write_text('{"format_version": 1, "shards": 3}')
    with pytest.raises(OtherVersion, match="format 1"):
        store.verify(entry_of(folder))


# ------------------------------------------------------------------------------------------ what the dead leave


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This user's folder in a shared memory of its own; no sessions of Ray."""
    monkeypatch.setattr(store, "MEMORY", tmp_path)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "tmp"))
    return store.ram_root()


def test_what_dead_processes_left_in_memory_is_removed(memory: Path) -> None:
    store.sweep()
    assert not memory.exists(), "nothing there is nothing to do"
    read, built, unheld = make(memory, A), make(memory, B, ready=False), make(memory, C)
    with holder(read.with_suffix(".use")) as reader, holder(built.with_suffix(".lock"), "alone") as builder:
        store.sweep()
        assert {path.name for path in memory.iterdir()} == {A, f"{A}.use", B, f"{B}.lock"}
        assert len(Cache(read)) == 9
        kill(builder)
        store.sweep()
        assert {path.name for path in memory.iterdir()} == {A, f"{A}.use"}
        kill(reader)
        store.sweep()
    assert not memory.exists()
    assert not unheld.exists()


def test_a_link_in_the_place_of_this_users_memory_is_not_followed(memory: Path, tmp_path: Path) -> None:
    """Everybody may write to shared memory."""
    victim = make(tmp_path / "home", A)
    memory.symlink_to(victim.parent)
    store.sweep()
    assert len(Cache(victim)) == 9


def test_other_users_memory_is_left_alone(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make(memory, A)
    uid = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: uid + 1)
    monkeypatch.setattr(store, "ram_root", lambda: memory)
    store.sweep()
    assert folder.is_dir()


@pytest.fixture
def ray_folder(memory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Ray's folder of sessions, below a path short enough for the addresses of sockets."""
    monkeypatch.delenv("RAY_TMPDIR")
    with tempfile.TemporaryDirectory(prefix="sweep", dir="/tmp") as short:
        monkeypatch.setattr(tempfile, "tempdir", short)
        yield Path(short) / "ray"


def spill(session: Path) -> Path:
    spilled = session / "ray_spilled_objects_1234" / "object"
    spilled.parent.mkdir(parents=True)
    spilled.write_bytes(b"0" * 100)
    (session / "logs").mkdir()
    (session / "sockets").mkdir()
    return spilled


def test_spilled_objects_of_dead_sessions_are_removed(ray_folder: Path) -> None:
    """Alive is a session whose raylet answers: a socket that was left behind does not."""
    none, dead, living = (ray_folder / f"session_2025-01-0{day}" for day in (1, 2, 3))
    spilled = [spill(session) for session in (none, dead, living)]
    (ray_folder / "session_latest").symlink_to(living)
    with socket.socket(socket.AF_UNIX) as left, socket.socket(socket.AF_UNIX) as answers:
        left.bind(str(dead / "sockets" / "raylet"))
        left.listen()
        left.close()
        answers.bind(str(living / "sockets" / "raylet.2"))
        answers.listen()
        store.sweep()
        assert [path.exists() for path in spilled] == [False, False, True]
    assert not list(none.glob("ray_spilled*"))
    assert all((session / "logs").is_dir() for session in (none, dead, living)), "only what was spilled"
    store.sweep()
    assert not spilled[2].exists(), "it has died since"


def test_a_session_too_busy_to_answer_is_taken_for_alive(ray_folder: Path) -> None:
    session = ray_folder / "session_2025-01-01"
    spilled = spill(session)
    with ExitStack() as sockets:
        raylet = sockets.enter_context(socket.socket(socket.AF_UNIX))
        raylet.bind(str(session / "sockets" / "raylet"))
        raylet.listen(0)
        for _ in range(3):  # fill its queue
            waiting = sockets.enter_context(socket.socket(socket.AF_UNIX))
            waiting.setblocking(False)
            try:
                waiting.connect(str(session / "sockets" / "raylet"))
            except BlockingIOError:
                break
        store.sweep()
        assert spilled.exists()


def test_sessions_where_ray_was_told_to_keep_them_are_found(
    ray_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    spilled = spill(tmp_path / "ray" / "session_2025-01-01")
    store.sweep()
    assert not spilled.exists()


def test_sweeping_never_raises(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(memory, A)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr(shutil, "rmtree", refuse)
    monkeypatch.setattr(os, "rmdir", refuse)
    store.sweep()
