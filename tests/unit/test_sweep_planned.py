"""What a sweep is made of before it starts: its size on the machine, its variants of the data, what it tries first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator import launch
from orchestrator.config import Config
from orchestrator.sweeps.capacity import Capacity, Node, _capacity, capacity_here
from orchestrator.sweeps.journal import Journal
from orchestrator.sweeps.planned import Planned, plan_sweep, variant_of
from tests.colours import write_colours

CPU, GPUS = Node(8, 0), Node(32, 4)


def made(workers: Any = "auto", **tune: Any) -> Config:
    return Config.model_validate({"data": "digits", "scaling": {"workers": workers}, "tune": tune})


def capacity(nodes: list[Node], config: Config, most: tuple[Node, ...] = ()) -> Capacity:
    found, problems = _capacity(config, nodes, list(most), "head:6379", "the cluster")
    assert found, problems
    return found


@pytest.mark.parametrize(
    ("nodes", "workers", "tune", "concurrent", "cpus", "gpus"),
    [
        ([CPU], "auto", {}, 8, 1, 0),
        ([CPU], 3, {}, 2, 1, 0),
        ([CPU], "auto", {"cpus": 3}, 2, 3, 0),
        ([CPU], "auto", {"concurrent": 5}, 5, 1, 0),
        ([GPUS], "auto", {}, 4, 8, 1),
        ([GPUS, GPUS], 8, {}, 1, 8, 1),
        ([GPUS], "auto", {"gpus": 0.5}, 8, 4, 0.5),
        ([GPUS], "auto", {"gpus": 2.0}, 2, 16, 2),
        ([GPUS, CPU], "auto", {"gpus": 0.0}, 40, 1, 0),
        ([Node(0, 0), GPUS], "auto", {}, 4, 8, 1),
        ([Node(7, 1)], "auto", {"gpus": 1 / 3}, 3, 2, 1 / 3),
    ],
)
def test_as_many_trials_at_once_as_the_nodes_hold(
    nodes: list[Node], workers: Any, tune: dict[str, Any], concurrent: int, cpus: int, gpus: float
) -> None:
    found = capacity(nodes, made(workers, **tune))
    assert found.concurrent == concurrent
    assert found.placement.cpus == cpus
    assert found.placement.gpu == bool(gpus)
    if gpus:
        assert found.placement.gpus == gpus
    assert not found.growing


def test_workers_that_no_single_node_holds_are_not_counted() -> None:
    assert capacity([Node(3, 0), Node(3, 0)], made(cpus=2)).concurrent == 2, "one per node, though six CPUs hold three"


def test_what_an_autoscaler_may_start_counts() -> None:
    assert capacity([Node(0, 0)], made(cpus=3), most=(Node(4, 0),) * 10).concurrent == 10, "one per machine"
    found = capacity([Node(0, 0)], made(), most=(Node(16, 2),) * 4)
    assert found.concurrent == 8
    assert found.growing
    assert "grows" in str(found)


@pytest.mark.parametrize(
    ("workers", "tune", "key"),
    [(9, {}, "scaling.workers"), (1, {"cpus": 9}, "tune.cpus"), (1, {"gpus": 1.0}, "tune.gpus")],
)
def test_what_can_never_be_is_a_problem(workers: int, tune: dict[str, Any], key: str) -> None:
    found, problems = _capacity(made(workers, **tune), [CPU], [], None, "this machine")
    assert found is None
    [problem] = problems
    assert problem.key == key
    assert "ask for less" in problem.message


def test_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "cpu_count", lambda: 6)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    found, problems = capacity_here(made(2))
    assert not problems
    assert found
    assert (found.concurrent, found.neighbours, found.placement.in_process) == (3, 6, False)


# ----------------------------------------------------------------------------------------------------- the plan


def planned(data: Path, **changes: Any) -> Planned:
    values = {"data": str(data), "model": "tests.tiny:conv", "imgsz": 8, "epochs": 9, "batch": 8, "lr": 0.05}
    found, problems = plan_sweep(Config.model_validate(values | {"storage": str(data.parent / "runs")} | changes))
    assert found, problems
    return found


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    return write_colours(tmp_path / "colours")


def test_the_defaults_come_first_and_configurations_once(colours: Path) -> None:
    starts = [{"lr": 0.1}, {"lr": 0.05}, {"batch": 4}, {"lr": 0.1}]
    sweep = planned(
        colours, optimizer="SGD", tune={"space": {"lr": [0.05, 0.1], "batch": [4, 8]}, "start_from": starts}
    )
    assert sweep.starts == [
        ("default", {"lr": 0.05, "batch": 8}),
        ("start_from", {"lr": 0.1, "batch": 8}),
        ("start_from", {"lr": 0.05, "batch": 4}),
    ]
    assert sweep.largest_batch == 8


def test_what_the_config_leaves_open_is_filled_in(colours: Path) -> None:
    sweep = planned(colours, lr=None, optimizer="auto", tune={"space": {"lr": [0.1], "optimizer": ["SGD"]}})
    assert sweep.defaults == {"lr": 0.001, "optimizer": "AdamW"}


def test_trials_have_their_own_number_of_epochs(colours: Path) -> None:
    sweep = planned(colours, epochs="auto", tune={"max_epochs": 4})
    assert sweep.plan(sweep.config).max_epochs == 4
    assert planned(colours, epochs="auto").plan(planned(colours, epochs="auto").config).max_epochs == 300


def test_each_way_to_cache_the_data_is_checked_once(colours: Path) -> None:
    sweep = planned(colours, tune={"space": {"imgsz": [8, 12], "multi_scale": [0.0, 0.5], "lr": [0.1]}})
    assert len(sweep.variants) == 4
    assert {checked.imgsz for checked in sweep.variants.values()} == {8, 12}
    assert variant_of(sweep.config) in sweep.variants
    assert sweep.measures_each


def test_an_earlier_sweep_is_learnt_from(colours: Path, tmp_path: Path) -> None:
    folder = tmp_path / "before"
    folder.mkdir()
    journal = Journal(folder / "journal.jsonl")
    journal.append("sweep", format_version=1)
    for number, (lr, value) in enumerate([(0.2, 0.5), (0.3, 0.9), (0.4, 0.7), (9.0, 1.0)]):
        journal.append("trial", trial=number, params={"lr": lr}, by="random", folder=str(number))
        journal.append("epoch", trial=number, row={"epoch": 1, "top1": value}, decision=None)
    journal.close()
    tune = {"space": {"lr": {"uniform": [0.01, 1.0]}}, "start_from": [str(folder)]}
    sweep = planned(colours, tune=tune)
    assert sweep.starts == [("default", {"lr": 0.05}), ("start_from", {"lr": 0.3})]
    [earlier] = sweep.earlier
    assert [params["lr"] for params, _, _ in earlier.trials] == [0.2, 0.3, 0.4], (
        "what lies outside the space is left out"
    )
    sweep.plan(sweep.config)


def test_an_earlier_sweep_of_other_keys_is_told(colours: Path, tmp_path: Path) -> None:
    folder = tmp_path / "before"
    folder.mkdir()
    journal = Journal(folder / "journal.jsonl")
    journal.append("sweep", format_version=1)
    journal.close()
    values = {"data": str(colours), "model": "tests.tiny:conv", "imgsz": 8, "batch": 8}
    config = Config.model_validate(values | {"tune": {"start_from": [str(folder)]}})
    found, problems = plan_sweep(config)
    assert found is None
    assert "none of its trials has the keys" in problems[0].message
