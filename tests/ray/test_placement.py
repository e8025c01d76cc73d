"""How many workers a cluster gets, and what is said where it cannot give them."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from orchestrator import launch
from orchestrator.config import ConfigError
from orchestrator.train import train
from tests.ray.conftest import CPUS, NODES, MakeConfig


def test_auto_takes_every_node_of_a_cluster_without_gpus(
    make_config: MakeConfig, cluster: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where RAY_ADDRESS names the cluster: it is never a run in process, as `auto` on one machine would be."""
    import ray

    monkeypatch.setenv("RAY_ADDRESS", cluster)
    summary = train(make_config(epochs=1, scaling={})).summary
    assert (summary["status"], summary["workers"]) == ("finished", [NODES])
    assert f"Ray cluster {cluster}" in capsys.readouterr().out
    assert not ray.is_initialized()


def test_more_workers_than_the_cluster_has(make_config: MakeConfig, cluster: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refusal:
        train(make_config(CPUS + 1, storage=str(tmp_path / "runs"), cache_dir=str(tmp_path / "cache")))
    message = str(refusal.value)
    assert f"scaling.workers = {CPUS + 1}" in message
    assert f"the cluster at {cluster} can give {CPUS} CPUs on {NODES} nodes" in message
    assert f"set scaling.workers to {CPUS} or less" in message
    assert not list(tmp_path.iterdir())


def _closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


ABSENT = {
    "nobody listens": lambda: f"127.0.0.1:{_closed_port()}",
    "no such host": lambda: "no-such-host.invalid:6379",
    "no such port": lambda: "127.0.0.1:99999",
    "no address": lambda: "my-cluster",
    "address of the dashboard": lambda: "http://127.0.0.1:8265",
}


@pytest.mark.parametrize("absent", ABSENT)
def test_a_cluster_that_does_not_answer(make_config: MakeConfig, absent: str, tmp_path: Path) -> None:
    """It never becomes a run on this machine instead."""
    address = ABSENT[absent]()
    places = {"storage": str(tmp_path / "runs"), "cache_dir": str(tmp_path / "cache")}
    with pytest.raises(ConfigError, match="no Ray cluster answers") as refusal:
        train(make_config(scaling={"address": address}, **places))
    assert address in str(refusal.value)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------- the autoscaler


@pytest.fixture
def connected(cluster: str) -> Iterator[str]:
    assert launch.connect(cluster, verbose=False)
    yield cluster
    launch.disconnect()


@pytest.fixture
def autoscaler(connected: str) -> Iterator[None]:
    """What an autoscaler tells the cluster of its limits: at most 3 more nodes with 4 CPUs each."""
    from ray.experimental import internal_kv

    messages: Any = import_module("ray.core.generated.autoscaler_pb2")
    raylet: Any = import_module("ray._raylet")
    group = messages.NodeGroupConfig(name="worker", resources={"CPU": 4}, min_count=0, max_count=3)
    limits = messages.ClusterConfig(node_group_configs=[group]).SerializeToString()
    key, namespace = raylet.GCS_AUTOSCALER_CLUSTER_CONFIG_KEY, raylet.GCS_AUTOSCALER_STATE_NAMESPACE
    internal_kv._internal_kv_put(key, limits, namespace=namespace)
    yield
    internal_kv._internal_kv_del(key, namespace=namespace)


@pytest.mark.parametrize("workers", [CPUS + 1, 12])
@pytest.mark.usefixtures("autoscaler")
def test_what_the_autoscaler_may_start_counts(make_config: MakeConfig, connected: str, workers: int) -> None:
    placement, problems = launch.place_on_cluster(make_config(workers), connected)
    assert problems == []
    assert placement == launch.Placement(workers, gpu=False, address=connected)


@pytest.mark.usefixtures("autoscaler")
def test_more_workers_than_the_autoscaler_may_ever_start(make_config: MakeConfig, connected: str) -> None:
    placement, [problem] = launch.place_on_cluster(make_config(13), connected)
    assert placement is None
    assert problem.key == "scaling.workers"
    assert "12 CPUs" in problem.message


# --------------------------------------------------------------------------------------------- connections


def test_a_connection_of_the_caller_is_left_alone(make_config: MakeConfig, connected: str, tmp_path: Path) -> None:
    """Whether a run needs Ray for its workers or, in process, for its cache only."""
    import ray

    job = ray.get_runtime_context().get_job_id()
    assert launch.connect(connected, verbose=False) is False
    assert train(make_config(1, epochs=1)).summary["status"] == "finished"
    in_process = train(make_config(1, epochs=1, cache_dir=str(tmp_path)), local=True).summary
    assert (in_process["status"], in_process["cache"]["reused"]) == ("finished", False)
    assert ray.is_initialized()
    assert ray.get_runtime_context().get_job_id() == job


def test_disconnecting_leaves_the_cluster_running(cluster: str) -> None:
    import ray

    for _ in range(2):
        assert launch.connect(cluster, verbose=False) is True
        assert len([node for node in ray.nodes() if node["Alive"]]) == NODES
        launch.disconnect()
        assert not ray.is_initialized()
    launch.disconnect()  # harmless when repeated
