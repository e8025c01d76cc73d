from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.ranks import run_ranks
from tests.tiny import RankRuntime, Recorder, recipe
from trainables.batching import Decision, decide
from trainables.collectives import World
from trainables.contracts import Batch, DataInfo
from trainables.headroom import Peak, memory_limit, resident
from trainables.local import LocalRuntime
from trainables.precision import set_deterministic
from trainables.recipe import Recipe
from trainables.tasks.classify import Classify
from trainables.trials import Bench, sample_batch

CPU = torch.device("cpu")
INFO = DataInfo("toy", "", ("red", "green", "blue"), 800, 10, 0, 8)
MEGABYTE = 10**6


class Costly(Classify):
    """A task whose steps take a memory and a time that are made up: so much per image, and as `seconds` says.

    The memory really grows, or (`holds`) the device says that it is full.
    """

    def __init__(self, made: Recipe, each: int = 0, holds: int = 10**6) -> None:
        super().__init__(made)
        self.each, self.holds = each, holds
        self.sizes: list[int] = []
        self.kept: list[Tensor] = []

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        self.sizes.append(len(batch))
        if len(batch) > self.holds:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.kept = [torch.ones(self.each * len(batch) // 4)]
        return super().loss(model, batch)


def decided(task: Costly, made: Recipe, info: DataInfo = INFO) -> Decision:
    return decide(made, task, info, LocalRuntime(device=CPU))


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps whose time is made up: the more images the better, up to 16, then worse."""

    def steps(bench: Any, trial: Any, count: int) -> list[float]:
        batch = sample_batch(bench.info, trial.size, "classify")
        bench._step(bench.model, batch, trial.precision)
        speed: float = {1: 10, 2: 18, 4: 30, 8: 50, 16: 80, 32: 70, 64: 60, 128: 50}[trial.size]
        if trial.precision.dtype == torch.bfloat16:
            speed *= SPEED["bf16"]
        if trial.precision.memory_format == torch.contiguous_format:
            speed *= SPEED["NCHW"]
        return [trial.size / speed] * count

    monkeypatch.setattr(Bench, "_steps", steps)


SPEED = {"bf16": 2.0, "NCHW": 0.5}


@pytest.mark.usefixtures("steady")
def test_the_batch_is_the_one_with_the_best_throughput() -> None:
    decision = decided(Costly(recipe(batch=-1)), recipe(batch=-1))
    assert decision.recipe.batch == decision.decided["batch"] == 16
    rows = [row for row in decision.table if "batch" in row]
    assert [row["images"] for row in rows] == [1, 2, 4, 8, 16, 32, 64], "two slower sizes end the search"
    assert [row["images_per_second"] for row in rows] == pytest.approx([10, 18, 30, 50, 80, 70, 60])
    assert all(row["fits"] and row["bytes"] >= 0 for row in rows)


@pytest.mark.usefixtures("steady")
def test_a_batch_that_does_not_fit_is_not_taken() -> None:
    task = Costly(recipe(batch=-1), holds=7)
    decision = decided(task, recipe(batch=-1))
    assert decision.recipe.batch == 4
    assert [row["seconds"] for row in decision.table if row["images"] == 8] == [None]
    assert max(task.sizes) == 8


@pytest.mark.usefixtures("steady")
def test_a_memory_budget_limits_the_batch_on_a_cpu() -> None:
    task = Costly(recipe(batch=-1), each=20 * MEGABYTE)
    decision = decided(task, recipe(batch=-1, memory="210MB"))
    assert decision.recipe.batch in (4, 8), "8 images are 160 MB, and the process grows a little by itself"
    largest = decision.table[-1]
    assert not largest["fits"]
    assert largest["bytes"] > 210 * MEGABYTE
    with pytest.raises(ValueError, match=r"a training step on one image takes .* lower imgsz, .* or set memory"):
        decided(Costly(recipe(batch=-1), each=50 * MEGABYTE), recipe(batch=-1, memory="30MB"))


@pytest.mark.usefixtures("steady")
def test_an_epoch_keeps_eight_steps() -> None:
    small = DataInfo("toy", "", ("red", "green", "blue"), 40, 10, 0, 8)
    assert decided(Costly(recipe(batch=-1)), recipe(batch=-1), small).recipe.batch == 4


def test_a_fixed_batch_is_cut_where_a_cpu_has_too_little_memory() -> None:
    made = recipe(batch=64, memory="200MB")
    decision = decided(Costly(made, each=20 * MEGABYTE), made)
    micro = decision.decided["micro_batch"]
    assert micro is not None
    assert 4 <= micro <= 12
    assert decision.recipe.batch == 64
    assert "micro_batch" not in decided(Costly(recipe(batch=64)), recipe(batch=64)).decided


@pytest.mark.usefixtures("steady")
@pytest.mark.parametrize(
    ("settings", "bf16", "nchw", "expected"),
    [
        ({"amp": True}, 2.0, 0.5, ("bf16", True)),
        ({"amp": True}, 0.5, 0.5, (False, True)),
        ({"amp": True}, 2.0, 2.0, ("bf16", False)),
        ({"amp": True, "channels_last": False}, 0.5, 2.0, (False, False)),
        ({"amp": "auto"}, 2.0, 2.0, (False, True)),  # a run of seconds: nothing is measured
        ({"amp": "auto", "epochs": 300}, 2.0, 2.0, ("bf16", False)),
        ({"amp": False, "epochs": 300}, 2.0, 2.0, (False, False)),
        ({"amp": "bf16"}, 0.5, 0.5, ("bf16", True)),
    ],
)
def test_on_a_cpu_precision_and_memory_format_are_measured(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], bf16: float, nchw: float, expected: tuple[Any, bool]
) -> None:
    monkeypatch.setitem(SPEED, "bf16", bf16)
    monkeypatch.setitem(SPEED, "NCHW", nchw)
    made = recipe(batch=8, **settings)
    decision = decided(Costly(made), made)
    assert (decision.recipe.amp, decision.recipe.channels_last) == expected


def test_what_is_decided_is_not_measured_again() -> None:
    made = recipe(batch=-1, compile=False)
    first = decided(Costly(made), made)
    task = Costly(made)
    again = decide(first.recipe, task, INFO, LocalRuntime(device=CPU, restore_from=Path("last")))
    assert (again.recipe, again.decided, again.table) == (first.recipe, {}, [])
    assert task.sizes == [], "not one step is taken"


def test_an_optimizer_that_was_chosen_stays_when_the_run_gets_longer() -> None:
    made = recipe(optimizer="auto", lr=None, epochs=10, batch=8)
    first = decided(Costly(made), made).recipe
    assert (first.optimizer, first.lr) == ("AdamW", 1e-3)
    longer = first.model_copy(update={"epochs": 1000})
    assert (decided(Costly(made), longer).recipe.optimizer, longer.lr) == ("AdamW", 1e-3)
    assert decided(Costly(made), made.model_copy(update={"epochs": 1000})).recipe.optimizer == "SGD"


def test_a_run_that_is_to_repeat_measures_no_precision() -> None:
    made = recipe(deterministic=True, amp=True, batch=8)
    try:
        decision = decided(Costly(made), made)
    finally:
        set_deterministic(False)
    assert (decision.recipe.amp, decision.recipe.channels_last, decision.table) == ("bf16", True, [])


def test_a_model_that_cannot_be_compiled_is_not_where_that_is_left_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: nn.Module) -> Any:
        def call(*args: Any) -> Any:
            raise RuntimeError("the compiler is missing")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    made = recipe(compile="auto", amp=False)
    decision = decided(Costly(made), made)
    assert decision.recipe.compile is False
    assert decision.table[-1]["error"] == ["the compiler is missing"]


def decide_rank(world: World, holds: list[int]) -> dict[str, Any]:
    made = recipe(batch=-1)
    task = Costly(made, holds=holds[world.rank])
    decision = decide(made, task, INFO, RankRuntime(world, Recorder()))
    return {"batch": decision.recipe.batch, "largest": max(task.sizes), "rows": len(decision.table)}


def test_the_ranks_agree_on_what_fits_all_of_them(tmp_path: Path) -> None:
    ranks = run_ranks(3, decide_rank, tmp_path, [100, 4, 100])
    assert len({rank["batch"] for rank in ranks}) == 1
    assert ranks[0]["batch"] in (3, 6, 12)
    assert max(rank["largest"] for rank in ranks) <= 8, "nobody goes on where one has given up"


def test_a_step_that_needs_no_new_memory_takes_none_and_is_planned_with() -> None:
    """A process whose freed memory is large enough does not grow: that is a figure, and not a missing one."""
    made = recipe(batch=64)
    bench = Bench(made, Costly(made), INFO, World(0, 1, CPU))
    bench.base = resident() * 2
    first = bench.first()
    assert [(row["bytes"], row["fits"]) for row in first] == [(0, True), (0, True)]
    assert decided(Costly(made), made).recipe.micro_batch is None


# ------------------------------------------------------------------------------------------------ made-up data


@pytest.mark.parametrize("task", ["classify", "detect", "segment"])
def test_made_up_batches_are_the_largest_that_the_data_give(task: str) -> None:
    info = DataInfo("x", "", ("a", "b"), 10, 2, 0, imgsz=64, largest=96, objects=7, masks=True)
    batch = sample_batch(info, 3, task)
    assert batch.images.shape == (3, 3, 96, 96)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    if task == "classify":
        assert batch.targets is None
        assert set(batch.labels.tolist()) <= {0, 1}
        return
    assert batch.targets is not None
    for targets in batch.targets:
        assert targets.boxes.shape == (7, 4)
        assert (targets.boxes[:, 2:] > targets.boxes[:, :2]).all()
        assert targets.boxes.min() >= 0
        assert targets.boxes.max() <= 96
        assert set(targets.labels.tolist()) <= {0, 1}
        if task == "segment":
            assert targets.masks is not None
            assert targets.masks.shape == (7, 96, 96)
            assert targets.masks.flatten(1).any(1).all()
        else:
            assert targets.masks is None


# ------------------------------------------------------------------------------------------------------ memory


def test_a_peak_is_what_the_process_grows_by() -> None:
    with Peak(CPU, resident()) as peak:
        block = torch.ones(50 * MEGABYTE)  # 200 MB
        del block
    assert 190 * MEGABYTE < peak.bytes < 400 * MEGABYTE


def test_the_limit_is_the_setting_or_a_part_of_what_is_free() -> None:
    assert memory_limit(recipe(memory="2GB"), CPU, 4) == 2 * 10**9
    assert memory_limit(recipe(memory=1000), CPU, 1) == 1000
    alone, four = memory_limit(recipe(), CPU, 1), memory_limit(recipe(), CPU, 4)
    assert alone > 10**8
    assert four == pytest.approx(alone / 4, rel=0.2)
