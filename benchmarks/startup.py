"""From the command to the first optimizer step, against scripts that do nothing else.

    startup_ratio         `orchestrator train` with Ray workers and a ready cache / a bare TorchTrainer script with the
                          same model and number of workers (at most 1.3)
    local_startup_ratio   `orchestrator train --local` with a ready cache / a script that imports torch and torchvision
                          and takes the same step (at most 2)

The commands run in turns, each in a fresh process; the ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BARE_RAY = """
import sys, time
import ray, ray.train, ray.train.torch, torch, torchvision

def train(config):
    model = torchvision.models.get_model(config["model"], num_classes=10)
    model = ray.train.torch.prepare_model(model)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    images, labels = torch.rand(config["share"], 3, 32, 32), torch.randint(0, 10, (config["share"],))
    torch.nn.functional.cross_entropy(model(images), labels).backward()
    optimizer.step()
    if ray.train.get_context().get_world_rank() == 0:
        open(config["out"], "w").write(str(time.time()))

workers, model, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
ray.init("local", num_cpus=workers, include_dashboard=False, log_to_driver=False)
ray.train.torch.TorchTrainer(
    train,
    train_loop_config={"model": model, "share": 64 // workers, "out": out},
    scaling_config=ray.train.ScalingConfig(num_workers=workers),
).fit()
"""

BARE_LOCAL = """
import sys, time
import torch, torchvision

model = torchvision.models.get_model(sys.argv[2], num_classes=10)
optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
images, labels = torch.rand(64, 3, 32, 32), torch.randint(0, 10, (64,))
torch.nn.functional.cross_entropy(model(images), labels).backward()
optimizer.step()
open(sys.argv[3], "w").write(str(time.time()))
"""


def bare(script: str, workers: int, model: str, folder: Path) -> float:
    """Seconds from the start of the process to its first step."""
    out = folder / "first_step"
    started = time.time()
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "HOME": str(folder)}
    subprocess.run(
        [sys.executable, "-c", script, str(workers), model, str(out)],
        check=True,
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return float(out.read_text()) - started


def ours(arguments: list[str], model: str, folder: Path) -> float:
    """Seconds from the start of the process to its first step, as summary.json tells them."""
    config = folder / "bench.yaml"
    config.write_text(f"data: digits\nmodel: {model}\nimgsz: 32\nepochs: 1\nname: bench\n")
    subprocess.run(
        [sys.executable, "-m", "orchestrator", "train", str(config), *arguments],
        check=True,
        cwd=folder,
        stdout=subprocess.DEVNULL,
    )
    newest = max((folder / "runs" / "digits").iterdir(), key=lambda p: p.stat().st_mtime)
    return float(json.loads((newest / "summary.json").read_text())["seconds"]["to_first_step"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    workers, model = arguments.workers, arguments.model
    times: dict[str, list[float]] = {"bare TorchTrainer": [], "with Ray": [], "bare script": [], "--local": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ours(["--local"], model, folder)  # builds the cache, warms the page cache
        for _ in range(arguments.rounds):
            times["bare TorchTrainer"].append(bare(BARE_RAY, workers, model, folder))
            times["with Ray"].append(ours([f"scaling.workers={workers}"], model, folder))
            times["bare script"].append(bare(BARE_LOCAL, workers, model, folder))
            times["--local"].append(ours(["--local"], model, folder))
    print(f"{model}, {workers} workers, seconds to the first step, median of {arguments.rounds}")
    medians = {label: statistics.median(values) for label, values in times.items()}
    for label, values in times.items():
        print(f"{label:18} {medians[label]:6.2f}   ({', '.join(f'{v:.2f}' for v in values)})")
    print(f"startup_ratio: {medians['with Ray'] / medians['bare TorchTrainer']:.2f}")
    print(f"local_startup_ratio: {medians['--local'] / medians['bare script']:.2f}")


if __name__ == "__main__":
    main()
