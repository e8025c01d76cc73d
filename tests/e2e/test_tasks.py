"""Each task learns from real photos, with one worker in this process and with two Ray workers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.launch import cpu_count
from tests.e2e.shell import Shell, local_store, mlflow_runs, summary
from tests.results import rows

DATA = Path(__file__).parents[3] / "shared" / "data"
FORMATS = Path(__file__).parents[2] / "docs" / "formats.md"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the shared data sets are not here")

DETECT = {
    "task": "detect",
    "model": "ssdlite320_mobilenet_v3_large",
    "imgsz": 224,
    "batch": 8,
    "optimizer": "AdamW",
    "lr": 0.002,
    "scale": 0.3,
    "flipud": 0.5,
    "val_interval": 5,
}
SEGMENT = {
    "task": "segment",
    "model": "light:maskrcnn",
    "imgsz": 128,
    "batch": 4,
    "metric": "map50",
    "lr": 0.002,
    "warmup_epochs": 1,
    "scale": 0.2,
    "flipud": 0.5,
}
RUNS: dict[str, dict[str, Any]] = {
    "bccd_voc": DETECT | {"epochs": 10},
    "veg_yolo": DETECT | {"epochs": 100, "val_interval": 50},
    "nuts_coco": SEGMENT | {"epochs": 60, "val_interval": 15},
    "dsb2018_nuclei": SEGMENT | {"model": "light:fine", "epochs": 4, "val_interval": 2, "format": "nuclei:read"},
}


def train(shell: Shell, name: str, workers: int, **changes: Any) -> Path:
    """A run on a data set; its folder."""
    settings = RUNS[name] | {"data": str(DATA / name), "name": f"run{workers}", "max_bad_fraction": 0.2} | changes
    config = shell.write(f"{name}.yaml", yaml.safe_dump(settings))
    arguments = ["--local"] if workers == 1 else [f"scaling.workers={workers}"]
    done = shell.run("train", config.name, *arguments, seconds=1500)
    assert done.code == 0, done.err + done.out
    (summary_file,) = shell.storage.glob(f"*/run{workers}/summary.json")
    return summary_file.parent


def check_folder(shell: Shell, run: Path, task: str) -> None:
    told = summary(run)
    (tracked,) = [r for r in mlflow_runs(local_store(shell.storage)) if r.info.run_name == run.name]
    metric = told["metric"]["name"]
    last = [row for row in rows(run) if row[metric]][-1]
    assert tracked.data.metrics[metric] == pytest.approx(float(last[metric]))
    pictures = {path.name for path in (run / "plots").iterdir()}
    assert pictures >= {"results.png", "per_class.png", "pr_curve.png", "predictions.png", "train_batch.png"}
    assert ("pr_curve_mask.png" in pictures) == (task == "segment")
    assert (run / "per_class.csv").read_text().count("\n") == 1 + len(told["dataset"]["classes"])
    prefixes = ("", "mask_") if task == "segment" else ("",)
    assert last.keys() >= {f"{prefix}{name}" for prefix in prefixes for name in ("map", "map50", "map75", "mar")}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("name", RUNS)
def test_the_metric_improves_on_real_data(shell: Shell, name: str, workers: int) -> None:
    if workers > cpu_count():
        pytest.skip("there are fewer CPUs than workers")
    (reader,) = re.findall(r"```python\n(.*?)```", FORMATS.read_text(), re.S)
    shell.write("nuclei.py", reader)
    shell.write("light.py", LIGHT)
    run = train(shell, name, workers)
    told = summary(run)
    metric = told["metric"]["name"]
    scores = [float(row[metric]) for row in rows(run) if row[metric]]
    losses = [float(row["train_loss"]) for row in rows(run)]
    assert losses[-1] < 0.8 * losses[0]
    assert max(scores) > max(scores[0], 0.001)
    check_folder(shell, run, told["task"])


LIGHT = """
from torch import nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import mobilenet_backbone


def maskrcnn(num_classes):
    backbone = mobilenet_backbone(
        backbone_name="mobilenet_v3_large", weights=None, fpn=True, norm_layer=nn.BatchNorm2d, trainable_layers=6
    )
    anchors = AnchorGenerator(((16, 32, 64, 128),) * 3, ((0.5, 1.0, 2.0),) * 3)
    few = {"rpn_pre_nms_top_n_train": 400, "rpn_post_nms_top_n_train": 150, "rpn_post_nms_top_n_test": 60}
    return MaskRCNN(backbone, num_classes, rpn_anchor_generator=anchors, box_batch_size_per_image=48, **few)


def fine(num_classes):
    # for objects of a few pixels: features at an eighth of the image, and smaller anchors
    backbone = mobilenet_backbone(
        backbone_name="mobilenet_v3_large", weights=None, fpn=True, norm_layer=nn.BatchNorm2d, trainable_layers=6,
        returned_layers=[1, 2, 3],
    )
    anchors = AnchorGenerator(((8,), (16,), (32,), (64,)), ((0.5, 1.0, 2.0),) * 4)
    few = {"rpn_pre_nms_top_n_train": 400, "rpn_post_nms_top_n_train": 150, "rpn_post_nms_top_n_test": 100}
    return MaskRCNN(backbone, num_classes, rpn_anchor_generator=anchors, box_batch_size_per_image=48, **few)
"""
