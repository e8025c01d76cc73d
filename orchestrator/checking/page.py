"""The page of `orchestrator check`: one file that needs no network and no script, with pictures of what was found."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.resources import files
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, StrictUndefined

from orchestrator.checking.charts import Chart, chart
from orchestrator.checking.check import Report
from orchestrator.checking.counts import images_of_classes
from orchestrator.checking.flaws import Flaw
from orchestrator.checking.look import Box
from orchestrator.checking.scan import Example
from orchestrator.checking.thumbnails import thumbnail
from orchestrator.data import SPLITS, get_format
from orchestrator.data.manifest import Manifest, sample_of
from orchestrator.data.objects import Frame
from trainables.contracts import Sample
from trainables.order import sample_keys

SHEETS, SHEET_PICTURES, PICTURES = 100, (4, 18), 320
"""Classes that have a contact sheet, pictures on one of them (at least, at most), and on all together, about."""
GROUPS, OF_A_GROUP, NAMED = 12, 4, 200
"""Per flaw: examples with pictures, pictures of an example, and examples that are named."""


class Wanted(NamedTuple):
    """A picture to be made: of which sample, and which class or box is marked in it."""

    position: int
    label: int | None = None
    box: Box | None = None


@dataclass(frozen=True)
class Picture:
    """A picture on the page; without `uri` it cannot be shown."""

    uri: str | None
    name: str
    split: str
    label: str
    """The class of the image, where it has one."""


@dataclass(frozen=True)
class Finding:
    """A flaw with pictures of some examples (copies side by side), and the words for others."""

    flaw: Flaw
    groups: list[tuple[Example, list[Wanted]]]
    words: list[str]


@dataclass(frozen=True)
class Sheet:
    """The contact sheet of a class."""

    name: str
    images: int
    objects: int
    wanted: list[Wanted]


def render(report: Report, frame: Frame, threads: int) -> str:
    """The page as HTML. Opens the images that it shows once more, and no others."""
    sheets = _sheets(report)
    findings = [_finding(report, flaw) for flaw in report.flaws]
    shown = chain.from_iterable(sheet.wanted for sheet in sheets)
    examples = chain.from_iterable(wanted for finding in findings for _, wanted in finding.groups)
    album = _album(report.manifest, frame, threads, chain(shown, examples))
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["amount"] = lambda number: f"{number:,}"
    template = files("orchestrator.checking").joinpath("check.html.j2").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        report=report,
        counts=report.counts,
        splits=[(i, split) for i, split in enumerate(SPLITS) if report.counts.images[i]],
        charts=_charts(report),
        findings=findings,
        sheets=sheets,
        album=album,
    )


def _finding(report: Report, flaw: Flaw) -> Finding:
    """Broken files have no pictures; neither have flaws of whole classes."""
    groups: list[tuple[Example, list[Wanted]]] = []
    words: list[str] = []
    ids = report.manifest.table["id"]
    for example in flaw.examples:
        wanted = [Wanted(p, box=example.box) for p in example.positions[:OF_A_GROUP] if report.scan.fine[p]]
        if wanted and len(groups) < GROUPS:
            groups.append((example, wanted))
        elif example.positions or example.detail:
            names = " = ".join(ids[position].as_py() for position in example.positions[:OF_A_GROUP])
            words.append(": ".join(part for part in (names, example.detail) if part))
    return Finding(flaw, groups, words[:NAMED])


def _sheets(report: Report) -> list[Sheet]:
    """For each class the samples with the lowest keys: as good as drawn by lot, and the same every time."""
    keys = sample_keys(report.manifest.table["id"].to_pylist())
    positions, labels = images_of_classes(report.manifest)
    fine = report.scan.fine[positions]
    positions, labels = positions[fine], labels[fine]
    order = np.lexsort((keys[positions], labels))
    positions, labels = positions[order], labels[order]
    names = report.manifest.classes[:SHEETS]
    each = min(max(PICTURES // max(len(names), 1), SHEET_PICTURES[0]), SHEET_PICTURES[1])
    starts = np.searchsorted(labels, np.arange(len(names) + 1))
    mark, counts = report.manifest.has_objects, report.counts
    sheets = []
    for i, name in enumerate(names):
        chosen = positions[starts[i] : starts[i + 1]][:each].tolist()
        wanted = [Wanted(position, i if mark else None) for position in chosen]
        if wanted:
            sheets.append(Sheet(name, int(counts.with_class[:, i].sum()), int(counts.objects[:, i].sum()), wanted))
    return sheets


def _album(manifest: Manifest, frame: Frame, threads: int, wanted: Iterable[Wanted]) -> dict[Wanted, Picture]:
    """The pictures, made in threads."""
    load, distinct = get_format(manifest.format).load, sorted(set(wanted), key=lambda want: want.position)
    columns = manifest.table.take([want.position for want in distinct])

    def make(want: Wanted, sample: Sample) -> Picture:
        uri = thumbnail(sample, load, frame, want.label, want.box)
        label = manifest.classes[sample.label] if sample.label >= 0 else ""
        return Picture(uri, sample.id, sample.split, label)

    pool = ThreadPoolExecutor(threads, "pictures")
    try:
        return dict(zip(distinct, pool.map(make, distinct, map(sample_of, columns.to_pylist())), strict=True))
    finally:
        pool.shutdown(cancel_futures=True)


def _charts(report: Report) -> list[tuple[str, list[Chart]]]:
    """Rows of histograms under their titles."""
    images, boxes = report.scan.images, report.scan.boxes
    rows: dict[str, Any] = {
        "Images": {"width in pixels": images["width"], "height in pixels": images["height"]}
        | {"width / height": images["aspect"], "objects per image": images["objects"]},
        "Objects": {"box width in pixels": boxes["width"], "box height in pixels": boxes["height"]}
        | {"box width / height": boxes["aspect"], "box area, share of the image": boxes["area"]},
    }
    made = {title: [chart(name, h) for name, h in row.items() if h.total] for title, row in rows.items()}
    return [(title, charts) for title, charts in made.items() if charts]
