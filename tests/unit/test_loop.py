from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests import tiny
from tests.ranks import run_ranks
from tests.tiny import RankRuntime, Recorder, recipe, run, toy
from trainables import checkpoint
from trainables.collectives import World
from trainables.contracts import Batch
from trainables.local import LocalRuntime
from trainables.loop import fit
from trainables.memory import MemoryData
from trainables.norms import norms_in_eval
from trainables.optim import OPTIMIZERS
from trainables.order import order, seed_of
from trainables.precision import choose_precision
from trainables.schedules import lr_factor
from trainables.tasks import build_task

CPU = torch.device("cpu")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(folder / "last").model


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# ------------------------------------------------------------------------------------------------ training


@pytest.mark.parametrize("model", ["linear", "conv", "conv_norm_dropout"])
def test_one_batch_is_overfitted(model: str) -> None:
    settings = recipe(model=f"tests.tiny:{model}", epochs=60, lr=0.01, optimizer="AdamW", batch=8)
    _, recorder = run(settings, toy(train=8, val=3, batch=8))
    assert recorder.rows[-1]["train_loss"] < 0.15 * recorder.rows[0]["train_loss"]


def test_the_losses_are_those_of_a_hand_written_loop() -> None:
    settings = recipe(epochs=4, lr=0.1, lrf=0.1, momentum=0.8, weight_decay=0.01, seed=5, label_smoothing=0.1)
    data = toy(train=20, batch=6, seed=5)
    _, recorder = run(settings, data)

    torch.manual_seed(seed_of(5))
    model = tiny.conv(3).to(memory_format=torch.channels_last)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.01},
        {"params": [p for p in model.parameters() if p.ndim == 1]},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.8, nesterov=True)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    losses, epochs = [], []
    for epoch in range(4):
        total = 0.0
        for step, batch in enumerate(data.train(epoch)):
            images = (batch.images / 255 - mean[:, None, None]) / std[:, None, None]
            loss = functional.cross_entropy(model(images), batch.labels, label_smoothing=0.1)
            for group in optimizer.param_groups:
                group["lr"] = 0.1 * lr_factor("cosine", epoch * 4 + step, total=16, warmup=2, lrf=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            total += loss.item() * len(batch)
        epochs.append(total / 20)

    reported = {(row["epoch"], row["step"]): row["loss"] for row in recorder.steps}
    by_hand = {(i // 4 + 1, i % 4 + 1): loss for i, loss in enumerate(losses) if i % 4 < 3}
    assert reported == pytest.approx(by_hand, rel=1e-5)
    assert [row["train_loss"] for row in recorder.rows] == pytest.approx(epochs, rel=1e-5)
    assert [row["lr"] for row in recorder.rows][-1] == 0.1 * 0.1


def test_the_row_of_an_epoch_has_what_results_csv_needs() -> None:
    _, recorder = run(recipe(epochs=2), toy(train=20, batch=6))
    first, second = recorder.rows
    assert (first["epoch"], first["step"], second["epoch"], second["step"]) == (1, 4, 2, 8)
    for key in ("train_loss", "val_loss", "top1", "top5", "mean_class_accuracy", "lr", "images_per_second", "seconds"):
        assert math.isfinite(first[key])
    assert 0 <= first["data_wait_fraction"] <= 1
    assert first["gpu_utilization"] is first["gpu_memory_peak_bytes"] is None
    assert recorder.facts[0] == {
        "device": "CPU",
        "precision": "float32",
        "channels_last": True,
        "compile": False,
        "sync_bn": False,
        "micro": 6,
        "trained": sum(p.numel() for p in tiny.conv(3).parameters()),
        "parameters": sum(p.numel() for p in tiny.conv(3).parameters()),
        "threads": torch.get_num_threads(),
    }
    json.dumps(recorder.rows, allow_nan=False)


def test_only_a_better_epoch_brings_details_and_becomes_the_best_checkpoint(tmp_path: Path) -> None:
    progress, recorder = run(recipe(epochs=8, lr=0.3, model="tests.tiny:linear"), toy(), tmp_path)
    scores = [row["top1"] for row in recorder.rows]
    firsts = [i for i, score in enumerate(scores) if score > max(scores[:i], default=-1)]
    assert [i for i, row in enumerate(recorder.rows) if "details" in row] == firsts
    assert (progress.best, progress.best_epoch) == (max(scores), firsts[-1] + 1)
    assert checkpoint.load(tmp_path / "best").progress["epoch"] == progress.best_epoch
    assert checkpoint.load(tmp_path / "last").progress["epoch"] == 8


@pytest.mark.parametrize(("train", "val", "batch"), [(5, 40, 64), (7, 3, 4), (1, 1, 1)])
def test_validation_may_be_larger_or_smaller_than_training(train: int, val: int, batch: int) -> None:
    progress, recorder = run(recipe(batch=batch), toy(train=train, val=val, batch=batch))
    assert progress.epoch == 3
    assert len({row["train_loss"] for row in recorder.rows}) == 3, "it learns in every epoch"


def test_a_last_batch_of_one_sample_trains_with_batch_norm(tmp_path: Path) -> None:
    settings = recipe(model="tests.tiny:conv_norm_dropout", batch=4, epochs=2)
    progress, _ = run(settings, toy(train=9, batch=4), tmp_path)
    assert progress.epoch == 2
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path).values())
    assert weights(tmp_path)["1.num_batches_tracked"] == 4, "the single sample leaves the running statistics alone"


@pytest.mark.parametrize(("size", "expected"), [(1, [1] * 6), (4, [4, 2]), (6, [6]), (100, [6])])
def test_micro_batches_are_the_batch_in_pieces(size: int, expected: list[int]) -> None:
    batch = next(toy(batch=6).train(0))
    parts = list(batch.split(size))
    assert [len(part) for part in parts] == expected
    assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
    assert torch.equal(torch.cat([part.labels for part in parts]), batch.labels)
    assert [s for part in parts for s in part.samples] == batch.samples.tolist()
    assert {part.global_size for part in parts} == {6}
    empty = Batch(batch.images[:0], batch.labels[:0], batch.samples[:0], 6)
    assert list(empty.split(size)) == list(empty.split(0)) == []


def test_batch_norms_sit_out_single_samples_only() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3).eval())
    with norms_in_eval(model, False):
        assert [norm.training for norm in model] == [True, False]
    with norms_in_eval(model, True):
        assert [norm.training for norm in model] == [False, False]
    assert [norm.training for norm in model] == [True, False], "what was frozen before stays frozen"


