"""The cache of a run: prepared before it, in the tier and on the nodes that fit, and let go after it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from orchestrator import launch
from orchestrator.config import ConfigError
from orchestrator.console import Screen
from orchestrator.data.build import BrokenData, Unread
from orchestrator.data.cache import Stored, stored_side
from orchestrator.data.nodes import computing_nodes, survey
from orchestrator.data.prepare import Prepared, Wanted, prepare
from orchestrator.data.store import disk_root
from orchestrator.data.tiers import on_network
from orchestrator.launch import Placement
from orchestrator.preflight import Checked
from orchestrator.stop import Stop
from trainables.augment import FITS
from trainables.recipe import parse_bytes


class Caching:
    """The ready cache, else one built now. Where Ray is not needed otherwise, it runs as long as the data need it."""

    def __init__(self, checked: Checked, placement: Placement, screen: Screen, stop: Stop, verbose: bool) -> None:
        self.checked, self.placement, self.screen, self.stop, self.verbose = checked, placement, screen, stop, verbose
        self.connected = False
        """Whether Ray was started for the data alone."""

    def __enter__(self) -> Prepared:
        """Raises ConfigError where the data or the cache folder cannot be used."""
        try:
            self.prepared = self._prepare()
            if self.prepared.tier == "false":
                self._connect()
            else:
                self._disconnect()
            return self.prepared
        except BaseException:
            self._disconnect()
            raise

    def __exit__(self, *error: Any) -> None:
        self.prepared.release()
        self._disconnect()

    def _prepare(self) -> Prepared:
        config, checked = self.checked.config, self.checked
        stored = Stored(
            format=checked.manifest.format,
            side=stored_side(checked.imgsz, config.multi_scale),
            fit=FITS[config.task],
            frame=config.exif_labels,
        )
        try:
            shared, own_copies = self._shared()
            wanted = Wanted(
                setting=config.cache,
                stored=stored,
                whole=checked.manifest,
                used=checked.used,
                cache_dir=config.cache_dir,
                quota=parse_bytes(config.cache_quota) if config.cache_quota is not None else None,
                max_bad_fraction=config.max_bad_fraction,
                shared=shared,
                own_copies=own_copies,
            )
            return prepare(wanted, self._connect, self._on_progress, self.screen.warn)
        except BrokenData as error:
            raise ConfigError(f"data = {config.data}: {error}") from error
        except ValueError as error:
            raise ConfigError(str(error)) from error
        except Unread as error:
            raise ConfigError(
                f"data = {config.data}: {error}; what has been read is kept, the same command goes on with it"
            ) from error
        except OSError as error:
            raise ConfigError(f"cache_dir: the cache cannot be written: {error}") from error

    def _shared(self) -> tuple[Path | None, bool]:
        """With several nodes: the folder of caches that all of them see, and whether each keeps copies of its own.

        Raises ConfigError where a node does not see the data or the storage.
        """
        config, checked = self.checked.config, self.checked
        nodes = computing_nodes() if self.placement.address else []
        growing = bool(nodes) and self.placement.workers > launch.devices(self.placement.gpu)
        if len(nodes) < 2 and not growing:
            return None, False
        root = disk_root(config.cache_dir)
        views = survey(nodes, config.data, checked.manifest, checked.storage, config.cache_dir)
        for blind in (view for view in views if not view.data):
            raise ConfigError(
                f"data = {config.data}: node {blind.host} does not see it; with several nodes, put the data on a file "
                "system they mount at this path, or into a bucket (s3://, gs://)"
            )
        for blind in (view for view in views if not view.storage):
            raise ConfigError(
                f"storage = {config.storage}: node {blind.host} does not see it; with several nodes, name a folder "
                "that all of them mount"
            )
        kind = on_network(root)
        if all(view.cache for view in views) and (kind or not growing):
            if kind:
                self.screen.warn(
                    f"the cache folder {root} is on a network file system ({kind}): all nodes read from it"
                )
            return root, False
        return checked.storage / "cache", True

    def _connect(self) -> None:
        """Make sure that Ray runs, for the data."""
        if self.placement.in_process and not self.connected:
            self.screen.waiting("starting Ray for the data")
            self.connected = launch.connect(None, self.verbose)
            self.stop.install()

    def _disconnect(self) -> None:
        if self.connected:
            launch.disconnect()
            self.connected = False

    def _on_progress(self, done: int, total: int) -> None:
        self.stop.raise_if_asked()
        self.screen.building(done, total)
