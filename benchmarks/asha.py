"""What ASHA finds, and for how many epochs, against training every configuration to its end.

    asha_regret_percent  how far the best of ASHA is behind the best of all, relative (the worst of the data sets' means
                         over the seeds; at most 1)
    asha_epoch_share     epochs that ASHA trained, of those that all would take (at most a third)

For each data set and seed the same configurations are tried twice by `orchestrator tune`: with scheduler none, and with
asha. The space is the default one: optimizer, lr, lrf and batch.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks._own_ray import own_ray
from orchestrator.config import Config

FRUIT = Path(__file__).parents[2] / "shared" / "data" / "grocery_fruit"
DATA: dict[str, dict[str, Any]] = {
    "digits": {"data": "digits", "model": "benchmarks.asha:small", "imgsz": 32, "epochs": 27, "batch": 128},
    "grocery_fruit": {"data": str(FRUIT), "model": "benchmarks.asha:small", "imgsz": 48, "epochs": 27, "batch": 32},
}


def small(num_classes: int) -> Any:
    """A convolutional network that a CPU trains in a second or less per epoch of a thousand small images."""
    from torch import nn

    def block(inputs: int, outputs: int) -> Any:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())

    return nn.Sequential(
        block(3, 16), block(16, 32), block(32, 64), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_classes)
    )


@dataclass(frozen=True)
class Outcome:
    """What a sweep came to."""

    best: float
    epochs: int


def sweep(folder: Path, name: str, seed: int, scheduler: str, trials: int) -> Outcome:
    from orchestrator.tune import tune

    made = Config.model_validate(
        DATA[name]
        | {
            "seed": seed,
            "name": f"{name}-{seed}-{scheduler}",
            "patience": 0,
            "storage": str(folder / "runs"),
            "cache_dir": str(folder / "cache"),
            "tune": {"searcher": "random", "scheduler": scheduler, "samples": trials, "grace": 1},
        }
    )
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        summary = tune(made).summary
    assert summary["trials"]["failed"] + summary["trials"]["finished"] + summary["trials"]["stopped"] == trials
    return Outcome(summary["metric"]["best"], summary["epochs"]["spent"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", nargs="*", choices=DATA, default=list(DATA))
    parser.add_argument("--out", type=Path, help="a JSON file for the outcomes")
    arguments = parser.parse_args()
    print(f"{'':14} {'seed':>4} {'best of all':>12} {'best of asha':>13} {'regret':>8} {'epochs':>12} {'share':>6}")
    regrets: dict[str, list[float]] = {}
    shares: list[float] = []
    told = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, own_ray():
        for name in arguments.data:
            for seed in range(arguments.seeds):
                whole, asha = (sweep(Path(folder), name, seed, s, arguments.trials) for s in ("none", "asha"))
                regret, share = 100 * (whole.best - asha.best) / whole.best, asha.epochs / whole.epochs
                regrets.setdefault(name, []).append(regret)
                shares.append(share)
                told.append({"data": name, "seed": seed, "regret": regret, "share": share})
                print(
                    f"{name:14} {seed:>4} {whole.best:>12.4f} {asha.best:>13.4f} {regret:>7.2f}% "
                    f"{asha.epochs:>5} of {whole.epochs:<4} {share:>6.2f}",
                    flush=True,
                )
    if arguments.out:
        arguments.out.write_text(json.dumps(told))
    print(f"asha_regret_percent: {max(statistics.mean(values) for values in regrets.values()):.2f}")
    print(f"asha_epoch_share: {statistics.mean(shares):.2f}")


if __name__ == "__main__":
    main()
