"""The folders that hold caches, on a node: what is in them, how much they may take, and who may be removed."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from orchestrator.data.cache import ShardFile, finished_shards, hash_file, shards_of
from orchestrator.data.locks import free, held
from orchestrator.data.shards import FORMAT_VERSION

Tier = str
"""disk, ram or false: where decoded images are kept."""

MEMORY = Path("/dev/shm")
KEY = re.compile("[0-9a-f]{24}")
"""What the folder of a cache is called (`Stored.key`)."""


@dataclass(frozen=True)
class Entry:
    """A cache in a store."""

    folder: Path
    name: str
    """Of the data set; empty where its plan was never written, or is damaged."""
    images: int
    side: int
    """Of the images, in pixels; 0: labels only."""
    bytes: int
    ready: bool
    used: float
    """When it was last opened, as a Unix time."""

    @property
    def key(self) -> str:
        return self.folder.name

    @property
    def is_read(self) -> bool:
        return held(self.folder.with_suffix(".use"))

    @property
    def is_built(self) -> bool:
        """Whether a process builds it, or fetches it from another node, at this moment."""
        return held(self.folder.with_suffix(".lock"))


class OtherVersion(Exception):
    """A cache whose format this version does not read."""


def disk_root(cache_dir: str | None) -> Path:
    """The folder of all disk caches: cache_dir, else ORCHESTRATOR_CACHE of this node, else the user's cache folder."""
    if cache_dir or os.environ.get("ORCHESTRATOR_CACHE"):
        return Path(cache_dir or os.environ["ORCHESTRATOR_CACHE"]).expanduser().absolute()
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser().absolute() / "orchestrator"


def ram_root() -> Path:
    """The folder of this user's caches in shared memory."""
    return MEMORY / f"orchestrator-{os.getuid()}"


def tier_root(tier: Tier, cache_dir: str | None) -> Path:
    """Where the caches of a tier lie on this node; the labels of tier false lie on disk."""
    return ram_root() if tier == "ram" else disk_root(cache_dir)


def entries(root: Path) -> list[Entry]:
    """The caches of a store, ready or not, the one used last first."""
    if not root.is_dir():
        return []
    found = [entry for folder in root.iterdir() if (entry := _entry(folder))]
    return sorted(found, key=lambda entry: -entry.used)


def folder_bytes(folder: Path) -> int:
    """The size of a cache's files; 0 where there is none."""
    total = 0
    for file in folder.glob("*"):
        with suppress(FileNotFoundError):  # drafts are renamed meanwhile
            total += file.stat().st_size
    return total


def verify(entry: Entry) -> list[str]:
    """The names of the files that are damaged or missing, by their hashes: reads every shard that is finished.

    Raises OtherVersion.
    """
    try:
        files = _shards(entry)
    except (OSError, ValueError, KeyError, TypeError):
        return ["index.json"]
    return [file.file for file in files if not _is_sound(file, entry.folder)]


def discard(folder: Path, names: Iterable[str]) -> bool:
    """Remove damaged files of a cache, so that the next run makes just these again; False where it is in use."""
    with _alone(folder) as alone:
        for name in names if alone else ():
            (folder / name).unlink(missing_ok=True)
        return alone


def remove(folder: Path) -> bool:
    """Remove a cache that nobody reads or builds; whether it is gone. Raises OSError where that is not allowed."""
    if not folder.parent.is_dir():
        return True
    with _alone(folder) as alone:
        if alone:
            shutil.rmtree(folder, ignore_errors=True)
        return not folder.exists()


def make_room(root: Path, needed: int, quota: int, keep: Path | None = None) -> list[Entry]:
    """Remove the caches that were not used for longest until `needed` more bytes fit the quota. Returns them.

    keep: a cache that stays and does not count, as it is what needs the bytes.
    """
    removed: list[Entry] = []
    others = [entry for entry in entries(root) if entry.folder != keep]
    total = sum(entry.bytes for entry in others)
    for entry in reversed(others):
        if total + needed <= quota:
            break
        if remove(entry.folder):
            removed.append(entry)
            total -= entry.bytes
    return removed


def sweep() -> None:
    """Remove what dead processes left in memory and in Ray's spill folders. Never raises."""
    root = ram_root()
    if is_own_folder(root):
        with suppress(OSError):
            for key in {path.stem for path in root.iterdir()}:
                with suppress(OSError):
                    remove(root / key)
            root.rmdir()  # fails where there is more
    for session in (Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()) / "ray").glob("session_[0-9]*"):
        if is_own_folder(session) and not _is_alive(session):
            for spilled in session.glob("ray_spilled_objects*"):
                shutil.rmtree(spilled, ignore_errors=True)


def is_own_folder(path: Path) -> bool:
    """Whether this user made the folder. Where all may write, others could leave a link to what they want removed."""
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()


@contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Whether nobody reads or builds a cache; while True, nobody can begin to."""
    with free(folder.with_suffix(".use")) as unread, free(folder.with_suffix(".lock")) as unbuilt:
        yield unread and unbuilt


def _entry(folder: Path) -> Entry | None:
    """The cache of a folder; None where it is something else. Without its plan, a cache is known by its name."""
    index = folder / "index.json"
    try:
        plan = json.loads((folder / "plan.json").read_text())
        stored = plan["stored"]
        known = plan["name"], plan["images"], stored["side"] if stored["pixels"] else 0
    except (OSError, ValueError, KeyError, TypeError):
        if not (KEY.fullmatch(folder.name) and folder.is_dir()):
            return None
        known = "", 0, 0
    ready = index.is_file()
    try:
        used = (index if ready else folder).stat().st_mtime
    except FileNotFoundError:
        return None  # removed at this moment
    return Entry(folder, *known, folder_bytes(folder), ready, used)


def _shards(entry: Entry) -> list[ShardFile]:
    """The shards of the index, or those that are finished. Raises what a damaged index leads to."""
    if entry.ready:
        index = json.loads((entry.folder / "index.json").read_text())
        if index["format_version"] != FORMAT_VERSION:
            raise OtherVersion(f"it is of format {index['format_version']}, and this version uses {FORMAT_VERSION}")
        return shards_of(index)
    return list(finished_shards(entry.folder))


def _is_sound(file: ShardFile, folder: Path) -> bool:
    path = folder / file.file
    try:
        return not file.rows or (path.stat().st_size == file.bytes and hash_file(path) == file.sha256)
    except OSError:
        return False  # what the disk cannot read any more


def _is_alive(session: Path) -> bool:
    """Whether a raylet of this session of Ray still answers, or may do so."""
    for name in session.glob("sockets/raylet*"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1)
            try:
                probe.connect(str(name))
            except (ConnectionRefusedError, FileNotFoundError):
                continue
            except OSError:
                pass  # too busy to answer
            return True
    return False
