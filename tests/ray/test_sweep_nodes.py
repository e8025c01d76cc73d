"""A sweep on three nodes, one of which dies: its trial goes on elsewhere, and none is lost."""

from __future__ import annotations

import csv
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config import Config
from orchestrator.run import Result
from orchestrator.sweeps.journal import read_journal
from orchestrator.tune import tune
from tests.colours import write_colours
from tests.results import rows


@pytest.fixture
def cluster(plain_environment: None) -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]  # type: ignore[attr-defined]
    yield cluster
    cluster.shutdown()


@pytest.mark.slow
def test_a_trial_on_a_node_that_dies_goes_on_elsewhere(cluster: Any, tmp_path: Path) -> None:
    config = Config.model_validate(
        {
            "data": str(write_colours(tmp_path / "colours")),
            "model": "tests.ray.models:Slow",
            "imgsz": 8,
            "epochs": 30,
            "batch": 2,
            "lr": 0.05,
            "name": "nodes",
            "storage": str(tmp_path / "runs"),
            "cache_dir": str(tmp_path / "cache"),
            "scaling": {"workers": 1, "address": cluster.address},
            "tune": {
                "space": {"lr": {"loguniform": [0.01, 0.1]}},
                "searcher": "random",
                "scheduler": "none",
                "samples": 4,
            },
        }
    )
    results: list[Result] = []
    thread = threading.Thread(target=lambda: results.append(tune(config)))
    thread.start()
    journal = tmp_path / "runs" / "colours" / "nodes" / "journal.jsonl"
    deadline = time.monotonic() + 120
    while not journal.exists() or _epochs(journal, 3) < 3:
        assert time.monotonic() < deadline
        assert thread.is_alive()
        time.sleep(0.1)
    cluster.remove_node(cluster.nodes[0], allow_graceful=False)
    thread.join(200)
    assert not thread.is_alive()
    [result] = results
    assert result.summary["trials"] == {"total": 4, "finished": 4, "stopped": 0, "failed": 0, "interrupted": 0}
    with (result.folder / "trials.csv").open(newline="") as file:
        trials = list(csv.DictReader(file))
    retries = [int(trial["retries"]) for trial in trials]
    assert sum(retries) == 1, "the one trial that ran there"
    for trial in trials:
        epochs = [int(row["epoch"]) for row in rows(result.folder / trial["folder"])]
        assert epochs == list(range(1, 31)), "each once"
    [event] = [event for event in read_journal(journal) if event["kind"] == "retry"]
    assert retries[event["trial"]] == 1
    told = json.loads((result.folder / "summary.json").read_text())["mlflow"]
    assert len(_children(told)) == 4


def _epochs(journal: Path, trials: int) -> int:
    """How many of the first trials have had an epoch."""
    events = [json.loads(line) for line in journal.read_text().splitlines() if line.endswith("}")]
    return len({event["trial"] for event in events if event["kind"] == "epoch"} & set(range(trials)))


def _children(told: dict[str, str]) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=told["tracking_uri"])
    experiment = client.get_run(told["run_id"]).info.experiment_id
    return list(client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{told['run_id']}'"))
