"""What `orchestrator val` shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.console import Screen

SHOWN_CLASSES = 40
"""Of more classes, the lowest are shown."""


class ValScreen(Screen):
    """The screen of the command."""

    _told = 0

    def evaluating(self, done: int, total: int) -> None:
        """How many images have gone through the model; without a terminal, a line per quarter."""
        done = min(done, total)
        info = f"{done:,} of {total:,} images"
        if self._has_bars:
            self._show("evaluating", "evaluating", done, total, info)
        elif (quarter := 4 * done // total) > self._told:
            self._told = quarter
            self._line(f"evaluating: {info}")

    def scores(self, items: Mapping[str, Any], metric: str) -> None:
        """The metrics in two columns, the primary one first."""
        self.close()
        self._line()
        ordered = sorted(items, key=lambda name: name != metric)
        self._pairs({name: "-" if items[name] is None else f"{items[name]:.4f}" for name in ordered})
        self._line()

    def classes(self, rows: Sequence[Mapping[str, Any]], column: str) -> None:
        """A line per class; of many classes, those with the lowest figure in `column`, and those without one left out.

        rows: as `plots.classes.class_rows` gives them.
        """
        shown = list(rows)
        if len(rows) > SHOWN_CLASSES:
            shown = sorted((row for row in rows if row[column] is not None), key=lambda row: row[column])
            shown = shown[:SHOWN_CLASSES]
        names = list(rows[0])
        cells = [names, *([_text(row[name]) for name in names] for row in shown)]
        widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
        for number, line in enumerate(cells):
            first, *others = (
                text.rjust(width) if i else text.ljust(width)
                for i, (text, width) in enumerate(zip(line, widths, strict=True))
            )
            self._line(("  ".join([first, *others]), "" if number else "dim"))
        if len(shown) < len(rows):
            self._line(f"the {len(shown)} lowest of {len(rows):,} classes by {column}; all are in per_class.csv")
        self._line()

    def written(self, folder: str) -> None:
        self._pairs({"written": folder})


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
