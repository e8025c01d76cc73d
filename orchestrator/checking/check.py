"""What `orchestrator check` finds: the counts, sizes and flaws of a data set, before a run has to meet them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from orchestrator.checking.counts import Counted, Counts, count
from orchestrator.checking.flaws import Flaw, find_flaws
from orchestrator.checking.scan import Scan, scan
from orchestrator.data import SPLITS
from orchestrator.data.manifest import Manifest
from orchestrator.data.objects import Frame

FORMAT_VERSION = 1
"""Of check.json."""


@dataclass(frozen=True)
class Report:
    """All that was found. `refused`: why a run would not start with this data, or None."""

    location: str
    manifest: Manifest
    counts: Counts
    scan: Scan
    flaws: list[Flaw]
    refused: str | None
    seconds: float

    @property
    def labels(self) -> Literal["classes", "boxes", "masks"]:
        return "classes" if not self.manifest.has_objects else "masks" if self.counts.masks else "boxes"

    def splits(self, counted: Counted) -> dict[str, int]:
        """A count per split by name, without the splits that the data set lacks."""
        there = zip(SPLITS, self.counts.images.tolist(), counted, strict=True)
        return {split: int(number) for split, images, number in there if images}

    def to_json(self) -> dict[str, Any]:
        """The content of check.json (docs/check.md)."""
        manifest, counts, objects = self.manifest, self.counts, self.manifest.has_objects
        classes = [
            {"index": i, "name": name, "images": self.splits(counts.with_class[:, i])}
            | ({"objects": self.splits(counts.objects[:, i])} if objects else {})
            for i, name in enumerate(manifest.classes)
        ]
        return {
            "format_version": FORMAT_VERSION,
            "data": {
                "location": self.location,
                "name": manifest.name,
                "format": manifest.format,
                "reason": manifest.reason,
                "labels": self.labels,
            },
            "images": self.splits(counts.images),
            "objects": self.splits(counts.objects.sum(1)) if objects else None,
            "background": self.splits(counts.background) if objects else None,
            "classes": classes,
            "files": {name: dict(counter.most_common()) for name, counter in self.scan.contents.items()}
            | {"bytes": self.scan.bytes},
            "sizes": {
                "images": {name: values.to_json() for name, values in self.scan.images.items()},
                "objects": {name: values.to_json() for name, values in self.scan.boxes.items()} if objects else None,
            },
            "flaws": [flaw.to_json(manifest) for flaw in self.flaws],
            "refused": self.refused,
            "seconds": round(self.seconds, 3),
        }


def check(
    manifest: Manifest,
    location: str,
    frame: Frame = "auto",
    max_bad_fraction: float = 0.01,
    threads: int = 1,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Open every image of a manifest of all splits, and put together what is to be known. Writes nothing."""
    started = time.monotonic()
    counts = count(manifest)
    seen = scan(manifest, frame, threads, on_progress)
    flaws = find_flaws(manifest, counts, seen)
    refused = _refused(manifest, counts, seen, max_bad_fraction)
    return Report(location, manifest, counts, seen, flaws, refused, time.monotonic() - started)


def _refused(manifest: Manifest, counts: Counts, seen: Scan, max_bad_fraction: float) -> str | None:
    """Why a run would refuse the data; what it does not read, as the test split, does not count."""
    if not counts.images[0]:
        return "there are no training images"
    read = manifest.table["split"].to_numpy() != "test"
    total, bad = int(read.sum()), int((read & ~seen.fine).sum())
    if bad <= max_bad_fraction * total and bad < total:
        return None
    return (
        f"{bad:,} of {total:,} images for training and validation cannot be read, more than "
        f"max_bad_fraction={max_bad_fraction:g} allows: repair or remove them, or raise max_bad_fraction"
    )
