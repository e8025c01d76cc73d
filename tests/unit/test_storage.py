from __future__ import annotations

import math
from pathlib import Path

import pytest

from orchestrator.storage import RunFolder, check_storage
from trainables.checkpoint import save
from trainables.contracts import State


def test_a_taken_name_gets_the_next_number(tmp_path: Path) -> None:
    names = [RunFolder.create(tmp_path / "runs", "digits", "mine").name for _ in range(3)]
    assert names == ["mine", "mine-2", "mine-3"]
    assert RunFolder.create(tmp_path / "runs", "fruit", "mine").name == "mine"


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    """Also what is not finite: a run must not be lost to its results."""
    folder = RunFolder(tmp_path)
    rows = [
        {"epoch": 1, "lr": 1e-05, "val_loss": math.inf, "top1": 0.5, "gpu_utilization": None},
        {"epoch": 2, "lr": 0.0, "val_loss": -math.inf, "top1": -0.25, "gpu_utilization": None},
    ]
    for row in rows:
        folder.append_result(row)
    assert folder.read_results() == rows
    folder.append_result({**rows[0], "val_loss": math.nan})
    assert math.isnan(folder.read_results()[-1]["val_loss"])


def test_the_first_row_decides_the_columns(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.append_result({"epoch": 1, "top1": 0.5})
    folder.append_result({"epoch": 2, "another": 1.0})
    assert folder.read_results() == [{"epoch": 1, "top1": 0.5}, {"epoch": 2, "top1": None}]


def test_checking_a_storage_leaves_nothing_behind(tmp_path: Path) -> None:
    assert check_storage(str(tmp_path / "a" / "b")) == tmp_path / "a" / "b"
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is a file"):
        check_storage(str(tmp_path / "file" / "runs"))


def test_only_taking_a_run_up_drops_rows_beyond_its_checkpoint(tmp_path: Path) -> None:
    """A resume that is refused after reading the run has lost nothing."""
    folder = RunFolder(tmp_path)
    rows = [{"epoch": 1, "top1": 0.5}, {"epoch": 2, "top1": 0.6}]
    for row in rows:
        folder.append_result(row)
    summary = {"status": "interrupted", "mlflow": {"run_id": None}, "dataset": {"fingerprint": "f"}}
    folder.write_json("summary.json", summary)
    save(folder.checkpoints / "last", State({}, {}, {"epoch": 1}))
    saved = RunFolder.open(tmp_path)
    assert saved.rows == rows[:1]
    assert folder.read_results() == rows
    assert saved.take_up().read_results() == rows[:1]
