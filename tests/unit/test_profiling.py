"""`profile: true`: a trace and a table of a few steps, and nothing after them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator import profiling
from orchestrator.config import Config
from orchestrator.profiling import ACTIVE, TABLE, TRACE, WAIT, WARM_UP, profiled
from tests.tiny import recipe, run, toy


def steps_in(trace: Path) -> list[str]:
    """The steps that a trace tells of."""
    events: list[dict[str, Any]] = json.loads(trace.read_text())["traceEvents"]
    return sorted({str(e["name"]) for e in events if str(e.get("name", "")).startswith("ProfilerStep")})


def test_a_few_steps_are_traced(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = profiled(toy(train=60, batch=4), tmp_path / "logs")
    plain, _ = run(recipe(batch=4, epochs=1), toy(train=60, batch=4))
    progress, recorder = run(recipe(batch=4, epochs=1), data)  # type: ignore[arg-type]
    assert recorder.rows[0]["step"] == 15
    assert progress == plain
    first = WAIT + WARM_UP
    assert steps_in(tmp_path / "logs" / TRACE) == [f"ProfilerStep#{first + i}" for i in range(ACTIVE)]
    table = (tmp_path / "logs" / TABLE).read_text()
    assert "aten::convolution" in table
    assert "next batch" in table
    assert {path.name for path in (tmp_path / "logs").iterdir()} == {TRACE, TABLE}
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 6, 8, 9])
def test_fewer_steps_than_it_would_take_are_traced_too(tmp_path: Path, steps: int) -> None:
    data = profiled(toy(train=4 * steps, batch=4), tmp_path)
    taken = [torch.ones(2) + 1 for _ in data.train(0)]
    assert len(taken) == steps
    assert len(steps_in(tmp_path / TRACE)) == min(max(steps - 1, 1), ACTIVE)


def test_only_the_first_epoch_of_a_session_is_traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = profiled(toy(train=20, batch=4), tmp_path)
    assert len(list(data.train(3, first_step=2))) == 3
    (tmp_path / TRACE).unlink()
    monkeypatch.setattr(profiling, "torch", None)  # nothing of it is used any more
    assert len(list(data.train(4))) == 5
    assert not (tmp_path / TRACE).exists()


def test_an_epoch_that_is_left_early_ends_the_profiler(tmp_path: Path) -> None:
    batches = profiled(toy(train=60, batch=4), tmp_path).train(0)
    for _ in range(WAIT + WARM_UP + 1):
        next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert (tmp_path / TRACE).exists()
    assert not torch.autograd._profiler_enabled()  # type: ignore[attr-defined]
    batches = profiled(toy(train=60, batch=4), tmp_path / "early").train(0)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert not torch.autograd._profiler_enabled()  # type: ignore[attr-defined]


def test_it_is_off_unless_asked_for() -> None:
    assert Config(data="digits").profile is False
