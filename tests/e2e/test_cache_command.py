"""`orchestrator cache`: what is listed, removed and found damaged, and that the next run makes it again."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from orchestrator.data import store
from orchestrator.data.cache import Cache
from orchestrator.data.locks import exclusive
from tests.e2e.shell import Finished, Shell
from tests.e2e.test_bad_input import call, check_message
from tests.pictures import numbered_rows, write_cache

READY, UNFINISHED, OLD, OTHER = "a1" * 12, "a2" * 12, "b0" * 12, "c0" * 12
DAY = 24 * 3600
PIXELS, FOOTER = 0.5, -10
"""Places in a large shard."""


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of caches of this user, and a shared memory, both empty."""
    (tmp_path / "shm").mkdir()
    (tmp_path / "cache").mkdir()
    monkeypatch.setenv("ORCHESTRATOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "MEMORY", tmp_path / "shm")
    return tmp_path / "cache"


@pytest.fixture
def root(places: Path) -> Path:
    """That folder with three caches, and one more in memory."""
    for key in (READY, UNFINISHED, OLD):
        write_cache(places / key, numbered_rows(9), rows_per_shard=4)
    write_cache(store.ram_root() / OTHER, numbered_rows(30))
    (places / UNFINISHED / "index.json").unlink()
    then = time.time() - 10 * DAY
    os.utime(places / OLD / "index.json", (then, then))
    return places


def row_of(done: Finished, key: str) -> list[str]:
    [line] = [line for line in done.out.splitlines() if line.startswith(key[:12])]
    return line.split()


def left(root: Path) -> set[str]:
    return {entry.key for place in (root, store.ram_root()) for entry in store.entries(place)}


# ---------------------------------------------------------------------------------------------------- ls


def test_where_there_are_no_caches_it_says_where_it_looked(places: Path, tmp_path: Path) -> None:
    places.rmdir()
    for command in ("ls", "verify"):
        done = call("cache", command)
        assert (done.code, done.err) == (0, "")
        assert done.out == f"there are no caches in {places} and {store.ram_root()}\n"
    assert not places.exists()


def test_every_cache_is_listed_with_its_size_and_state(root: Path) -> None:
    reader = Cache(root / READY)
    with exclusive((root / UNFINISHED).with_suffix(".lock")):
        done = call("cache", "ls")
        assert row_of(done, UNFINISHED)[7:9] == ["being", "built"]
    assert done.code == 0
    assert row_of(done, READY)[1:6] == ["disk", "made", "9", "12", "0.0"]
    assert row_of(done, READY)[7:9] == ["in", "use"]
    reader.close()
    done = call("cache", "ls")
    assert [row_of(done, key)[7] for key in (READY, UNFINISHED, OLD, OTHER)] == [
        "ready",
        "unfinished",
        "ready",
        "ready",
    ]
    assert row_of(done, OLD)[8] == time.strftime("%Y-%m-%d", time.localtime(time.time() - 10 * DAY))
    assert row_of(done, OTHER)[1:4] == ["ram", "made", "30"]
    totals = done.out.splitlines()[-2:]
    assert totals[0].startswith("disk: 0.0 MB in 3 caches in " + str(root))
    assert "free on the disk" in totals[0]
    assert totals[1].startswith("ram: ")
    assert "in 1 cache in " + str(store.ram_root()) in totals[1]
    assert left(root) == {READY, UNFINISHED, OLD, OTHER}


def test_another_folder_can_be_looked_at(root: Path, tmp_path: Path) -> None:
    write_cache(tmp_path / "far" / OLD, numbered_rows(9))
    done = call("cache", "ls", "--dir", str(tmp_path / "far"))
    assert row_of(done, OLD)[1] == "disk"
    assert READY[:12] not in done.out
    assert OTHER[:12] not in done.out, "only that folder"
    assert call("cache", "rm", "--all", "--dir", str(tmp_path / "far")).code == 0
    assert left(root) == {READY, UNFINISHED, OLD, OTHER}
    assert store.entries(tmp_path / "far") == []
    check_message(call("cache", "ls", "--dir", "nowhere"), ("--dir nowhere", "no such folder"))


# ---------------------------------------------------------------------------------------------------- rm


@pytest.mark.parametrize(
    ("arguments", "gone"),
    [
        ((READY,), {READY}),
        (("b", UNFINISHED[:2]), {OLD, UNFINISHED}),
        (("c0c",), {OTHER}),
        (("--unfinished",), {UNFINISHED}),
        (("--older-than", "9.5"), {OLD}),
        (("--older-than", "11"), set()),
        (("--older-than", "0"), {READY, UNFINISHED, OLD, OTHER}),
        (("--all",), {READY, UNFINISHED, OLD, OTHER}),
    ],
)
def test_what_is_named_is_removed(root: Path, arguments: tuple[str, ...], gone: set[str]) -> None:
    before = left(root)
    done = call("cache", "rm", *arguments)
    assert (done.code, done.err) == (0, "")
    assert left(root) == before - gone
    assert done.out.count("removed   ") == len(gone)
    assert all(key[:12] in done.out for key in gone)
    assert done.out.splitlines()[-1].startswith("freed 0." if gone else "there is nothing to remove in")


def test_how_much_was_freed_is_told(root: Path) -> None:
    for folder in (root / READY, root / OLD):
        (folder / "shard-00000.arrow").write_bytes(bytes(10**6))
    assert call("cache", "rm", READY, OLD).out.splitlines()[-1] == "freed 2.0 MB"


@pytest.mark.parametrize("arguments", [("--all",), (READY, OLD)])
def test_what_is_in_use_is_kept_and_told(root: Path, arguments: tuple[str, ...]) -> None:
    reader = Cache(root / READY)
    done = call("cache", "rm", *arguments)
    assert done.code == 1
    assert f"kept      {READY[:12]}  made, 0.0 MB: it is in use" in done.out
    assert READY in left(root)
    assert OLD not in left(root), "the others go"
    assert len(Cache(root / READY)) == 9
    reader.close()


def test_what_is_in_use_is_neither_old_nor_unfinished(root: Path) -> None:
    then = time.time() - 10 * DAY
    reader = Cache(root / OLD)
    os.utime(root / OLD / "index.json", (then, then))
    with exclusive((root / UNFINISHED).with_suffix(".lock")):
        for option in (("--older-than", "5"), ("--unfinished",)):
            done = call("cache", "rm", *option)
            assert done.code == 0
            assert "nothing to remove" in done.out
    reader.close()
    assert left(root) == {READY, UNFINISHED, OLD, OTHER}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), ("KEY", "--all", "--unfinished", "--older-than", "orchestrator cache ls")),
        ((READY, "--all"), ("--all",)),
        (("--unfinished", "--older-than", "3"), ("--older-than",)),
        ((READY[:-1] + "0",), (READY[:-1] + "0", f"did you mean {READY}")),
        (("d",), ("no cache in", "'d'", "choose one of", READY)),
        (("",), ("no cache in",)),
        (("a",), ("2 keys begin with 'a'", READY, UNFINISHED)),
    ],
)
def test_keys_that_name_no_cache_remove_nothing(root: Path, arguments: tuple[str, ...], told: tuple[str, ...]) -> None:
    check_message(call("cache", "rm", *arguments), tuple(part.replace("KEY", "keys") for part in told))
    assert left(root) == {READY, UNFINISHED, OLD, OTHER}


