"""Fine-tuning from real weights beats random initialisation at equal epochs, from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.shell import Shell, summary

FILES = {
    "mobilenet_v2": "mobilenet_v2_torchvision_features.pth",
    "squeezenet1_1": "squeezenet1_1_torchvision.pth",
}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("model", FILES)
def test_fine_tuning_beats_random_weights(shell: Shell, test_data: Path, test_weights: Path, model: str) -> None:
    config = shell.config(
        data=str(test_data / "grocery_fruit" / "dataset"),
        model=model,
        imgsz=96,
        epochs=3,
        batch=32,
        optimizer="AdamW",
        lr=0.0005,
    )
    weights = test_weights / FILES[model]
    best: dict[str, float] = {}
    for name, pretrained in (("tuned", str(weights)), ("scratch", "false")):
        done = shell.run("train", config, f"name={name}", f"pretrained={pretrained}", seconds=800)
        assert done.code == 0, done.err
        (run,) = shell.storage.glob(f"*/{name}")
        best[name] = summary(run)["metric"]["best"]
        assert ("tensors loaded from" in done.out) == (name == "tuned")
    assert best["tuned"] > best["scratch"] + 0.1, best


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("freeze=10", "freeze = 10 is out of range: the model has 9 stages"),
        ('freeze=["layer1"]', "freeze: 'layer1' matches nothing in the model"),
        ("pretrained={weights}/mobilenet_v2_torchvision_features.pth", "features.pth fits squeezenet1_1"),
    ],
)
def test_what_does_not_fit_the_model_ends_with_code_2(
    shell: Shell, test_weights: Path, setting: str, message: str
) -> None:
    config = shell.config(model="squeezenet1_1", imgsz=64)
    done = shell.run("train", config, setting.format(weights=test_weights))
    assert done.code == 2
    assert message in done.err
    assert not shell.storage.exists()
