"""Caches on several nodes: built into a folder that all see, copied to each node once, read from there.

The order of the data depends on the config and the fingerprint only: a node that has no room for all shards reads the
rest where all nodes see them, through the operating system's page cache, and gives the same batches.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from orchestrator.data.cache import Cache, ShardFile, hash_file, remove_drafts, shards_of
from orchestrator.data.files import is_remote
from orchestrator.data.locks import exclusive
from orchestrator.data.manifest import Manifest
from orchestrator.data.store import Tier, disk_root, make_room, remove, sweep, tier_root
from orchestrator.data.tiers import DISK_MARGIN, RAM_MARGIN, disk_room, ram_room
from orchestrator.drafts import replacing

PROBED = 3
"""Images that each node looks for."""


@dataclass(frozen=True)
class Place:
    """Where the cache of a run is, as every node finds it."""

    folder: Path
    """On the one node, or where all nodes see it."""
    tier: Tier
    spread: bool = False
    """Whether each node keeps a copy of `folder` in its own store."""
    cache_dir: str | None = None
    quota: int | None = None

    def open(self, on_wait: Callable[[], None] = lambda: None) -> Cache:
        """The cache, on any node; the first process of a node fetches what the node lacks, others wait for it.

        on_wait: called again and again meanwhile; it may raise.
        """
        return self._fetch(on_wait) if self.spread else Cache(self.folder)

    @property
    def copy(self) -> Path:
        """The folder on this node."""
        return tier_root(self.tier, self.cache_dir) / self.folder.name

    def leave(self) -> None:
        """After the cache was closed: take a copy in memory away, where no other process of the node reads it."""
        if self.tier == "ram":
            remove(self.copy if self.spread else self.folder)

    def keep(self, folder: Path, file: ShardFile) -> None:
        """Copy a shard from `folder` to this node, where it has room. What does not fit is left out."""
        local, disk = self.copy, self.tier != "ram"
        try:
            local.mkdir(parents=True, exist_ok=True)
            room = disk_room(local.parent, self.quota) if disk else ram_room()
            if file.rows and room.holds(file.bytes, DISK_MARGIN if disk else RAM_MARGIN):
                _copy(folder / file.file, local / file.file, file)
        except OSError:
            return

    def _fetch(self, on_wait: Callable[[], None]) -> Cache:
        local = self.copy
        try:
            local.parent.mkdir(parents=True, exist_ok=True)
            with exclusive(local.with_suffix(".lock"), on_wait):
                local.mkdir(exist_ok=True)
                remove_drafts(local)
                index = json.loads((self.folder / "index.json").read_text())
                missing = [file for file in shards_of(index) if not file.is_sound(local)]
                if self.quota is not None and self.tier != "ram":
                    make_room(local.parent, sum(file.bytes for file in missing), self.quota, keep=local)
                for file in missing:
                    on_wait()
                    self.keep(self.folder, file)
                for name in ("plan.json", "index.json"):
                    _copy(self.folder / name, local / name)
                return Cache(local, elsewhere=self.folder)
        except OSError:  # this node cannot keep anything
            return Cache(self.folder)


@dataclass(frozen=True)
class NodeView:
    """What one node sees of the driver's paths."""

    host: str
    data: bool
    storage: bool
    cache: bool


def computing_nodes() -> list[str]:
    """Ids of the nodes that can run workers, and of the driver's own."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    return [n["NodeID"] for n in ray.nodes() if n["Alive"] and (n["Resources"].get("CPU", 0) or n["NodeID"] == here)]


def survey(
    nodes: Sequence[str], location: str, manifest: Manifest, storage: Path, cache_dir: str | None
) -> list[NodeView]:
    """Ask each node whether it sees the data and the storage, and whether its cache folder is the driver's."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    images = manifest.table["image"].slice(0, PROBED).to_pylist()
    paths = [path for path in [location, *images] if not is_remote(path) and os.path.exists(path)]
    tokens = [_token(storage), _token(disk_root(cache_dir))]
    look = ray.remote(num_cpus=0)(_look)
    try:
        answers = [
            look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
                paths, tokens[0], tokens[1].name, cache_dir
            )
            for node in nodes
        ]
        return list(ray.get(answers))
    finally:
        for token in tokens:
            token.unlink(missing_ok=True)


def _look(paths: list[str], storage: Path, cache: str, cache_dir: str | None) -> NodeView:
    sweep()
    seen = all(map(os.path.exists, paths)), storage.exists(), (disk_root(cache_dir) / cache).exists()
    return NodeView(socket.gethostname(), *seen)


def _token(folder: Path) -> Path:
    """A file that only this driver can have made."""
    folder.mkdir(parents=True, exist_ok=True)
    token = folder / f".seen-{uuid4().hex}"
    token.touch()
    return token


def _copy(source: Path, target: Path, file: ShardFile | None = None) -> None:
    """Copy with its times, in one rename; a shard is checked on the way. Raises OSError."""
    with replacing(target) as draft:
        shutil.copy2(source, draft)
        if file and hash_file(draft) != file.sha256:
            raise OSError(f"{source} is damaged")