def test_in_an_empty_folder_no_key_is_known(places: Path) -> None:
    check_message(call("cache", "rm", READY), (READY, str(places), "there are none"))


# ------------------------------------------------------------------------------------------------- verify


def damage(path: Path, place: float) -> None:
    """Other bytes at a place of a file, its size and time as before: only a hash can tell."""
    stat = path.stat()
    with path.open("r+b") as file:
        file.seek(int(stat.st_size * place) if place > 0 else stat.st_size + int(place))
        file.write(b"?????")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_sound_caches_are_told_and_left(root: Path) -> None:
    before = {path: path.read_bytes() for path in root.rglob("*.*") if path.suffix != ".use"}
    done = call("cache", "verify")
    assert done.code == 0
    assert done.out.count("ok   ") == 4
    assert f"{UNFINISHED[:12]}  made, 0.0 MB, unfinished" in done.out
    assert {path: path.read_bytes() for path in root.rglob("*.*") if path.suffix != ".use"} == before


def test_damaged_shards_are_named_and_removed(root: Path) -> None:
    damage(root / READY / "shard-00001.arrow", PIXELS)
    (root / READY / "shard-00002.arrow").unlink()
    assert call("cache", "verify", OLD).code == 0, "only what was named"
    reader = Cache(root / OLD)
    damage(root / OLD / "shard-00000.arrow", PIXELS)
    done = call("cache", "verify")
    assert done.code == 1
    lines = done.out.splitlines()
    [first] = [i for i, line in enumerate(lines) if line.startswith("damaged") and READY[:12] in line]
    assert lines[first].endswith("shard-00001.arrow, shard-00002.arrow")
    assert "the next run that needs this cache makes just these files again" in lines[first + 1]
    [second] = [i for i, line in enumerate(lines) if line.startswith("damaged") and OLD[:12] in line]
    assert "in use" in lines[second + 1]
    reader.close()
    assert sorted(path.name for path in (root / READY).glob("*.arrow")) == ["shard-00000.arrow"]
    assert len(list((root / OLD).glob("*.arrow"))) == 3


def test_what_is_being_built_or_of_another_version_is_passed_over(root: Path) -> None:
    (root / OLD / "index.json").write_text('{"format_version": 1}')
    with exclusive((root / UNFINISHED).with_suffix(".lock")):
        done = call("cache", "verify", UNFINISHED, OLD)
    assert done.code == 0
    assert f"skipped   {UNFINISHED[:12]}" in done.out
    assert "it is being built" in done.out
    assert "it is of format 1" in done.out
    assert (root / OLD / "index.json").exists()


# -------------------------------------------------------------------------------------- the whole way


def test_the_next_run_makes_just_the_damaged_shards_again(shell: Shell, digits_cache: Path) -> None:
    copy = shutil.copytree(digits_cache, shell.folder / "caches")
    shell.environment = {**shell.environment, "ORCHESTRATOR_CACHE": str(copy)}
    [folder] = [path.parent for path in copy.glob("*/index.json")]
    shards = sorted(folder.glob("*.arrow"))
    content = {path.name: path.read_bytes() for path in shards}

    def train() -> set[str]:
        """The names of the shards that a run built."""
        before = {path.name: path.stat().st_mtime_ns for path in shards if path.exists()}
        done = shell.run("train", shell.config(epochs=1))
        assert done.code == 0, done.err
        return {path.name for path in shards if before.get(path.name) != path.stat().st_mtime_ns}

    damage(shards[1], PIXELS)
    done = shell.run("cache", "verify")
    assert (done.code, done.out.count("damaged")) == (1, 1)
    assert "shard-00001.arrow" in done.out
    assert train() == {"shard-00001.arrow"}
    damage(shards[0], FOOTER)
    assert train() == {"shard-00000.arrow"}, "found when it is opened, though size and time are right"
    assert {path.name: path.read_bytes() for path in shards} == content
    done = shell.run("cache", "verify")
    assert (done.code, done.err) == (0, "")
    assert "ok  " in done.out
    assert shell.run("cache", "rm", folder.name[:8]).code == 0
    assert not folder.exists()