@pytest.mark.parametrize(("amp", "expected"), [("auto", "float32"), (False, "float32"), (True, "bfloat16")])
def test_mixed_precision_is_bf16_with_float32_weights(tmp_path: Path, amp: Any, expected: str) -> None:
    assert str(choose_precision(recipe(amp=amp), CPU)) == expected
    _, recorder = run(recipe(amp=amp, epochs=2), toy(), tmp_path)
    _, exact = run(recipe(amp=False, epochs=2), toy())
    assert recorder.facts[0]["precision"] == expected
    assert (recorder.untimed_rows == exact.untimed_rows) == (expected == "float32")
    assert {tensor.dtype for tensor in weights(tmp_path).values()} == {torch.float32}


@pytest.mark.parametrize(
    "key", ["seed", "lr", "weight_decay", "momentum", "label_smoothing", "schedule", "warmup_epochs"]
)
def test_every_setting_of_the_loop_has_an_effect(key: str) -> None:
    other = {
        "seed": 1,
        "lr": 0.02,
        "weight_decay": 0.1,
        "momentum": 0.5,
        "label_smoothing": 0.2,
        "schedule": "constant",
    }
    usual = {"warmup_epochs": 0.0, "lrf": 0.1, "epochs": 10, "model": "tests.tiny:linear"}
    _, base = run(recipe(**usual), toy())
    _, changed = run(recipe(**{**usual, key: other.get(key, 1.0)}), toy())
    assert base.rows[-1]["train_loss"] != changed.rows[-1]["train_loss"]


# ------------------------------------------------------------------------------------- when training ends


def test_patience_counts_from_the_best_epoch() -> None:
    settings = recipe(model="tests.tiny:linear", epochs=40, patience=3, lr=0.01)
    progress, recorder = run(settings, toy(train=12))
    scores = [row["top1"] for row in recorder.rows]
    assert progress.stopped_because == "patience"
    assert progress.epoch == len(scores) == progress.best_epoch + 3 < 40
    assert scores.index(max(scores)) + 1 == progress.best_epoch


def test_without_patience_all_epochs_are_trained() -> None:
    progress, _ = run(recipe(model="tests.tiny:linear", epochs=40, patience=0, lr=0.01), toy(train=12))
    assert (progress.epoch, progress.stopped_because) == (40, "epochs")


def test_of_a_loss_the_least_is_best() -> None:
    data = toy(train=20)
    data.labels[20:] = (data.labels[20:] + 1) % 3  # the better it learns, the worse it validates
    progress, recorder = run(recipe(metric="val_loss", epochs=12, patience=3), data)
    losses = [row["val_loss"] for row in recorder.rows]
    assert losses == sorted(losses)
    assert (progress.best, progress.best_epoch) == (losses[0], 1)
    assert (progress.epoch, progress.stopped_because) == (4, "patience")


def test_a_metric_that_the_task_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown metric 'top2': did you mean top5 or top1"):
        build_task(recipe(metric="top2"))


