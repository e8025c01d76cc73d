"""What the loop promises when memory runs out, numbers overflow, batches are cut, or a run is given more."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import tiny
from tests.ranks import run_ranks
from tests.tiny import RankRuntime, Recorder, recipe, run, toy
from trainables import checkpoint
from trainables.collectives import World
from trainables.contracts import Batch
from trainables.local import LocalRuntime
from trainables.loop import Progress, fit
from trainables.norms import SyncedBatchNorm, synchronise
from trainables.order import seed_of
from trainables.precision import set_deterministic
from trainables.recipe import Recipe
from trainables.tasks.classify import Classify

CPU = torch.device("cpu")


def weights(folder: Path, name: str = "last") -> dict[str, Tensor]:
    return checkpoint.load(folder / name).model


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --------------------------------------------------------------------------------------------- micro-batches


@pytest.mark.parametrize("micro", [1, 2, 4, 5, 6, 100])
def test_a_batch_in_parts_trains_as_the_whole(micro: int) -> None:
    _, whole = run(recipe(), toy())
    progress, parts = run(recipe(micro_batch=micro), toy())
    assert progress.micro == 0, "nothing was forced"
    assert [row["train_loss"] for row in parts.rows] == pytest.approx([row["train_loss"] for row in whole.rows], 1e-4)
    assert [row["val_loss"] for row in parts.rows] == pytest.approx([row["val_loss"] for row in whole.rows], 1e-4)
    assert parts.facts[0]["micro"] == min(micro, 6)


class RaisesInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


class Hungry(Classify):
    """A task that has memory for so many images at a time, from one epoch on, on some ranks.

    where: "forward", "backward" or "validation".
    """

    def __init__(self, made: Recipe, holds: int, where: str = "forward", from_call: int = 0, mine: bool = True) -> None:
        super().__init__(made)
        self.holds, self.where, self.from_call, self.mine = holds, where, from_call, mine
        self.calls = 0
        self.sizes: list[int] = []

    def _is_full(self, where: str, batch: Batch) -> bool:
        return self.mine and where == self.where and len(batch) > self.holds and self.calls > self.from_call

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        self.calls += 1
        self.sizes.append(len(batch))
        if self._is_full("forward", batch):
            model(batch.images)  # it comes some way
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        losses = super().loss(model, batch)
        if self._is_full("backward", batch):
            return {"loss": RaisesInBackward.apply(losses["loss"])}
        return losses

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        if self._is_full("validation", batch):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return super().predict(model, batch)


@pytest.mark.parametrize("model", ["conv", "conv_norm_dropout"])
@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("from_call", [0, 6])
def test_out_of_memory_halves_the_micro_batch_and_nothing_else(where: str, from_call: int, model: str) -> None:
    made = recipe(model=f"tests.tiny:{model}")
    task, recorder = Hungry(made, 2, where, from_call), Recorder()
    progress = fit(made, task, toy(), LocalRuntime(on_report=recorder, device=CPU))
    assert (progress.epoch, progress.micro) == (3, 2)
    assert [event["micro"] for event in recorder.events] == [3, 2], "6, then 3, then 2 fit"
    assert "the batch stays 6" in recorder.events[0]["text"]
    if model == "conv":  # no batch norm, whose statistics are the micro-batch's
        _, whole = run(made, toy())
        expected = [row["val_loss"] for row in whole.rows]
        assert [row["val_loss"] for row in recorder.rows] == pytest.approx(expected, rel=1e-4)


def test_the_running_statistics_do_not_count_a_step_twice_that_ran_out_of_memory() -> None:
    made = recipe(model="tests.tiny:conv_norm_dropout", epochs=1)
    recorder, alike = Recorder(), Recorder()
    fit(made, Hungry(made, 3), toy(), LocalRuntime(on_report=recorder, device=CPU))
    fit(made.model_copy(update={"micro_batch": 3}), Classify(made), toy(), LocalRuntime(on_report=alike, device=CPU))
    assert same(recorder.model, alike.model), "as if the parts had been of 3 from the start"


def test_one_image_that_does_not_fit_ends_the_run_and_says_what_to_change() -> None:
    made = recipe()
    with pytest.raises(torch.OutOfMemoryError, match=r"one image of 8 pixels is more than .* lower imgsz"):
        fit(made, Hungry(made, 0), toy(), LocalRuntime(device=CPU))


def test_out_of_memory_in_validation_takes_smaller_parts() -> None:
    made = recipe()
    task, recorder = Hungry(made, 2, "validation"), Recorder()
    fit(made, task, toy(), LocalRuntime(on_report=recorder, device=CPU))
    _, undisturbed = run(made, toy())
    for ours, theirs in zip(recorder.untimed_rows, undisturbed.untimed_rows, strict=True):
        assert ours["val_loss"] == pytest.approx(theirs["val_loss"], rel=1e-6)
        assert ours["top1"] == theirs["top1"]


def test_what_memory_forced_is_kept_over_a_resume(tmp_path: Path) -> None:
    made = recipe()
    recorder = Recorder((2, 1))
    with LocalRuntime(tmp_path, recorder, device=CPU) as runtime:
        recorder.stop = runtime.stop.set
        fit(made, Hungry(made, 2), toy(), runtime)
    task = Hungry(made, 2)
    with LocalRuntime(tmp_path, restore_from=tmp_path / "last", device=CPU) as runtime:
        fit(made, task, toy(), runtime)
    assert max(task.sizes) == 2


def hungry_rank(world: World, where: str, hungry: list[int], from_call: int, settings: dict[str, Any]) -> Any:
    made, recorder = recipe(**settings), Recorder()
    task = Hungry(made, 1, where, from_call, mine=world.rank in hungry)
    progress = fit(made, task, toy(rank=world.rank, world_size=world.size), RankRuntime(world, recorder))
    rows = [[row["train_loss"], row["val_loss"], row["top1"]] for row in recorder.rows]
    return {"rows": rows, "micro": progress.micro, "epoch": progress.epoch, "events": len(recorder.events)}


@pytest.mark.parametrize(
    ("where", "hungry", "from_call", "sync"),
    [
        ("forward", [0, 1, 2], 0, False),
        ("forward", [1], 0, False),
        ("backward", [1], 0, False),
        ("backward", [0, 2], 5, False),
        ("validation", [1], 0, False),
        ("forward", [1], 0, True),
        ("backward", [1], 5, True),
    ],
)
def test_all_ranks_give_way_when_one_runs_out_of_memory(
    tmp_path: Path, where: str, hungry: list[int], from_call: int, sync: bool
) -> None:
    model = "tests.tiny:conv_norm" if sync else "tests.tiny:conv"
    settings = {"model": model, "sync_bn": sync}
    ranks = run_ranks(3, hungry_rank, tmp_path, where, hungry, from_call, settings)
    assert ranks == [ranks[0]] * 3
    assert ranks[0]["epoch"] == 3
    assert ranks[0]["micro"] == (0 if where == "validation" else 1)
    if not sync:
        _, alone = run(recipe(**settings), toy())
        expected = [[row["train_loss"], row["val_loss"], row["top1"]] for row in alone.rows]
        assert ranks[0]["rows"] == [pytest.approx(row, rel=1e-3) for row in expected]


# ----------------------------------------------------------------------------------- synchronised batch norms


def sync_rank(world: World, settings: dict[str, Any], data: dict[str, int]) -> Any:
    made, recorder = recipe(**settings), Recorder()
    fit(made, Classify(made), toy(rank=world.rank, world_size=world.size, **data), RankRuntime(world, recorder))
    return {
        "losses": [[row["train_loss"], row["val_loss"]] for row in recorder.rows],
        "mean": recorder.model["1.running_mean"].tolist(),
        "tracked": int(recorder.model["1.num_batches_tracked"]),
        "sync": recorder.facts[0]["sync_bn"],
    }


@pytest.mark.parametrize("sync", [True, "auto"])
@pytest.mark.parametrize("data", [{"train": 20, "val": 7, "batch": 6}, {"train": 14, "val": 7, "batch": 6}])
def test_synchronised_norms_train_as_one_rank_also_with_uneven_and_empty_shares(
    tmp_path: Path, sync: Any, data: dict[str, int]
) -> None:
    settings = {"model": "tests.tiny:conv_norm", "sync_bn": sync, "batch": 6}
    _, alone = run(recipe(**settings), toy(**data))
    ranks = run_ranks(3, sync_rank, tmp_path, settings, data)
    assert [rank["sync"] for rank in ranks] == [True] * 3
    for rank in ranks:
        for ours, row in zip(rank["losses"], alone.rows, strict=True):
            assert ours == pytest.approx([row["train_loss"], row["val_loss"]], rel=1e-4)
        assert rank["mean"] == pytest.approx(alone.model["1.running_mean"].tolist(), rel=1e-3, abs=1e-6)
        assert rank["tracked"] == int(alone.model["1.num_batches_tracked"])


def test_norms_are_not_synchronised_where_that_is_turned_off(tmp_path: Path) -> None:
    settings = {"model": "tests.tiny:conv_norm", "sync_bn": False, "batch": 6}
    ranks = run_ranks(2, sync_rank, tmp_path, settings, {"train": 20, "val": 7, "batch": 6})
    assert [rank["sync"] for rank in ranks] == [False] * 2


def one_norm(world: World) -> list[list[float]]:
    """Forward and backward of a synchronised norm against torch's own on the whole batch."""
    torch.manual_seed(0)
    whole = torch.randn(7, 4, 3, 3, dtype=torch.float64).float()
    plain, ours = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
    sequence = synchronise(ours, CPU)
    mine = whole[:5] if world.rank == 0 else whole[5:]
    expected_in, ours_in = whole.clone().requires_grad_(), mine.clone().requires_grad_()
    expected = plain(expected_in)
    out = ours(ours_in)
    weight = torch.linspace(-1, 1, whole.numel()).view_as(whole)
    (expected * weight).sum().backward()
    (out * (weight[:5] if world.rank == 0 else weight[5:])).sum().backward()
    sequence.finish()
    assert expected_in.grad is not None
    assert ours_in.grad is not None
    part = slice(0, 5) if world.rank == 0 else slice(5, 7)
    torch.testing.assert_close(out, expected[part], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours_in.grad, expected_in.grad[part], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.running_var, plain.running_var)
    return [ours.running_mean.tolist()] if ours.running_mean is not None else []


