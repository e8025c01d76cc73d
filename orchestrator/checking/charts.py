"""Histograms as bars of an inline SVG, whose coordinates are computed here and drawn by the page's template."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.checking.histogram import Histogram

WIDTH, HEIGHT, GAP = 240, 84, 1
FEWEST = 9
"""Bars that there is at least room for: a histogram of one value is not a wall."""


@dataclass(frozen=True)
class Bar:
    """A bar with its tooltip."""

    x: float
    y: float
    width: float
    height: float
    text: str


@dataclass(frozen=True)
class Chart:
    """A histogram: `least` and `most` stand at the ends of the axis, `middle` tells the median."""

    name: str
    bars: list[Bar]
    least: str
    middle: str
    most: str


def chart(name: str, histogram: Histogram) -> Chart:
    """The bins between the least and the greatest value, equally wide whatever range each stands for."""
    content = histogram.to_json()
    assert content is not None
    counts, edges = content["counts"], content["edges"]
    share = "share" in name
    step = WIDTH / (FEWEST if len(counts) == 1 else len(counts))
    left = (WIDTH - step * len(counts)) / 2
    bars = [
        Bar(
            round(left + i * step, 2),
            round(HEIGHT - _height(count, max(counts)), 2),
            round(max(step - GAP, 0.5), 2),
            round(_height(count, max(counts)), 2),
            f"{number(edges[i], share)} to {number(edges[i + 1], share)}: {count:,}",
        )
        for i, count in enumerate(counts)
    ]
    least, most = content["min"], content["max"]
    middle = "all equal" if least == most else f"median {number(content['median'], share)}"
    return Chart(name, bars, number(least, share), middle, number(most, share))


def _height(count: int, most: int) -> float:
    """At least a pixel for what is there at all."""
    return max(HEIGHT * count / most, 1) if count else 0


def number(value: float, share: bool = False) -> str:
    """As people read it: 640, 1.33, 0.5 %."""
    if share:
        return f"{100 * value:.2g} %" if value < 0.1 else f"{100 * value:.0f} %"
    return f"{value:,.0f}" if value >= 99.5 or value == int(value) else f"{value:.3g}"
