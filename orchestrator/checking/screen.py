"""What `orchestrator check` shows on the screen: a bar, the counts, the flaws with examples."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.console import Screen, _Pace, duration

if TYPE_CHECKING:
    from orchestrator.checking.check import Report
    from orchestrator.checking.flaws import Flaw
    from orchestrator.checking.scan import Example

ROWS, EXAMPLES = 40, 3
"""Classes in the table, and examples of a flaw."""
STYLES = {"left out": "red", "warning": "yellow", "note": "cyan"}


class CheckScreen(Screen):
    """The screen of a check."""

    def checking(self, done: int, total: int) -> None:
        """How many images were looked at; without a terminal, a line per quarter."""
        if self._activity != "check":
            self.close()
            self._activity, self._pace = "check", _Pace(done)
        info = f"{done:,} of {total:,} images"
        if done >= total:
            self.close()
        elif self._has_bars:
            left = self._pace.left(done, total)
            self._show("check", "checking", done, total, info + (f"  {duration(left)} left" if left else ""))
        elif 4 * done // total > self._pace.told:
            self._pace.told = 4 * done // total
            self._line(f"checking: {info} ({100 * done // total} %)")

    def report(self, report: Report, folder: Path) -> None:
        """All of it, down to the place of the page."""
        self.close()
        manifest, scan = report.manifest, report.scan
        totals = {
            name: ", ".join(f"{n:,} {split}" for split, n in report.splits(counted).items())
            for name, counted in (("images", report.counts.images), ("objects", report.counts.objects.sum(1)))
        }
        self._pairs(
            {
                "data": f"{manifest.name} ({manifest.format}: {manifest.reason})",
                "images": totals["images"],
                **({"objects": totals["objects"]} if manifest.has_objects else {}),
                "files": ", ".join(f"{n:,} {kind}" for kind, n in scan.contents["format"].most_common()),
                "size": _range(report),
            }
        )
        self._line()
        self._classes(report)
        for flaw in report.flaws:
            self._flaw(report, flaw)
        if not report.flaws:
            self._line(("nothing was found that needs a look", "green"))
        self._line()
        self._pairs({"page": str(folder / "check.html"), "figures": str(folder / "check.json")})

    def _classes(self, report: Report) -> None:
        """A row per class: its images or objects in each split."""
        counted = report.counts.objects if report.manifest.has_objects else report.counts.with_class
        rows = [
            [name, *(f"{n:,}" for n in report.splits(counted[:, i]).values())]
            for i, name in enumerate(report.manifest.classes[:ROWS])
        ]
        what = "objects" if report.manifest.has_objects else "images"
        head = [f"{what} of", *report.splits(report.counts.images)]
        widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
        for number, row in enumerate([head, *rows]):
            cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
            self._line(("  ".join(cells), "dim" if not number else ""))
        if len(report.manifest.classes) > ROWS:
            self._line((f"... and {len(report.manifest.classes) - ROWS:,} more classes: see the page", "dim"))
        self._line()

    def _flaw(self, report: Report, flaw: Flaw) -> None:
        names = [_named(report, example) for example in flaw.examples[:EXAMPLES]]
        more = f", ... ({flaw.count - EXAMPLES:,} more)" if flaw.count > EXAMPLES and any(names) else ""
        examples = f": {', '.join(names)}{more}" if any(names) else ""
        self._line((f"{flaw.level:<8}", STYLES[flaw.level]), f"  {flaw.title}{examples}")


def _named(report: Report, example: Example) -> str:
    ids = report.manifest.table["id"]
    names = " = ".join(ids[position].as_py() for position in example.positions[:2])
    if len(example.positions) > 1:
        return names + (" = ..." if len(example.positions) > 2 else "")
    return f"{names} ({example.detail})" if names and example.detail else names or example.detail


def _range(report: Report) -> str:
    """The sizes of the images, in words."""
    width, height = report.scan.images["width"], report.scan.images["height"]
    if not width.total:
        return "no image can be read"
    if width.least == width.most and height.least == height.most:
        return f"{width.most:.0f} × {height.most:.0f}"
    return f"{width.least:.0f} to {width.most:.0f} wide, {height.least:.0f} to {height.most:.0f} high"