def empty_rank(world: World) -> list[float]:
    """One rank has no samples at all in its forward pass, as a mask head without proposals."""
    norm = nn.BatchNorm2d(4)
    sequence = synchronise(norm, CPU)
    torch.manual_seed(0)
    whole = torch.randn(5, 4, 3, 3)
    mine = (whole if world.rank == 0 else whole[:0]).clone().requires_grad_()
    norm(mine).square().sum().backward()
    sequence.finish()
    plain = nn.BatchNorm2d(4)
    plain(whole)
    torch.testing.assert_close(norm.running_var, plain.running_var)
    assert norm.running_mean is not None
    return list(norm.running_mean.tolist())


def test_a_rank_without_samples_does_not_spoil_the_statistics(tmp_path: Path) -> None:
    first, second = run_ranks(2, empty_rank, tmp_path)
    assert first == second
    assert all(math.isfinite(value) for value in first)


def test_norms_that_do_more_than_normalise_are_left_alone() -> None:
    class NormAndActivation(nn.BatchNorm2d):
        pass

    model = nn.Sequential(NormAndActivation(3), nn.BatchNorm2d(3))
    synchronise(model, CPU)
    assert type(model[0]) is NormAndActivation
    assert type(model[1]) is SyncedBatchNorm


def uneven_rank(world: World, folder: str, stop: bool) -> list[float]:
    """66 images in batches of 32: of the last batch each of two ranks has one image, where running statistics count."""
    made, recorder = recipe(model="tests.tiny:conv_norm", sync_bn=False, batch=32, epochs=2), Recorder()
    data = toy(train=66, batch=32, rank=world.rank, world_size=world.size)
    own = Path(folder)
    if stop:
        with LocalRuntime(own if world.rank == 0 else None, recorder, device=CPU) as runtime:
            runtime.rank, runtime.world_size = world.rank, world.size
            recorder.stop_at, recorder.stop = (1, 2), runtime.stop.set
            runtime.interrupted = lambda: recorder.kinds.count("step") >= 2  # type: ignore[method-assign]
            assert fit(made, Classify(made), data, runtime).stopped_because == "interruption"
        world.gather(0)  # rank 0 has written
    runtime = RankRuntime(world, recorder)
    runtime._restore_from = own / "last" if stop else None
    fit(made, Classify(made), data, runtime)
    return [float(value) for tensor in recorder.model.values() for value in tensor.flatten()]