def poisoned(**options: Any) -> tuple[MemoryData, list[str]]:
    """Data with a white image in the third batch of the first epoch, and the ids of that batch; it is the second."""
    data = toy(**options)
    third = order(data.seed, 0, data.keys)[12:18]
    data.images[third[1]] = 255
    return data, [str(sample) for sample in third]


def test_a_step_that_is_not_finite_is_skipped_and_recorded(tmp_path: Path) -> None:
    data, third = poisoned()
    progress, recorder = run(recipe(model="tests.tiny:AllergicToWhite", epochs=1), data, tmp_path)
    assert progress.skipped == [{"epoch": 1, "step": 3, "samples": third}]
    assert recorder.rows[0]["skipped_steps"] == 1
    assert math.isfinite(recorder.rows[0]["train_loss"])
    (event,) = recorder.events
    assert event["event"] == "not finite"
    assert "the loss is nan at epoch 1, step 3, also in float32: skipped" in event["text"]
    assert checkpoint.load(tmp_path / "last").progress["skipped"] == progress.skipped
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path).values())


def test_the_fourth_step_that_is_not_finite_ends_the_run_with_its_samples(tmp_path: Path) -> None:
    data, _ = poisoned()
    with pytest.raises(FloatingPointError) as caught:
        run(recipe(model="tests.tiny:AllergicToWhite", epochs=9), data, tmp_path)
    fourth = next(ids for ids in batches_of(data, 3) if any((data.images[int(i)] == 255).all() for i in ids))
    assert "the loss is nan at epoch 4, step" in str(caught.value)
    assert "3 steps were skipped already" in str(caught.value)
    assert str(caught.value).endswith(f"check these samples: {', '.join(fourth)}")


def batches_of(data: MemoryData, epoch: int) -> list[list[str]]:
    return [[data.id_of(int(sample)) for sample in batch.samples] for batch in data.train(epoch)]


def test_an_interruption_in_mid_epoch_is_saved_and_told(tmp_path: Path) -> None:
    progress, recorder = run(recipe(), toy(train=20, batch=6), tmp_path, stop_at=(2, 1))
    assert (progress.stopped_because, progress.epoch, progress.samples) == ("interruption", 1, 12)
    saved = checkpoint.load(tmp_path / "last").progress
    assert (saved["epoch"], saved["samples"], saved["stopped_because"]) == (1, 12, "interruption")
    assert recorder.kinds[-1] == "facts", "the report of the interruption is no row of results.csv"
    assert len(recorder.rows) == 1


def test_an_interruption_in_the_last_step_lets_the_epoch_end(tmp_path: Path) -> None:
    progress, recorder = run(recipe(), toy(train=20, batch=6), tmp_path, stop_at=(2, 3))
    assert (progress.stopped_because, progress.epoch, progress.samples) == ("interruption", 2, 0)
    assert len(recorder.rows) == 2


# ---------------------------------------------------------------------------------------------- continuing


