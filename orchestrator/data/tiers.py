"""Which tier keeps the decoded images: decided by what is needed, what is available, and by which limit."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from orchestrator.data import get_format, store
from orchestrator.data.cache import Stored
from orchestrator.data.images import load_stored
from orchestrator.data.manifest import Manifest
from orchestrator.data.store import Tier

PROBES = 48
"""Images that are decoded to estimate the size of a cache."""
DISK_MARGIN, RAM_MARGIN = 1.05, 1.2
"""A tier must have so many times the estimate: estimates err, and memory is needed for other things too."""
CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
NETWORK = {
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "lustre",
    "gpfs",
    "ceph",
    "glusterfs",
    "beegfs",
    "afs",
    "9p",
    "virtiofs",
}
"""File systems that other machines serve, beside those of FUSE."""


@dataclass(frozen=True)
class Room:
    """How many bytes a place can take, and what limits it."""

    bytes: int
    limit: str

    def holds(self, needed: int, margin: float) -> bool:
        return needed * margin <= self.bytes


@dataclass(frozen=True)
class Choice:
    """The tier of a run, and in words why it is not the first choice (empty where it is)."""

    tier: Tier
    because: str = ""


def estimate_bytes(manifest: Manifest, stored: Stored) -> int:
    """The size of a cache, from images spread over the data set. Decodes at most PROBES of them."""
    count = len(manifest)
    positions = sorted({i * count // PROBES for i in range(PROBES)})
    sizes = []
    for row in manifest.table.take(positions).to_pylist():
        with suppress(Exception):  # the reader may be the user's own; what is broken is told by the build
            content = get_format(stored.format).load(row["image"])
            sizes.append(load_stored(content, stored.side, stored.fit).pixels.size)
    return round(count * sum(sizes) / len(sizes)) if sizes else 0


def disk_room(root: Path, quota: int | None, begun: int = 0) -> Room:
    """What the disk under a cache folder can take; the quota counts the caches that cannot be removed.

    begun: bytes that are there already of the cache that needs room.
    """
    nearest = next(p for p in (root, *root.parents) if p.exists())
    disk = Room(shutil.disk_usage(nearest).free + begun, f"free on the disk of {root}")
    if quota is None:
        return disk
    taken = sum(entry.bytes for entry in store.entries(root) if entry.is_read or entry.is_built)
    left = Room(max(quota - taken, 0), f"cache_quota of {root}")
    return min(disk, left, key=lambda room: room.bytes)


def ram_room(begun: int = 0) -> Room:
    """What shared memory can take: its own size, the machine's free memory, and the container's limit.

    begun: bytes that are there already of the cache that needs room.
    """
    if not store.MEMORY.is_dir():
        return Room(0, "there is no shared memory here")
    root = store.ram_root()
    if root.exists() and not store.is_own_folder(root):
        return Room(0, f"{root} is not this user's")
    rooms = [
        Room(shutil.disk_usage(store.MEMORY).free, f"free in {store.MEMORY}"),
        Room(psutil.virtual_memory().available, "free memory"),
        *_group_rooms(),
    ]
    least = min(rooms, key=lambda room: room.bytes)
    return Room(least.bytes + begun, least.limit)


def choose_tier(setting: Any, needed: int, disk: Room, ram: Room, network: bool) -> Choice:
    """The tier for a cache that is not there yet. Raises ValueError where `disk` was asked for and has no room."""
    fits_disk, fits_ram = disk.holds(needed, DISK_MARGIN), ram.holds(needed, RAM_MARGIN)
    on_disk = f"the disk has {gigabytes(disk.bytes)} of the {gigabytes(needed * DISK_MARGIN)} needed ({disk.limit})"
    in_ram = f"memory has {gigabytes(ram.bytes)} of the {gigabytes(needed * RAM_MARGIN)} needed ({ram.limit})"
    if setting is False:
        return Choice("false")
    if setting == "disk":
        if not fits_disk:
            raise ValueError(
                f"cache = disk: {on_disk}; free some (orchestrator cache ls lists what caches take), "
                "name another cache_dir, or set cache to auto, ram or false"
            )
        return Choice("disk")
    if setting in ("ram", True):
        if fits_ram:
            return Choice("ram")
        return Choice("disk", in_ram) if fits_disk else Choice("false", f"{in_ram}; {on_disk}")
    if fits_disk and not network:
        return Choice("disk")
    first = "the cache folder is on a network file system" if network else on_disk
    if fits_ram:
        return Choice("ram", first)
    return Choice("false", f"{first}; {in_ram}")


def on_network(root: Path) -> str | None:
    """The type of the network file system that a folder lies on; None on a local one."""
    path = str(root.resolve())
    mounts = [p for p in psutil.disk_partitions(all=True) if f"{path}/".startswith(_slash(p.mountpoint))]
    # of several at one place, the last one hides the others
    kind = max(reversed(mounts), key=lambda p: len(p.mountpoint)).fstype if mounts else ""
    fuse = kind.startswith("fuse.") and "overlay" not in kind  # overlays are the layers of a container
    return kind if kind in NETWORK or fuse else None


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _slash(path: str) -> str:
    return path if path.endswith(os.sep) else path + os.sep


def _group_rooms() -> Iterator[Room]:
    """What is left below the memory limits of this process's control groups, of version 2 and of version 1."""
    try:
        groups = [line.split(":", 2) for line in OWN_CGROUPS.read_text().splitlines()]
    except OSError:
        return
    for _, controllers, path in groups:
        if controllers not in ("", "memory"):
            continue
        names = _GROUP_FILES[controllers]
        root = CGROUPS / controllers
        own = root / path.lstrip("/")
        for group in (own, *own.parents):
            if group.is_relative_to(root) and (left := _left(group, *names)) is not None:
                yield Room(left, "memory limit of the container")


_GROUP_FILES = {
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
"""The limit, what counts towards it, and which part of that the system gives back when it is needed."""


def _left(group: Path, limit: str, usage: str, cached: str) -> int | None:
    """Bytes below the limit of one group; None where it has none."""
    try:
        most, now = int((group / limit).read_text()), int((group / usage).read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return max(most - now + int(stat[cached]), 0)
    except (OSError, ValueError, KeyError):  # no such file, or "max"
        return None
