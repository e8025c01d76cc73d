"""A Ray cluster with more CPUs than this machine may have, and runs that train on it.

All tests share the cluster, its data and its cache, so that a run takes seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from orchestrator.config import Config
from tests.colours import write_colours

CPUS, NODES = 4, 2


class MakeConfig(Protocol):
    """Makes a config that trains the small model on the cluster; any key can be set."""

    def __call__(self, workers: int | str = "auto", **changes: Any) -> Config: ...


@pytest.fixture(scope="session")
def plain_environment() -> Iterator[None]:
    """No cluster, cache or server of the user's own."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RAY_ADDRESS", "ORCHESTRATOR_CACHE", "MLFLOW_TRACKING_URI"):
            patch.delenv(name, raising=False)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        yield


@pytest.fixture(autouse=True, scope="module")
def _keep_threads() -> Iterator[None]:
    """A run in this process takes all CPUs for torch; what comes after it must not."""
    import torch

    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def cluster(plain_environment: None) -> Iterator[str]:
    """The address of a cluster of two nodes with two logical CPUs each, which leaves GPUs alone."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": CPUS // NODES, "include_dashboard": False})
    cluster.add_node(num_cpus=CPUS // NODES)
    yield cluster.address
    cluster.shutdown()


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of small images, with a validation split."""
    return write_colours(tmp_path_factory.mktemp("data") / "colours")


@pytest.fixture(scope="session")
def make_config(cluster: str, colours: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeConfig:
    """Configs of runs on the cluster, with one storage and one cache for all of them."""
    folder = tmp_path_factory.mktemp("shared")

    def make(workers: int | str = "auto", **changes: Any) -> Config:
        small = {"model": "tests.tiny:conv", "imgsz": 8, "epochs": 2, "batch": 10, "optimizer": "SGD", "lr": 0.05}
        places = {"data": str(colours), "storage": str(folder / "runs"), "cache_dir": str(folder / "cache")}
        return Config.model_validate(
            {**small, **places, "scaling": {"workers": workers, "address": cluster}, **changes}
        )

    return make
