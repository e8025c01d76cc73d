"""Precision and memory format on a CPU, and what `amp: true` makes of them.

A training step of two models in float32 and bfloat16, NCHW and NHWC (channels_last), in turns; then what a run with
`amp: true` would decide. Prints a table per model and

    resnet18_amp_speedup             what `amp: true` chose / float32 NCHW (at least 1.8 on a machine with AMX)
    mobilenet_v3_small_amp_of_best   what `amp: true` chose / the best setting (at least 0.98: the measurement's noise)
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks._timing import Seconds, print_table, ratio, take_turns
from trainables.batching import decide
from trainables.contracts import DataInfo
from trainables.local import LocalRuntime
from trainables.optim import build_optimizer, choose
from trainables.precision import choose_precision
from trainables.recipe import Recipe
from trainables.tasks import build_task
from trainables.trials import sample_batch

CPU = torch.device("cpu")
SETTINGS: dict[str, dict[str, Any]] = {
    "float32": {"amp": False, "channels_last": False},
    "float32 NHWC": {"amp": False, "channels_last": True},
    "bfloat16": {"amp": "bf16", "channels_last": False},
    "bfloat16 NHWC": {"amp": "bf16", "channels_last": True},
}


def has_amx() -> bool:
    """Whether the CPU multiplies bfloat16 matrices in hardware."""
    try:
        return "amx_bf16" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def step_of(recipe: Recipe, info: DataInfo) -> Callable[[], float]:
    """A training step of a model of its own on one batch of noise."""
    task = build_task(recipe)
    precision = choose_precision(recipe, CPU)
    model = task.build_model(info)
    model = model.to(memory_format=precision.memory_format).train()
    optimizer = build_optimizer(choose(recipe, 1), model, recipe.weight_decay)
    batch = sample_batch(info, recipe.batch, recipe.task)

    def step() -> float:
        inputs = precision.lay_out(task.prepare(batch, CPU, train=True))
        optimizer.zero_grad(set_to_none=True)
        with precision.autocast():
            loss = task.loss(model, inputs)["loss"]
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def measure(model: str, imgsz: int, batch: int, rounds: int) -> tuple[Seconds, str]:
    """The seconds of each setting, and the one that `amp: true` chooses."""
    info = DataInfo("made", "", tuple("abcdefghij"), 10_000, 1, 0, imgsz)
    shared: dict[str, Any] = {"model": model, "imgsz": imgsz, "batch": batch, "optimizer": "SGD"}
    recipes = {name: Recipe.model_validate(shared | setting) for name, setting in SETTINGS.items()}
    seconds = take_turns({name: step_of(recipe, info) for name, recipe in recipes.items()}, rounds, warm_up=2)
    with LocalRuntime(device=CPU) as runtime:
        wanted = Recipe.model_validate(shared | {"amp": True})
        chosen = decide(wanted, build_task(wanted), info, runtime).recipe
    made = {"amp": chosen.amp, "channels_last": chosen.channels_last}
    return seconds, next(name for name, setting in SETTINGS.items() if setting == made)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--imgsz", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    print(f"{torch.get_num_threads()} threads of {os.cpu_count()} CPUs, AMX: {'yes' if has_amx() else 'no'}\n")
    for model in ("resnet18", "mobilenet_v3_small"):
        seconds, chosen = measure(model, arguments.imgsz, arguments.batch, arguments.rounds)
        print_table(f"{model}, {arguments.imgsz} px, batch {arguments.batch}", seconds, arguments.batch)
        best = min(seconds, key=lambda name: statistics.median(seconds[name]))
        print(f"amp: true chose {chosen}; the best is {best}")
        if model == "resnet18":
            print(f"resnet18_amp_speedup: {ratio(seconds, 'float32', chosen):.2f}\n", flush=True)
        else:
            print(f"mobilenet_v3_small_amp_of_best: {ratio(seconds, best, chosen):.3f}")


if __name__ == "__main__":
    main()
