"""Which tier keeps the decoded images: decided by what is needed, what is available, and by which limit."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from orchestrator.data import get_format
from orchestrator.data.cache import Stored
from orchestrator.data.images import load_stored
from orchestrator.data.locks import free
from orchestrator.data.manifest import Manifest
from orchestrator.data.store import MEMORY, Tier, entries

PROBES = 48
"""Images that are decoded to estimate the size of a cache."""
DISK_MARGIN, RAM_MARGIN = 1.05, 1.2
"""A tier must have so many times the estimate: estimates err, and memory is needed for other things too."""
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
        try:
            content = get_format(stored.format).load(row["image"])
            sizes.append(load_stored(content, stored.side, stored.fit).pixels.size)
        except (OSError, ValueError):
            continue
    return round(count * sum(sizes) / len(sizes)) if sizes else 0


def disk_room(root: Path, quota: int | None) -> Room:
    """What the disk under a cache folder can take; the quota counts the caches that cannot be removed."""
    nearest = next(p for p in (root, *root.parents) if p.exists())
    disk = Room(shutil.disk_usage(nearest).free, f"free on the disk of {root}")
    if quota is None:
        return disk
    left = Room(max(quota - _in_use(root), 0), f"cache_quota of {root}")
    return min(disk, left, key=lambda room: room.bytes)


def ram_room() -> Room:
    """What shared memory can take: its own size, the machine's free memory, and the container's limit."""
    if not MEMORY.is_dir():
        return Room(0, "no shared memory here")
    rooms = [
        Room(shutil.disk_usage(MEMORY).free, f"free in {MEMORY}"),
        Room(psutil.virtual_memory().available, "free memory"),
    ]
    group = Path("/sys/fs/cgroup")
    try:
        most, now = (group / "memory.max").read_text(), int((group / "memory.current").read_text())
        cached = next(
            int(line.split()[1])
            for line in (group / "memory.stat").read_text().splitlines()
            if line.startswith("inactive_file ")
        )
        if most.strip() != "max":
            rooms.append(Room(max(int(most) - now + cached, 0), "memory limit of the container"))
    except (OSError, ValueError, StopIteration):
        pass
    return min(rooms, key=lambda room: room.bytes)


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
                f"cache = disk: {on_disk}; free some, name another cache_dir, or set cache to auto, ram or false"
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
    kind = max(mounts, key=lambda p: len(p.mountpoint)).fstype if mounts else ""
    fuse = kind.startswith("fuse.") and "overlay" not in kind  # overlays are the layers of a container
    return kind if kind in NETWORK or fuse else None


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _slash(path: str) -> str:
    return path if path.endswith(os.sep) else path + os.sep


def _in_use(root: Path) -> int:
    total = 0
    for entry in entries(root):
        with free(entry.folder.with_suffix(".use")) as unread:
            total += 0 if unread else entry.bytes
    return total
