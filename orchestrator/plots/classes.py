"""per_class.csv and per_class.png: which classes are found well, and which are not."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.plots import canvas
from orchestrator.plots.canvas import COLORS, shorten

ROWS = 80
"""Of more classes, the best and the worst half of so many are drawn, and none without objects."""
NO_OBJECTS = "0.5"

_COUNTS = {"samples", "images", "objects"}
_TITLES = {
    "map": "AP of boxes",
    "map50": "AP of boxes at IoU 0.5",
    "mask_map": "AP of masks",
    "mask_map50": "AP of masks at IoU 0.5",
    "accuracy": "accuracy",
}


def class_rows(details: Mapping[str, Any], classes: Sequence[str]) -> list[dict[str, Any]]:
    """A row per class of what a metric's `details` tell of it, its name first; None where nothing can be told."""
    if "classes" in details:
        return [{"class": row["name"]} | {k: v for k, v in row.items() if k != "name"} for row in details["classes"]]
    counts = [sum(row) for row in details["confusion"]]
    accuracy = details["class_accuracy"]
    return [{"class": c, "samples": n, "accuracy": accuracy[c]} for c, n in zip(classes, counts, strict=True)]


def write_classes(rows: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Write the rows as CSV; what is None is left empty. Raises OSError."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@canvas.in_any_script()
def plot_classes(rows: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Draw a bar per class, the best above: accuracy, or average precision with that at IoU 0.5 behind it.

    rows: of `class_rows`, at least one. Classes without objects or samples come last, in grey.
    """
    main = next(name for name in ("mask_map", "map", "accuracy") if name in rows[0])
    behind, beside = f"{main}50" if f"{main}50" in rows[0] else None, "map" if main == "mask_map" else None
    ordered = sorted(rows, key=lambda row: (row[main] is None, -(row[main] or 0)))
    chosen = ordered if len(rows) <= ROWS else [row for row in ordered if row[main] is not None]
    cut = len(chosen) > ROWS
    if cut:
        chosen = chosen[: ROWS // 2] + chosen[-ROWS // 2 :]
    count = "objects" if "objects" in rows[0] else "samples"
    figure = canvas.make_figure(11, 1.6 + 0.24 * len(chosen))
    axes = figure.subplots()
    places = range(len(chosen))
    artists: list[Any] = []
    names = []
    for name, color, height in ((behind, "#BBD7EA", 0.8), (main, COLORS[0], 0.5)):
        if name:
            values = [row[name] or 0 for row in chosen]
            artists.append(axes.barh(places, values, height, color=color, zorder=2))
            names.append(_TITLES[name])
    if beside:
        points = [np.nan if row[beside] is None else row[beside] for row in chosen]
        artists += axes.plot(points, places, "D", color=COLORS[1], markersize=5, zorder=3)
        names.append(_TITLES[beside])
    for place, row in zip(places, chosen, strict=True):
        end = max((row[name] or 0) for name in (behind, main, beside) if name)
        text = f"no {count}" if row[main] is None else f"{row[main]:.3f}   {row[count]:,} {_plural(count, row[count])}"
        axes.text(end + 0.012, place, text, va="center", fontsize=8, color=NO_OBJECTS if row[main] is None else "black")
    labels = [shorten(row["class"], canvas.LABEL_LETTERS) for row in chosen]
    axes.set_yticks(places, labels, fontsize=9, parse_math=False)
    axes.set(xlim=(0, 1.2), ylim=(len(chosen) - 0.4, -0.6), xlabel=" and ".join(names[-1:]) if len(names) == 1 else "")
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.grid(axis="x", color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    if cut:
        axes.axhline(ROWS // 2 - 0.5, color="0.4", linestyle=":")
    several = len(names) > 1
    axes.set_title(_title(len(rows), len(chosen), cut, main), pad=30 if several else 8)
    if several:
        canvas.name_legend(axes, artists, names, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(names))
    canvas.save_figure(figure, out)


def _plural(noun: str, count: int) -> str:
    return noun if count != 1 else noun.removesuffix("s")


def _title(classes: int, shown: int, cut: bool, main: str) -> str:
    title = f"{_TITLES[main][0].upper()}{_TITLES[main][1:]} by class"
    if cut:
        return f"{title}: the {shown // 2} best and the {shown // 2} worst of {classes:,}"
    return title + (f": the {shown:,} of {classes:,} that there is something of" if shown < classes else "")
