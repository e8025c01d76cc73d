"""The training engine on a CUDA GPU: float16's scaler, real memory errors, resuming, detection."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.tiny import CLASSES, Recorder, toy
from trainables import checkpoint, evaluate
from trainables.batching import decide
from trainables.contracts import Data, DataInfo, Targets
from trainables.local import LocalRuntime
from trainables.loop import Progress, fit
from trainables.memory import MemoryData
from trainables.recipe import Recipe
from trainables.tasks import build_task


def recipe(**settings: Any) -> Recipe:
    defaults: dict[str, Any] = {"model": "tests.tiny:conv", "epochs": 3, "batch": 6, "lr": 0.05, "optimizer": "SGD"}
    return Recipe.model_validate({**defaults, "patience": 0, **settings})


def run(
    settings: Recipe,
    data: Data,
    device: torch.device,
    folder: Path | None = None,
    restore: Path | None = None,
    stop_at: tuple[int, int] | None = None,
) -> tuple[Progress, Recorder]:
    recorder = Recorder(stop_at)
    with LocalRuntime(folder, recorder, restore, device) as runtime:
        recorder.stop = runtime.stop.set
        return fit(settings, build_task(settings), data, runtime), recorder


def noise(images: int, size: int, batch: int, val: int = 2) -> MemoryData:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (images + val, size, size, 3), np.uint8)
    return MemoryData(pixels, random.integers(0, 3, images + val), CLASSES, images, batch)


# ------------------------------------------------------------------------------------------------ precision


@pytest.mark.parametrize(("amp", "name"), [("fp16", "float16"), ("bf16", "bfloat16"), (False, "float32")])
def test_every_precision_learns_what_float32_learns(gpu: torch.device, amp: Any, name: str) -> None:
    _, recorder = run(recipe(amp=amp, epochs=10), toy(train=60), gpu)
    _, expected = run(recipe(amp=False, epochs=10), toy(train=60), torch.device("cpu"))
    assert recorder.facts[0]["precision"] == name
    losses = [row["train_loss"] for row in recorder.rows]
    assert losses[-1] < losses[0]
    assert losses == pytest.approx([row["train_loss"] for row in expected.rows], abs=0.1)
    assert {tensor.dtype for tensor in recorder.model.values()} == {torch.float32}, "the weights stay float32"


def test_amp_true_is_bfloat16_where_the_gpu_has_it(gpu: torch.device) -> None:
    _, recorder = run(recipe(amp=True, epochs=1), toy(), gpu)
    assert recorder.facts[0]["precision"] == ("bfloat16" if torch.cuda.is_bf16_supported() else "float16")


def test_float16_that_overflows_lowers_its_scale_and_goes_on(gpu: torch.device, tmp_path: Path) -> None:
    settings = recipe(model="tests.gpu.models:Loud", amp="fp16", epochs=6, lr=1e-6, warmup_epochs=0.0)
    progress, recorder = run(settings, toy(train=60), gpu, tmp_path)
    saved = checkpoint.load(tmp_path / "last")
    assert 0 < saved.progress["scaler"]["scale"] < 65536.0
    assert progress.updates < 6 * 10, "the steps that overflowed were left out"
    assert progress.updates > 40
    assert not progress.skipped
    assert all(np.isfinite(row["train_loss"]) for row in recorder.rows)


# --------------------------------------------------------------------------------------------------- memory


def test_a_batch_that_does_not_fit_is_taken_in_parts(gpu: torch.device, small_gpu: int) -> None:
    images, size = 64, 128
    per_image = 64 * size * size * 4  # bytes of one layer's output; a step keeps several
    assert images * per_image * 8 > small_gpu
    settings = recipe(model="tests.gpu.models:wide", epochs=2, batch=images, amp=False, lr=1e-3)
    progress, recorder = run(settings, noise(images, size, images), gpu)
    assert 1 <= progress.micro < images
    told = [event for event in recorder.facts if event.get("event") == "memory"]
    assert told
    assert told[-1]["micro"] == progress.micro
    small, expected = run(recipe(**settings.model_dump() | {"micro_batch": 4}), noise(images, size, images), gpu)
    assert small.micro == 0
    losses = [row["train_loss"] for row in recorder.rows]
    assert losses == pytest.approx([row["train_loss"] for row in expected.rows], rel=5e-3)


def test_one_image_that_does_not_fit_ends_the_run(gpu: torch.device, small_gpu: int) -> None:
    settings = recipe(model="tests.gpu.models:wide", epochs=1, batch=2, amp=False)
    with pytest.raises(torch.OutOfMemoryError, match="lower imgsz"):
        run(settings, noise(2, 2048, 2), gpu)


def test_memory_that_runs_out_in_validation_is_no_end(
    gpu: torch.device, small_gpu: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    released: list[int] = []

    def release() -> None:
        released.append(1)
        torch.cuda.empty_cache()

    monkeypatch.setattr(evaluate, "release_memory", release)
    settings = recipe(model="tests.gpu.models:wide", epochs=1, batch=128, micro_batch=4, amp=False, lr=1e-3)
    data = noise(128, 128, 128, val=128)
    _, recorder = run(settings, data, gpu)
    assert np.isfinite(recorder.rows[0]["val_loss"])
    assert released, "it really ran out"


def test_the_largest_batch_that_fits_is_found(gpu: torch.device, small_gpu: int) -> None:
    settings = recipe(model="tests.gpu.models:wide", batch=-1, amp=False, memory=small_gpu // 2)
    info = DataInfo("made", "", CLASSES, 4096, 1, 0, 128, 128)
    with LocalRuntime(device=gpu) as runtime:
        decision = decide(settings, build_task(settings), info, runtime)
    chosen = decision.recipe.batch
    assert 1 <= chosen < 512
    fitting = [row["batch"] for row in decision.table if row.get("fits") and "batch" in row]
    assert chosen in fitting
    assert all(row["bytes"] <= small_gpu // 2 for row in decision.table if row.get("fits") and row.get("bytes"))
    progress, _ = run(decision.recipe.model_copy(update={"epochs": 1}), noise(2 * chosen, 128, chosen), gpu)
    assert progress.micro == 0, "it really fits"


# ----------------------------------------------------------------------------------------- resume and repeat


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("amp", [False, "fp16"])
def test_a_resumed_run_is_the_run_that_was_not_stopped(gpu: torch.device, tmp_path: Path, amp: Any) -> None:
    settings = recipe(model="tests.gpu.models:norm_dropout", amp=amp, deterministic=True, epochs=4, ema=0.9)
    run(settings, toy(train=60), gpu, tmp_path / "whole")
    run(settings, toy(train=60), gpu, tmp_path / "parts", stop_at=(2, 5))
    last = checkpoint.find(tmp_path / "parts")
    assert last is not None
    assert checkpoint.load(last).progress["epoch"] < 4
    run(settings, toy(train=60), gpu, tmp_path / "parts", restore=last)
    one, other = (checkpoint.load(tmp_path / name / "last") for name in ("whole", "parts"))
    assert one.progress["updates"] == other.progress["updates"]
    for name, tensor in one.model.items():
        torch.testing.assert_close(other.model[name], tensor, rtol=0, atol=0, msg=name)
    for name, tensor in one.ema.items():
        torch.testing.assert_close(other.ema[name], tensor, rtol=0, atol=0, msg=name)


@pytest.mark.usefixtures("deterministic")
def test_deterministic_runs_are_equal(gpu: torch.device) -> None:
    settings = recipe(model="resnet18", amp=True, deterministic=True, epochs=1, batch=8)
    models = [run(settings, noise(32, 64, 8), gpu)[1].model for _ in range(2)]
    for name, tensor in models[0].items():
        assert torch.equal(models[1][name], tensor), name


# ------------------------------------------------------------------------------------------------- detection


def boxes(images: int, size: int, masks: bool) -> list[Targets]:
    random = np.random.default_rng(0)
    found = []
    for i in range(images):
        count = i % 4  # also images without objects
        corner = random.uniform(0, size / 2, (count, 2))
        box = torch.from_numpy(np.concatenate([corner, corner + size / 3], 1).astype(np.float32)).reshape(-1, 4)
        drawn = torch.zeros(count, size, size, dtype=torch.uint8)
        for mask, (x0, y0, x1, y1) in zip(drawn, box.long().tolist(), strict=True):
            mask[y0:y1, x0:x1] = 1
        labels = torch.from_numpy(random.integers(0, 3, count))
        found.append(Targets(box, labels, torch.zeros(count, dtype=torch.bool), drawn if masks else None))
    return found


@pytest.mark.parametrize("amp", ["bf16", "fp16", False])
@pytest.mark.parametrize(
    ("task", "model"),
    [
        ("detect", "ssdlite320_mobilenet_v3_large"),
        ("detect", "fasterrcnn_mobilenet_v3_large_320_fpn"),
        ("segment", "maskrcnn_mobilenet_v3_large_fpn"),
    ],
)
def test_detectors_train_and_are_evaluated(gpu: torch.device, task: str, model: str, amp: Any) -> None:
    random = np.random.default_rng(0)
    pixels, size = random.integers(0, 256, (12, 160, 160, 3), np.uint8), 160
    data = MemoryData(
        pixels, np.full(12, -1), CLASSES, 8, 4, objects=boxes(12, size, task == "segment")
    )  # fmt: skip
    settings = recipe(task=task, model=model, imgsz=size, amp=amp, epochs=2, batch=4, lr=1e-3)
    _, recorder = run(settings, data, gpu)
    assert all(np.isfinite(row["train_loss"]) for row in recorder.rows)
    assert 0 <= recorder.rows[-1]["map"] <= 1
    assert ("mask_map" in recorder.rows[-1]) == (task == "segment")
