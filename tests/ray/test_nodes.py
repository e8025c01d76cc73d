"""Three nodes with cache folders of their own: each fetches once, any may be lost or full, all see the same order."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestrator import launch
from orchestrator.config import Config, ConfigError
from orchestrator.data.build import build_cache
from orchestrator.data.cache import Stored
from orchestrator.data.manifest import read_manifest
from orchestrator.train import train
from tests.colours import write_colours
from tests.results import Received, received

NODES = 3


@dataclass
class Machines:
    """A cluster whose nodes differ in their cache folder only."""

    address: str
    caches: list[Path]
    folder: Path
    data: Path

    def config(self, workers: int, **changes: Any) -> Config:
        small = {"model": "tests.tiny:conv", "imgsz": 8, "epochs": 1, "batch": 50, "optimizer": "SGD", "lr": 0.05}
        places = {"data": str(self.data), "storage": str(self.folder / "runs"), "record_samples": True}
        scaling = {"workers": workers, "address": self.address}
        return Config.model_validate({**small, **places, "scaling": scaling, **changes})

    def shards(self, node: int) -> dict[str, int]:
        """The shards in the cache folder of a node, with their inodes."""
        return {path.name: path.stat().st_ino for path in self.caches[node].glob("*/shard-*.arrow")}


@pytest.fixture(scope="module")
def machines(plain_environment: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    from ray.cluster_utils import Cluster

    folder = tmp_path_factory.mktemp("nodes")
    caches = [folder / f"node-{i}" for i in range(NODES)]
    options: list[dict[str, Any]] = [
        {"num_cpus": 1, "env_vars": {"ORCHESTRATOR_CACHE": str(cache)}} for cache in caches
    ]
    cluster = Cluster(initialize_head=True, head_node_args={**options[0], "include_dashboard": False})
    for node in options[1:]:
        cluster.add_node(**node)
    data = write_colours(folder / "data", {"train": (90, 80, 80), "val": (20, 20, 20)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ORCHESTRATOR_CACHE", str(caches[0]))
        yield Machines(cluster.address, caches, folder, data)
    cluster.shutdown()


@pytest.fixture(scope="module")
def first(machines: Machines) -> Received:
    """What three workers received in the run that built the cache."""
    result = train(machines.config(NODES))
    assert not result.summary["cache"]["reused"]
    return received(result.folder)


def test_each_node_ends_with_all_shards_fetched_once(machines: Machines, first: Received) -> None:
    [shared] = (machines.folder / "runs" / "cache").glob("*/")
    names = {path.name for path in shared.glob("shard-*.arrow")}
    assert len(names) >= NODES
    before = [machines.shards(node) for node in range(NODES)]
    assert [set(shards) for shards in before] == [names] * NODES
    again = train(machines.config(NODES))
    assert again.summary["cache"]["reused"]
    assert [machines.shards(node) for node in range(NODES)] == before, "nothing was fetched a second time"
    assert received(again.folder).pixels == first.pixels


def test_a_node_that_lost_its_disk_fetches_again(machines: Machines, first: Received) -> None:
    before = machines.shards(1)
    for path in machines.caches[1].glob("*/shard-*1.arrow"):
        path.unlink()
    assert received(train(machines.config(NODES)).folder).pixels == first.pixels
    assert set(machines.shards(1)) == set(before)


def test_nodes_without_room_read_the_rest_elsewhere_in_the_same_order(machines: Machines, first: Received) -> None:
    sizes = [path.stat().st_size for path in machines.caches[1].glob("*/shard-*.arrow")]
    for node in range(1, NODES):
        for path in machines.caches[node].rglob("*.arrow"):
            path.unlink()
    quota = sum(sizes) // 2
    result = train(machines.config(NODES, cache_quota=quota))
    held = [len(machines.shards(node)) for node in range(1, NODES)]
    assert all(count < len(sizes) for count in held)
    assert received(result.folder).pixels == first.pixels


@pytest.mark.parametrize("cache", ["ram", False])
def test_the_other_tiers_give_the_same(machines: Machines, first: Received, cache: Any) -> None:
    result = train(machines.config(2, cache=cache))
    assert received(result.folder).pixels == first.pixels
    assert result.summary["cache"]["tier"] == ("ram" if cache else "false")


def test_storage_that_a_node_does_not_see_is_refused(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node sees what is on its own machine only: here, one that looks for paths below another root."""
    from orchestrator import caching
    from orchestrator.data.nodes import NodeView

    for missing, message in (
        ("data", "does not see it; with several nodes, put the data"),
        ("storage", "name a folder"),
    ):
        views = [NodeView("here", True, True, False), NodeView("far", missing != "data", missing != "storage", False)]
        monkeypatch.setattr(caching, "survey", lambda *arguments, views=views: views)
        with pytest.raises(ConfigError, match=message) as refusal:
            train(machines.config(2))
        assert "node far" in str(refusal.value)
    assert os.environ["ORCHESTRATOR_CACHE"]


def test_a_node_lost_while_it_builds_is_survived(plain_environment: None, tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    data = write_colours(tmp_path / "data", {"train": (200, 200, 200)})
    manifest = read_manifest(str(data), "tests.ray.slow_reader:FORMAT")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    doomed = cluster.add_node(num_cpus=2)
    told: list[int] = []

    def lose(done: int, total: int) -> None:
        told.append(done)
        if done and len(cluster.list_all_nodes()) > 1:
            cluster.remove_node(doomed, allow_graceful=False)

    assert launch.connect(cluster.address, verbose=False)
    try:
        cache = build_cache(tmp_path / "caches" / "key", manifest, Stored(manifest.format, 9), 0, lose)
    finally:
        launch.disconnect()
        cluster.shutdown()
    assert told[-1] == len(cache) == 600
    assert cache.ids.to_pylist() == manifest.table["id"].to_pylist()
    assert not cache.issues
