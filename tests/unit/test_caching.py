"""Where the cache of a run is built and kept, by what the nodes of a cluster see. Ray is faked."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator import caching, launch
from orchestrator.caching import Caching
from orchestrator.config import Config, ConfigError
from orchestrator.data.nodes import NodeView
from orchestrator.launch import Placement
from orchestrator.stop import Stop

SEES_ALL, OWN_CACHE = NodeView("a", True, True, True), NodeView("b", True, True, False)


class Cluster:
    """What Ray and the nodes would answer; `shared` is what the run makes of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.monkeypatch, self.folder = monkeypatch, folder
        self.warnings: list[str] = []

    def shared(
        self, views: list[NodeView], workers: int = 2, devices: int = 8, network: str | None = None
    ) -> tuple[Path | None, bool]:
        self.monkeypatch.setattr(caching, "computing_nodes", lambda: [view.host for view in views])
        self.monkeypatch.setattr(caching, "survey", lambda *arguments: views)
        self.monkeypatch.setattr(caching, "on_network", lambda root: network)
        self.monkeypatch.setattr(launch, "devices", lambda gpu: devices)
        config = Config(data="/data", cache_dir=str(self.folder / "cache"))
        checked: Any = SimpleNamespace(config=config, manifest=None, storage=self.folder / "runs")
        screen: Any = SimpleNamespace(warn=self.warnings.append)
        placement = Placement(workers, gpu=True, address="head:6379")
        return Caching(checked, placement, screen, Stop(), verbose=False)._shared()


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cluster:
    return Cluster(monkeypatch, tmp_path)


def test_one_node_keeps_its_cache_to_itself(cluster: Cluster) -> None:
    assert cluster.shared([SEES_ALL]) == (None, False)


def test_a_folder_that_all_nodes_see_serves_all(cluster: Cluster) -> None:
    assert cluster.shared([SEES_ALL] * 2) == (cluster.folder / "cache", False)
    assert not cluster.warnings
    assert cluster.shared([SEES_ALL] * 2, network="nfs") == (cluster.folder / "cache", False)
    assert "network file system (nfs)" in cluster.warnings[0]


def test_nodes_with_folders_of_their_own_copy_from_the_storage(cluster: Cluster) -> None:
    assert cluster.shared([SEES_ALL, OWN_CACHE]) == (cluster.folder / "runs" / "cache", True)


def test_nodes_that_are_still_to_come_are_expected_to_have_folders_of_their_own(cluster: Cluster) -> None:
    assert cluster.shared([SEES_ALL], workers=4, devices=1) == (cluster.folder / "runs" / "cache", True)
    assert cluster.shared([SEES_ALL], workers=4, devices=1, network="nfs") == (cluster.folder / "cache", False)
    assert cluster.shared([SEES_ALL], workers=4, devices=4) == (None, False)


def test_a_node_that_does_not_see_the_data_or_the_storage_is_named(cluster: Cluster) -> None:
    with pytest.raises(ConfigError, match="data = /data: node far does not see it"):
        cluster.shared([SEES_ALL, NodeView("far", False, True, True)])
    with pytest.raises(ConfigError, match=r"storage = .*: node far does not see it"):
        cluster.shared([SEES_ALL, NodeView("far", True, False, False)])
