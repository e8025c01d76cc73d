"""One, two and three workers are one and the same training, and so is the loop in this process."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from orchestrator.train import train
from tests.colours import TRAIN, VAL, ids
from tests.ray.conftest import MakeConfig
from tests.results import Received, checkpoint, received, rows, untimed_rows

EPOCHS = 2
WORKERS = (1, 2, 3)


@pytest.fixture(scope="module")
def runs(make_config: MakeConfig) -> dict[int, Path]:
    """The folder of the same training by number of workers."""
    return {n: train(make_config(n, epochs=EPOCHS, record_samples=True)).folder for n in WORKERS}


@pytest.fixture(scope="module")
def records(runs: dict[int, Path]) -> dict[int, Received]:
    return {n: received(run) for n, run in runs.items()}


@pytest.mark.parametrize("workers", WORKERS)
def test_every_worker_takes_its_share(records: dict[int, Received], workers: int) -> None:
    assert records[workers].ranks == workers
    shares = records[workers].shares.values()
    assert all(len(sizes) == workers and max(sizes) - min(sizes) <= 1 for sizes in shares)


@pytest.mark.parametrize("workers", WORKERS)
def test_global_batches_do_not_depend_on_the_number_of_workers(records: dict[int, Received], workers: int) -> None:
    batches = records[workers].batches
    assert batches == records[1].batches
    assert records[workers].pixels == records[1].pixels
    assert records[workers].validation_pixels == records[1].validation_pixels
    assert list(batches) == [(epoch, step) for epoch in range(EPOCHS) for step in range(3)]
    assert [len(batch) for batch in batches.values()] == [10, 10, 2] * EPOCHS
    assert batches[0, 0] != batches[1, 0]  # shuffled anew


@pytest.mark.parametrize("workers", WORKERS)
def test_an_epoch_holds_each_sample_once(records: dict[int, Received], workers: int, colours: Path) -> None:
    for epoch in range(EPOCHS):
        seen = [name for (e, _), batch in records[workers].batches.items() if e == epoch for name in batch]
        assert sorted(seen) == ids(colours, "train")
    assert Counter(records[workers].validation) == dict.fromkeys(ids(colours, "val"), EPOCHS)


@pytest.mark.parametrize("workers", WORKERS[1:])
def test_losses_do_not_depend_on_the_number_of_workers(runs: dict[int, Path], workers: int) -> None:
    one, many = rows(runs[1]), rows(runs[workers])
    assert len(one) == len(many) == EPOCHS
    for expected, row in zip(one, many, strict=True):
        assert row.keys() == expected.keys()
        for name in ("train_loss", "val_loss", "mean_class_accuracy", "top1"):
            assert float(row[name]) == pytest.approx(float(expected[name]), rel=1e-5), name
        assert row["lr"] == expected["lr"]
    first, second = float(one[0]["train_loss"]), float(one[1]["train_loss"])
    assert second < first  # it is a training that was compared


@pytest.mark.parametrize("workers", WORKERS)
def test_summary_counts_the_whole_data_set(runs: dict[int, Path], workers: int) -> None:
    summary = json.loads((runs[workers] / "summary.json").read_text())
    assert summary["workers"] == [workers]
    assert (summary["dataset"]["train"], summary["dataset"]["val"]) == (sum(TRAIN), sum(VAL))
    assert summary["batch"]["global"] == 10
    assert summary["batch"]["per_worker"] == -(-10 // workers)


MODELS = {"conv_norm_dropout": ("tests.tiny:conv_norm_dropout", 8), "mobilenet": ("mobilenet_v3_small", 32)}


@pytest.fixture(scope="module", params=MODELS)
def twins(request: pytest.FixtureRequest, make_config: MakeConfig) -> tuple[Path, Path]:
    """A run in this process and the same run in one Ray worker, of models with batch norm and dropout."""
    model, imgsz = MODELS[request.param]
    config = make_config(1, model=model, imgsz=imgsz, epochs=EPOCHS)
    in_worker = train(config).folder
    in_process = train(config, local=True).folder
    return in_process, in_worker


def test_local_runtime_gives_the_rows_of_one_worker(twins: tuple[Path, Path]) -> None:
    in_process, in_worker = twins
    assert len(untimed_rows(in_process)) == EPOCHS
    assert untimed_rows(in_process) == untimed_rows(in_worker)


@pytest.mark.parametrize("name", ["best", "last"])
def test_local_runtime_gives_the_checkpoint_of_one_worker(twins: tuple[Path, Path], name: str) -> None:
    local, worker = (checkpoint(run, name) for run in twins)
    timed = {"seconds": 0, "recent": []}
    assert local.progress | timed == worker.progress | timed
    for expected, tensors in ((local.model, worker.model), (local.optimizer, worker.optimizer)):
        assert expected.keys() == tensors.keys()
        assert all(torch.equal(expected[key], tensors[key]) for key in expected)
    assert local.optimizer
