"""From a manifest to an open cache: found, or built in the tier that `cache` asks for and that has room."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator.data import store
from orchestrator.data.build import NoRoom, OnProgress, build_cache, refuse_broken
from orchestrator.data.cache import Cache, Stored, open_cache
from orchestrator.data.manifest import Manifest
from orchestrator.data.nodes import Place
from orchestrator.data.store import Tier
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


@dataclass(frozen=True)
class Wanted:
    """What a run asks of the cache."""

    setting: Any
    """The config's `cache`."""
    stored: Stored
    whole: Manifest
    used: Manifest
    """The part of the data set that `fraction` leaves; the whole one at fraction 1."""
    cache_dir: str | None
    quota: int | None
    max_bad_fraction: float
    shared: Path | None = None
    """On several nodes: the folder that all of them see. None where one node does everything."""
    own_copies: bool = False
    """Whether the nodes' cache folders differ, so that each keeps a copy."""

    @property
    def in_ram(self) -> bool:
        return self.setting in ("ram", True)


@dataclass(frozen=True)
class Prepared:
    """The cache of a run, open in the driver."""

    place: Place
    cache: Cache
    reused: bool
    because: str
    """Why it is not in the tier of first choice; empty where it is."""

    @property
    def tier(self) -> Tier:
        return self.place.tier

    def describe(self) -> str:
        """Where it is, in words."""
        found, size = ("found" if self.reused else "built"), gigabytes(self.cache.bytes)
        where = {
            "disk": f"{found} on disk, {size}, {self.place.folder}",
            "ram": f"{found} in shared memory, {size}, removed at the end",
            "false": "none: images are decoded again in every epoch",
        }[self.tier]
        copies = ", a copy on each node" if self.place.spread and self.tier != "false" else ""
        return where + copies + (f" ({self.because})" if self.because else "")

    def release(self) -> None:
        """Let go of the cache; one in memory is removed where nobody else holds it."""
        self.cache.close()
        self.place.leave()


def prepare(
    wanted: Wanted, connect: Callable[[], None], on_progress: OnProgress, warn: Callable[[str], None]
) -> Prepared:
    """Open the cache, or build it. `connect` makes sure that Ray runs; it is called only where it is needed.

    Raises BrokenData; ValueError where the tier that was asked for has no room; OSError where it cannot be written.
    """
    store.sweep()
    root = store.disk_root(wanted.cache_dir)
    prepared = _ready(wanted, root, on_progress) or _made(wanted, root, connect, on_progress, warn)
    refuse_broken(prepared.cache.issues, len(prepared.cache) + prepared.cache.skipped, wanted.max_bad_fraction)
    return prepared


def _ready(wanted: Wanted, root: Path, on_progress: OnProgress) -> Prepared | None:
    """A cache that can be used as it is, of the whole data set or of the part that is used."""
    if wanted.setting is False:
        return None
    for manifest in (wanted.whole,) if wanted.used is wanted.whole else (wanted.whole, wanted.used):
        key = wanted.stored.key(manifest)
        if wanted.in_ram and not wanted.shared and (held := open_cache(store.ram_root() / key)):
            return Prepared(Place(store.ram_root() / key, "ram"), held, True, "")
        folder = (wanted.shared or root) / key
        if (cache := open_cache(folder)) is None:
            continue
        tier, because, spread = "disk", "", wanted.own_copies
        if wanted.in_ram:
            room = ram_room(store.folder_bytes(store.ram_root() / key))
            choice = choose_tier("ram", cache.bytes, Room(cache.bytes * 2, ""), room, network=False)
            tier, because = choice.tier, choice.because
            spread = spread or tier == "ram"  # the memory of each node takes a copy from the disk
        place = Place(folder, tier, spread, wanted.cache_dir, wanted.quota)
        if spread and not wanted.shared:
            cache.close()
            cache = place.open(lambda: on_progress(0, len(wanted.used)))
        return Prepared(place, cache, True, because)
    return None


def _made(
    wanted: Wanted, root: Path, connect: Callable[[], None], on_progress: OnProgress, warn: Callable[[str], None]
) -> Prepared:
    """A cache in the first tier that has room, or goes on to have it while it is built."""
    kind = on_network(root)
    if kind and wanted.shared is None and wanted.setting == "disk":
        warn(
            f"the cache folder {root} is on a network file system ({kind}), which is slower than a disk of this machine"
        )
    needed = 0 if wanted.setting is False else estimate_bytes(wanted.used, wanted.stored)
    disk = _disk_room(wanted, root)
    ram = ram_room(store.folder_bytes(store.ram_root() / wanted.stored.key(wanted.used)))
    while True:
        choice = choose_tier(wanted.setting, needed, disk, ram, kind is not None and wanted.shared is None)
        try:
            return _build(wanted, choice, needed, connect, on_progress, warn)
        except NoRoom as error:
            if choice.tier == "false":
                raise  # not even the labels
            full = Room(0, f"it was full while the cache was built: {error}")
            on_disk = choice.tier == "disk" or wanted.shared is not None
            disk, ram = (full, ram) if on_disk else (disk, full)


def _disk_room(wanted: Wanted, root: Path) -> Room:
    base = wanted.shared or root
    begun = store.folder_bytes(base / wanted.stored.key(wanted.used))
    # nodes that have no room for copies read where all see them
    return disk_room(base, None if wanted.own_copies else wanted.quota, begun)


def _build(
    wanted: Wanted,
    choice: Choice,
    needed: int,
    connect: Callable[[], None],
    on_progress: OnProgress,
    warn: Callable[[str], None],
) -> Prepared:
    stored = replace(wanted.stored, pixels=choice.tier != "false")
    base = wanted.shared or store.tier_root(choice.tier, wanted.cache_dir)
    folder = base / stored.key(wanted.used)
    spread = wanted.own_copies or (choice.tier == "ram" and wanted.shared is not None)
    place = Place(folder, choice.tier, spread, wanted.cache_dir, wanted.quota)
    cache = open_cache(folder)
    reused = cache is not None
    if cache is None:
        if wanted.quota is not None and base == (wanted.shared or store.disk_root(wanted.cache_dir)):
            removed = [] if wanted.own_copies else store.make_room(base, needed, wanted.quota, keep=folder)
            if removed:
                warn(
                    f"removed from the cache to stay within cache_quota: {', '.join(e.name or e.key for e in removed)}"
                )
        connect()
        # copies in memory, and under a quota, are made when the workers ask for them, under the lock of their node
        copies = place if spread and choice.tier != "ram" and wanted.quota is None else None
        cache = build_cache(folder, wanted.used, stored, wanted.max_bad_fraction, on_progress, copies)
    return Prepared(place, cache, reused, choice.because)