def test_ranks_with_single_images_resume_to_the_bit(tmp_path: Path) -> None:
    results = []
    for stop in (False, True):
        (tmp_path / f"{stop}").mkdir()
        results.append(run_ranks(2, uneven_rank, tmp_path / f"{stop}", str(tmp_path / "run"), stop)[0])
    assert results[0] == results[1]


def test_a_synchronised_norm_is_torchs_norm_of_the_whole_batch(tmp_path: Path) -> None:
    first, second = run_ranks(2, one_norm, tmp_path)
    assert first == second != []


# --------------------------------------------------------------------------------------------------- precision


def test_float16_trains_with_a_scaler_whose_state_is_saved(tmp_path: Path) -> None:
    progress, recorder = run(recipe(amp="fp16", epochs=4), toy(), tmp_path)
    assert recorder.facts[0]["precision"] == "float16"
    assert recorder.rows[-1]["train_loss"] < recorder.rows[0]["train_loss"]
    assert progress.scaler["scale"] > 0
    assert {tensor.dtype for tensor in weights(tmp_path).values()} == {torch.float32}


def test_float16_stopped_and_resumed_equals_not_stopped(tmp_path: Path) -> None:
    settings = recipe(amp="fp16", model="tests.tiny:conv_norm_dropout")
    run(settings, toy(), tmp_path / "whole")
    run(settings, toy(), tmp_path / "parts", stop_at=(2, 2))
    run(settings, toy(), tmp_path / "parts", checkpoint.find(tmp_path / "parts"))
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


