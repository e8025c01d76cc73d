"""What a run left behind, as the tests compare it."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from trainables.checkpoint import load
from trainables.contracts import State

TIMED = {"images_per_second", "data_wait_fraction", "seconds"}
"""Columns of results.csv that differ from run to run."""


def rows(run: Path) -> list[dict[str, str]]:
    """results.csv, a row per epoch."""
    with (run / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def untimed_rows(run: Path) -> list[dict[str, str]]:
    return [{name: value for name, value in row.items() if name not in TIMED} for row in rows(run)]


def checkpoint(run: Path, name: str = "last") -> State:
    """A checkpoint, verified."""
    return load(run / "checkpoints" / name)


@dataclass(frozen=True)
class Received:
    """What the workers of a run wrote down (`record_samples`), joined over the ranks in their order."""

    ranks: int
    batches: dict[tuple[int, int], list[str]]
    """By epoch and step."""
    shares: dict[tuple[int, int], list[int]]
    """How many of a batch each rank had."""
    validation: list[str]
    pixels: dict[tuple[int, int], list[str]]
    """Hashes of a batch's images, as the model got them."""
    validation_pixels: dict[str, str]
    """By sample id."""


def received(run: Path) -> Received:
    files = sorted((run / "logs").glob("samples-*.jsonl"))
    batches: dict[tuple[int, int], list[str]] = defaultdict(list)
    shares: dict[tuple[int, int], list[int]] = defaultdict(list)
    pixels: dict[tuple[int, int], list[str]] = defaultdict(list)
    validation: list[str] = []
    validation_pixels: dict[str, str] = {}
    for file in files:
        for line in file.read_text().splitlines():
            record = json.loads(line)
            if "step" in record:
                batches[record["epoch"], record["step"]] += record["samples"]
                pixels[record["epoch"], record["step"]] += record["pixels"]
                shares[record["epoch"], record["step"]].append(len(record["samples"]))
            else:
                validation += record["samples"]
                validation_pixels |= dict(zip(record["samples"], record["pixels"], strict=True))
    return Received(len(files), dict(batches), dict(shares), validation, dict(pixels), validation_pixels)
