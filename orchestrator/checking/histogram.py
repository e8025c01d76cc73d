"""Histograms that are filled as the values come, whatever their range: bins of equal ratio."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike


class Histogram:
    """Of positive numbers (and zeros, in a bin of their own): `steps` bins for each factor of two."""

    def __init__(self, low: float, high: float, steps: int = 8, whole: int = 0) -> None:
        """Values outside low..high are counted in the first and the last bin. whole: numbers with a bin for each."""
        start = max(low, whole)
        octaves = int(np.ceil(np.log2(high / start)))
        ratios = start * 2.0 ** (np.arange(octaves * steps + 1) / steps)
        self.edges = np.concatenate([np.arange(max(whole, 1)), ratios])
        self.counts = np.zeros(len(self.edges) - 1, np.int64)
        self.sums = np.zeros(len(self.edges) - 1)
        self.least, self.most = np.inf, -np.inf

    def add(self, values: ArrayLike) -> None:
        array = np.asarray(values, np.float64).ravel()
        if not len(array):
            return
        bins = np.searchsorted(self.edges, array * (1 + 1e-9), side="right") - 1
        bins = bins.clip(0, len(self.counts) - 1)
        np.add.at(self.counts, bins, 1)
        np.add.at(self.sums, bins, array)
        self.least, self.most = min(self.least, float(array.min())), max(self.most, float(array.max()))

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    @property
    def median(self) -> float:
        """The mean of the bin in which it lies: exact where a bin holds one value."""
        bin = int(np.searchsorted(self.counts.cumsum(), self.total / 2))
        return float(self.sums[bin] / self.counts[bin])

    def to_json(self) -> dict[str, Any] | None:
        """The bins between the least and the greatest value; None without values."""
        if not self.total:
            return None
        used = np.flatnonzero(self.counts)
        bins = slice(int(used[0]), int(used[-1]) + 1)
        return {
            "min": _short(self.least),
            "median": _short(self.median),
            "mean": _short(self.sums.sum() / self.total),
            "max": _short(self.most),
            "edges": [_short(edge) for edge in self.edges[bins.start : bins.stop + 1]],
            "counts": self.counts[bins].tolist(),
        }


def _short(value: float) -> float:
    """Five digits: what a bin's width leaves of a number, or more for whole ones."""
    return float(f"{value:.5g}") if value < 1e5 else float(round(value))
