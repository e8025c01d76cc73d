"""The folders that hold caches, on a node: what is in them, how much they may take, and who may be removed."""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path

from orchestrator.data.cache import ShardFile
from orchestrator.data.locks import free

Tier = str
"""disk, ram or false: where decoded images are kept."""

MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Entry:
    """A cache in a store."""

    folder: Path
    name: str
    """Of the data set."""
    images: int
    side: int
    bytes: int
    ready: bool
    used: float
    """When it was last opened, as a Unix time."""

    @property
    def key(self) -> str:
        return self.folder.name


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
    found = [_entry(folder) for folder in root.iterdir() if (folder / "plan.json").is_file()]
    return sorted(found, key=lambda entry: -entry.used)


def used_bytes(root: Path) -> int:
    return sum(entry.bytes for entry in entries(root))


def verify(entry: Entry) -> list[str]:
    """The names of the shards that are damaged or missing, by their hashes."""
    index = json.loads((entry.folder / "index.json").read_text())
    files = [ShardFile.parse(values) for values in index["shards"]]
    return [file.file for file in files if not file.is_sound(entry.folder, thorough=True)]


def remove(folder: Path) -> bool:
    """Remove a cache that nobody reads or builds; whether it is gone."""
    with free(folder.with_suffix(".use")) as unread, free(folder.with_suffix(".lock")) as unbuilt:
        if unread and unbuilt:
            shutil.rmtree(folder, ignore_errors=True)
        return unread and unbuilt


def make_room(root: Path, needed: int, quota: int) -> list[Entry]:
    """Remove the caches that were not used for longest until `needed` more bytes fit the quota. Returns them."""
    removed: list[Entry] = []
    total = used_bytes(root)
    for entry in reversed(entries(root)):
        if total + needed <= quota:
            break
        if remove(entry.folder):
            removed.append(entry)
            total -= entry.bytes
    return removed


def sweep() -> None:
    """Remove what dead processes left in memory and in Ray's spill folders. Never raises."""
    root = ram_root()
    for lock in [*root.glob("*.use"), *root.glob("*.lock")]:
        remove(lock.with_suffix(""))
    for folder in root.glob("*/"):
        remove(folder)
    if root.is_dir() and not any(root.iterdir()):
        root.rmdir()
    for session in (Path(tempfile.gettempdir()) / "ray").glob("session_[0-9]*"):
        if _owned(session) and not _is_alive(session):
            for spilled in session.glob("ray_spilled_objects*"):
                shutil.rmtree(spilled, ignore_errors=True)


def _entry(folder: Path) -> Entry:
    plan = json.loads((folder / "plan.json").read_text())
    index = folder / "index.json"
    ready = index.is_file()
    size = sum(file.stat().st_size for file in folder.iterdir())
    used = (index if ready else folder).stat().st_mtime
    return Entry(folder, plan["name"], plan["images"], plan["stored"]["side"], size, ready, used)


def _owned(path: Path) -> bool:
    try:
        return path.stat().st_uid == os.getuid()
    except OSError:
        return False


def _is_alive(session: Path) -> bool:
    """Whether a raylet of this session of Ray still answers."""
    for name in session.glob("sockets/raylet*"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(str(name))
            except OSError:
                continue
            return True
    return False