class Overflows(Classify):
    """Whose gradient is too large for float16 until the scale has fallen below a limit."""

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        losses = super().loss(model, batch)
        return {"loss": Amplified.apply(losses["loss"])}


class Amplified(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return torch.where(gradient > 2**10, torch.inf, gradient)


def test_a_scale_that_is_too_large_falls_without_an_alarm() -> None:
    made, recorder = recipe(amp="fp16", epochs=5), Recorder()
    progress = fit(made, Overflows(made), toy(), LocalRuntime(on_report=recorder, device=CPU))
    assert progress.scaler["scale"] <= 2**10
    assert recorder.events == []
    assert progress.updates == 5 * 4 - 6, "2**16 falls to 2**10 in six steps"


class BreaksUnderAutocast(Classify):
    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        losses = super().loss(model, batch)
        return {"loss": losses["loss"] * math.inf} if torch.is_autocast_enabled("cpu") else losses


def test_a_step_that_only_mixed_precision_breaks_is_repeated_in_float32() -> None:
    made, recorder, plain = recipe(amp="bf16"), Recorder(), Recorder()
    progress = fit(made, BreaksUnderAutocast(made), toy(), LocalRuntime(on_report=recorder, device=CPU))
    assert (progress.skipped, recorder.events) == ([], [])
    full = recipe(amp=False)
    fit(full, Classify(full), toy(), LocalRuntime(on_report=plain, device=CPU))
    assert [row["train_loss"] for row in recorder.rows] == [row["train_loss"] for row in plain.rows]


class GradientOfNothing(Classify):
    """A finite loss whose gradient is not, in its second step."""

    calls = 0

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        self.calls += 1
        losses = super().loss(model, batch)
        bad = self.calls in (2, 3)  # the step and its repetition
        return {"loss": losses["loss"] + (0 * next(model.parameters())).sum().sqrt()} if bad else losses


def test_a_gradient_that_is_not_finite_skips_the_whole_step() -> None:
    made, recorder = recipe(epochs=1), Recorder()
    data = toy()
    progress = fit(made, GradientOfNothing(made), data, LocalRuntime(on_report=recorder, device=CPU))
    second = [data.id_of(int(sample)) for sample in list(data.train(0))[1].samples]
    assert progress.skipped == [{"epoch": 1, "step": 2, "samples": second}]
    assert "the gradient is not finite" in recorder.events[0]["text"]
    assert all(tensor.isfinite().all() for tensor in recorder.model.values())


def test_clipping_limits_the_norm_of_the_gradient() -> None:
    """With plain SGD the weights move by at most lr x limit in a step."""
    for limit, expected in ((0.0, None), (1e-3, 1e-3), (1e6, None)):
        made = recipe(epochs=1, batch=20, momentum=0, weight_decay=0, clip_grad=limit, lr=1.0, warmup_epochs=0)
        _, recorder = run(made, toy(batch=20))
        torch.manual_seed(seed_of(0))
        before = tiny.conv(3).state_dict()
        moved = math.sqrt(sum(float((recorder.model[k] - before[k]).square().sum()) for k in before))
        if expected:
            assert moved == pytest.approx(expected, rel=1e-3)
        else:
            assert moved > 0.01


def test_deterministic_runs_give_the_same_weights(tmp_path: Path) -> None:
    settings = recipe(deterministic=True, model="tests.tiny:conv_norm_dropout")
    try:
        run(settings, toy(), tmp_path / "one")
        assert torch.are_deterministic_algorithms_enabled()
        run(settings, toy(), tmp_path / "other")
    finally:
        set_deterministic(False)
    assert same(weights(tmp_path / "one"), weights(tmp_path / "other"))


# --------------------------------------------------------------------------------------------------------- EMA


def test_the_moving_average_is_validated_and_saved_beside_the_weights(tmp_path: Path) -> None:
    _, raw = run(recipe(), toy(), tmp_path / "raw")
    _, averaged = run(recipe(ema=0.9), toy(), tmp_path / "ema")
    assert same(weights(tmp_path / "raw"), weights(tmp_path / "ema")), "the training itself is the same"
    assert [r["train_loss"] for r in raw.rows] == [r["train_loss"] for r in averaged.rows]
    assert [r["val_loss"] for r in raw.rows] != [r["val_loss"] for r in averaged.rows]
    assert checkpoint.load(tmp_path / "raw" / "last").ema == {}
    saved = checkpoint.load(tmp_path / "ema" / "last")
    assert saved.ema.keys() == saved.model.keys()
    assert not same(saved.ema, saved.model)


def test_the_moving_average_follows_its_formula() -> None:
    """shadow = d x shadow + (1 - d) x weights, with d = min(decay, (1 + n) / (10 + n))."""
    _, recorder = run(recipe(epochs=1, batch=20, ema=0.15, warmup_epochs=0), toy(batch=20))
    torch.manual_seed(seed_of(0))
    before = tiny.conv(3).state_dict()
    decay = min(0.15, 2 / 11)
    for name, tensor in recorder.ema.items():
        torch.testing.assert_close(tensor, decay * before[name] + (1 - decay) * recorder.model[name])


def test_the_moving_average_stopped_and_resumed_equals_not_stopped(tmp_path: Path) -> None:
    settings = recipe(ema=0.99, model="tests.tiny:conv_norm_dropout")
    _, whole = run(settings, toy(), tmp_path / "whole")
    _, first = run(settings, toy(), tmp_path / "parts", stop_at=(2, 2))
    _, rest = run(settings, toy(), tmp_path / "parts", checkpoint.find(tmp_path / "parts"))
    assert first.untimed_rows + rest.untimed_rows == whole.untimed_rows
    assert same(checkpoint.load(tmp_path / "whole" / "last").ema, checkpoint.load(tmp_path / "parts" / "last").ema)


# ------------------------------------------------------------------------------------------- epochs and patience


def test_validation_every_few_epochs_and_after_the_last() -> None:
    progress, recorder = run(recipe(epochs=7, val_interval=3), toy())
    validated = [row["epoch"] for row in recorder.rows if row["top1"] is not None]
    assert validated == [3, 6, 7]
    assert progress.best_epoch in validated
    assert all(row.keys() >= {"val_loss", "top1", "top5"} for row in recorder.rows), "the columns are always there"


def test_without_validation_the_last_epoch_is_the_best(tmp_path: Path) -> None:
    progress, recorder = run(recipe(epochs=3, val_interval=0, patience=0), toy(), tmp_path)
    assert (progress.best, progress.best_epoch) == (None, 3)
    assert same(weights(tmp_path, "best"), weights(tmp_path, "last"))
    assert "top1" not in recorder.rows[0]


def test_patience_without_validation_is_refused() -> None:
    with pytest.raises(ValueError, match="patience = 50 needs validation: set val_interval to 1 or more, or patience"):
        Recipe.model_validate({"val_interval": 0})


def test_an_improvement_below_min_delta_does_not_count_but_is_still_the_best() -> None:
    made = recipe(epochs=30, metric="val_loss", lr=0.01, patience=4)
    plain, _ = run(made, toy())
    assert plain.stopped_because == "epochs", "the loss falls a little in every epoch"
    progress, recorder = run(made.model_copy(update={"min_delta": 0.5}), toy())
    assert (progress.epoch, progress.improved_epoch, progress.stopped_because) == (5, 1, "patience")
    assert progress.best_epoch == 5
    assert "val_loss has not improved for 4 epochs, since" in recorder.events[-1]["text"]


def test_overfitting_is_told() -> None:
    """The labels are noise: the training loss falls, and the metric does not rise."""
    data = toy(train=20, val=40)
    data.labels[20:] = torch.randint(0, 3, (40,), generator=torch.Generator().manual_seed(1)).numpy()
    made = recipe(epochs=60, metric="val_loss", lr=0.2, patience=6, model="tests.tiny:linear")
    progress, recorder = run(made, data)
    assert progress.stopped_because == "patience"
    assert recorder.events[-1]["text"].endswith("it overfits")


def test_time_ends_a_run_also_in_mid_epoch_and_counts_over_sessions(tmp_path: Path, monkeypatch: Any) -> None:
    clock = [0.0]

    def tick() -> float:
        clock[0] += 1.0  # a second passes with each look
        return clock[0]

    monkeypatch.setattr("trainables.training.time.monotonic", tick)
    made = recipe(epochs=1000, time=60 / 3600)
    progress, _ = run(made, toy(), tmp_path)
    assert progress.stopped_because == "time"
    assert 0 < progress.epoch < 60
    again, recorder = run(made, toy(), tmp_path, tmp_path / "last")
    assert (again.epoch, again.stopped_because, recorder.rows) == (progress.epoch, "time", [])
    more, _ = run(made.model_copy(update={"time": 120 / 3600}), toy(), tmp_path, tmp_path / "last")
    assert more.epoch > progress.epoch


# ------------------------------------------------------------------------------------------------ added epochs


def spans(progress: Progress) -> list[list[Any]]:
    """First epoch, last epoch and rate of each phase."""
    return [phase[:3] for phase in progress.phases]


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_epochs_and_more_epochs_are_one_run_under_a_constant_rate(tmp_path: Path, optimizer: str) -> None:
    """To the bit, with batch norm, dropout and a moving average."""
    made = recipe(
        model="tests.tiny:conv_norm_dropout",
        optimizer=optimizer,
        schedule="constant",
        warmup_epochs=0,
        extend_lr="hold",
        ema=0.99,
        lr=0.01,
    )
    _, whole = run(made.model_copy(update={"epochs": 5}), toy(), tmp_path / "whole")
    _, first = run(made.model_copy(update={"epochs": 2}), toy(), tmp_path / "parts")
    _, rest = run(made.model_copy(update={"epochs": 5}), toy(), tmp_path / "parts", tmp_path / "parts" / "last")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert first.untimed_rows + rest.untimed_rows == whole.untimed_rows


def test_the_rate_of_added_epochs_is_the_one_that_was_asked_for(tmp_path: Path) -> None:
    made = recipe(epochs=2, lr=0.1, lrf=0.1, warmup_epochs=0, schedule="linear")
    for how, expected in (("restart", [0.01, 0.0525, 0.01]), ("hold", [0.01, 0.01, 0.01])):
        run(made, toy(), tmp_path / how)
        longer = made.model_copy(update={"epochs": 4, "extend_lr": how})
        progress, recorder = run(longer, toy(), tmp_path / how, tmp_path / how / "last")
        rates = [made.lr * made.lrf if made.lr else 0, *[row["lr"] for row in recorder.rows]]
        assert spans(progress) == [[0, 2, "restart"], [2, 4, how]]
        if how == "hold":
            assert rates == pytest.approx(expected)
        else:
            assert rates[-1] == pytest.approx(0.01)
            assert rates[1] > 0.04


def test_what_was_interrupted_ends_its_plan_before_the_added_epochs(tmp_path: Path) -> None:
    made = recipe(epochs=4)
    run(made, toy(), tmp_path, stop_at=(2, 2))
    progress, recorder = run(made.model_copy(update={"epochs": 6}), toy(), tmp_path, tmp_path / "last")
    assert spans(progress) == [[0, 4, "restart"], [4, 6, "restart"]]
    assert [row["epoch"] for row in recorder.rows] == [2, 3, 4, 5, 6]


def test_what_was_stopped_early_begins_the_added_epochs_at_once(tmp_path: Path) -> None:
    made = recipe(epochs=50, metric="val_loss", patience=3, min_delta=10.0)
    stopped, _ = run(made, toy(), tmp_path)
    assert (stopped.epoch, stopped.stopped_because) == (4, "patience")
    progress, recorder = run(made.model_copy(update={"epochs": 60}), toy(), tmp_path, tmp_path / "last")
    assert spans(progress) == [[0, 4, "restart"], [4, 60, "restart"]]
    assert len(recorder.rows) == 3, "patience counts anew, from the first added epoch on"


def test_a_rate_that_is_held_after_an_early_stop_is_the_one_it_stopped_with(tmp_path: Path) -> None:
    made = recipe(epochs=50, metric="val_loss", patience=3, min_delta=10.0, extend_lr="hold")
    _, first = run(made, toy(), tmp_path)
    _, more = run(made.model_copy(update={"epochs": 60}), toy(), tmp_path, tmp_path / "last")
    assert first.rows[-1]["lr"] > 0.5 * 0.05, "far from the end of the plan"
    assert {row["lr"] for row in more.rows} == {first.rows[-1]["lr"]}


def test_patience_is_looked_at_where_there_was_a_validation() -> None:
    progress, recorder = run(recipe(epochs=30, metric="val_loss", patience=3, val_interval=5, min_delta=10.0), toy())
    assert (progress.epoch, progress.improved_epoch, progress.stopped_because) == (10, 5, "patience")
    assert recorder.rows[-1]["val_loss"] is not None


def test_epochs_auto_goes_on_while_the_metric_improves(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("recipe", "training"):
        monkeypatch.setattr(f"trainables.{module}.AUTO_EPOCHS", (4, 8, 16))
    improving = recipe(epochs="auto", metric="val_loss", lr=0.01, patience=3)
    progress, recorder = run(improving, toy())
    assert (progress.epoch, progress.stopped_because) == (16, "epochs")
    assert spans(progress) == [[0, 4, "restart"], [4, 8, "restart"], [8, 16, "restart"]]
    assert [(e["decision"], e["epochs"]) for e in recorder.events] == [("extend", 8), ("extend", 16)]
    assert "val_loss was at its best 0 epochs ago" in recorder.events[0]["text"]


def test_epochs_auto_ends_where_the_metric_does_not_improve(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("recipe", "training"):
        monkeypatch.setattr(f"trainables.{module}.AUTO_EPOCHS", (4, 8, 16))
    made = recipe(epochs="auto", metric="val_loss", lr=0.01, patience=0, min_delta=5.0)
    progress, recorder = run(made, toy())
    assert (progress.epoch, progress.stopped_because) == (4, "epochs")
    (event,) = recorder.events
    assert event["decision"] == "end"
    assert event["stale"] == 3
