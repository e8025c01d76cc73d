"""Contenders that take turns: what else the machine does meanwhile slows them all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

Seconds = dict[str, list[float]]
"""What each contender took, round by round."""


def take_turns(contenders: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 1) -> Seconds:
    """Run all contenders in every round; the first `warm_up` rounds do not count."""
    seconds: Seconds = {name: [] for name in contenders}
    for number in range(warm_up + rounds):
        for name, contender in contenders.items():
            started = time.perf_counter()
            contender()
            if number >= warm_up:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio(seconds: Seconds, slow: str, fast: str) -> float:
    """How many times as long `slow` took: the median over the rounds."""
    return statistics.median(s / f for s, f in zip(seconds[slow], seconds[fast], strict=True))


def print_table(title: str, seconds: Seconds, images: int) -> None:
    """A line per contender, for rounds of so many images."""
    width = max(map(len, seconds))
    print(f"{title}\n{'':{width}} {'us/image':>9} {'images/s':>9} {'rounds, s':>11}")
    for name, values in seconds.items():
        median = statistics.median(values)
        spread = f"{min(values):.3f} to {max(values):.3f}"
        print(f"{name:{width}} {median / images * 1e6:>9.1f} {images / median:>9.0f}   {spread}")