@pytest.mark.parametrize("stop_at", [(1, 1), (2, 2), (2, 3)], ids=["first epoch", "mid-epoch", "end of epoch"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_stopped_and_resumed_equals_not_stopped(tmp_path: Path, optimizer: str, stop_at: tuple[int, int]) -> None:
    """To the bit, with batch norm and dropout: weights, rows, and what decides about the best."""
    settings = recipe(model="tests.tiny:conv_norm_dropout", optimizer=optimizer, lr=0.01)
    whole, whole_rows = run(settings, toy(), tmp_path / "whole")
    stopped, first_rows = run(settings, toy(), tmp_path / "parts", stop_at=stop_at)
    assert stopped.stopped_because == "interruption"
    resumed, rest_rows = run(settings, toy(), tmp_path / "parts", checkpoint.find(tmp_path / "parts"))
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert first_rows.untimed_rows + rest_rows.untimed_rows == whole_rows.untimed_rows
    assert resumed == whole


def test_a_run_stopped_at_every_step_equals_one_that_was_not(tmp_path: Path) -> None:
    settings, data = recipe(epochs=2), toy(train=20, batch=6)
    run(settings, data, tmp_path / "whole")
    stops = 0
    for stops in range(10):  # noqa: B007
        with LocalRuntime(tmp_path / "parts", Recorder(), checkpoint.find(tmp_path / "parts"), CPU) as runtime:
            asked = iter([False, True])  # once at the start, then in the first step
            runtime.interrupted = lambda asked=asked: next(asked, True)  # type: ignore[method-assign,misc]
            if fit(settings, build_task(settings), data, runtime).stopped_because == "epochs":
                break
    assert stops > 4
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


@pytest.mark.parametrize(
    ("settings", "because"), [({"epochs": 2}, "epochs"), ({"patience": 1, "lr": 1e-9}, "patience")]
)
def test_resuming_what_is_done_trains_no_further(tmp_path: Path, settings: dict[str, Any], because: str) -> None:
    done, _ = run(recipe(**settings), toy(), tmp_path)
    before = weights(tmp_path)
    again, recorder = run(recipe(**settings), toy(), tmp_path, tmp_path / "last")
    assert again == done
    assert again.stopped_because == because
    assert recorder.rows == []
    assert same(weights(tmp_path), before)


def test_a_finished_run_goes_on_when_it_gets_more_epochs(tmp_path: Path) -> None:
    run(recipe(epochs=2), toy(), tmp_path)
    progress, recorder = run(recipe(epochs=5), toy(), tmp_path, tmp_path / "last")
    assert [row["epoch"] for row in recorder.rows] == [3, 4, 5]
    assert progress.stopped_because == "epochs"


# ------------------------------------------------------------------------------------------- several ranks


def train_rank(world: World, settings: dict[str, Any], data: dict[str, int], stop: list[int] | None) -> dict[str, Any]:
    """Train one rank; `stop` (rank, epoch, step) interrupts that one alone."""
    recorder = Recorder((stop[1], stop[2]) if stop and stop[0] == world.rank else None)
    runtime = RankRuntime(world, recorder)
    recorder.stop = runtime.stop.set
    made = recipe(**settings)
    ours = toy(**data, rank=world.rank, world_size=world.size)
    progress = fit(made, build_task(made), ours, runtime)
    return {
        "rows": recorder.untimed_rows,
        "kinds": recorder.kinds,
        "end": [progress.epoch, progress.samples, progress.stopped_because],
        "model": {name: tensor.flatten().tolist() for name, tensor in recorder.model.items()},
    }


def train_ranks(size: int, folder: Path, data: dict[str, int], stop: list[int] | None = None, **settings: Any) -> Any:
    folder.mkdir()
    return run_ranks(size, train_rank, folder, {"batch": data["batch"], **settings}, data, stop)


@pytest.mark.parametrize(
    "data",
    [
        {"train": 20, "val": 7, "batch": 6},  # shares of 6 and of a last batch of 2: uneven, and empty for a third rank
        {"train": 13, "val": 2, "batch": 4},  # a last batch of 1, and fewer samples to validate than ranks
    ],
)
@pytest.mark.parametrize("size", [2, 3])
def test_several_ranks_train_as_one(tmp_path: Path, size: int, data: dict[str, int]) -> None:
    _, alone = run(recipe(batch=data["batch"]), toy(**data))
    ranks = train_ranks(size, tmp_path / "ranks", data)
    for rank in ranks:
        assert rank["kinds"] == alone.kinds, "report is called at the same points"
        assert rank["rows"] == ranks[0]["rows"]
        for row, expected in zip(rank["rows"], alone.untimed_rows, strict=True):
            assert row.get("details") == expected.get("details"), "each sample is validated once"
            numbers = {k: v for k, v in expected.items() if isinstance(v, float)}
            assert {k: row[k] for k in numbers} == pytest.approx(numbers, abs=1e-5)
        for name, values in rank["model"].items():
            assert values == ranks[0]["model"][name]
            assert values == pytest.approx(alone.model[name].flatten().tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("stop", "end"),
    [([2, 2, 1], [1, 12, "interruption"]), ([1, 2, 3], [2, 0, "interruption"])],
    ids=["mid-epoch", "end of epoch"],
)
def test_ranks_stop_together_when_one_is_interrupted(tmp_path: Path, stop: list[int], end: list[Any]) -> None:
    data = {"train": 20, "val": 7, "batch": 6}
    ranks = train_ranks(3, tmp_path / "ranks", data, stop)
    assert [rank["end"] for rank in ranks] == [end] * 3
    assert [rank["kinds"] for rank in ranks] == [ranks[0]["kinds"]] * 3


def test_ranks_with_batch_norm_hold_the_same_model(tmp_path: Path) -> None:
    data = {"train": 13, "val": 7, "batch": 4}
    ranks = train_ranks(3, tmp_path / "ranks", data, model="tests.tiny:conv_norm_dropout")
    assert ranks[1] == ranks[2] == ranks[0]


def poison_rank(world: World) -> list[Any]:
    settings = recipe(model="tests.tiny:AllergicToWhite", epochs=2)
    data, _ = poisoned(rank=world.rank, world_size=world.size)
    progress = fit(settings, build_task(settings), data, RankRuntime(world, Recorder()))
    return progress.skipped


def test_all_ranks_skip_the_step_of_the_one_whose_loss_is_not_finite(tmp_path: Path) -> None:
    skipped = run_ranks(3, poison_rank, tmp_path)
    _, third = poisoned()
    assert skipped[0][0] == {"epoch": 1, "step": 3, "samples": third[:2]}, "those of the rank that has the image"
    assert skipped == [skipped[0]] * 3
