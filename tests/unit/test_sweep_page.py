"""The page of a sweep, parsed and looked at."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from orchestrator.sweeps.page import ROWS, STOPS, write_page
from orchestrator.sweeps.records import Decision, Overview
from tests.sweep_overviews import overview, sweep, trial

PNG = b"\x89PNG\r\n\x1a\nnot really"


class Page(HTMLParser):
    """The tags with their attributes, the text, and the cells of each table."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.texts: list[str] = []
        self.html = path.read_text(encoding="utf-8")
        self.feed(self.html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] in ("td", "th") and data.strip():
            self.tables[-1][-1][-1] += data
        self.texts.append(data.strip())

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def written(made: Overview, folder: Path, pictures: tuple[str, ...] = (), place: str | None = None) -> Page:
    paths = [folder / f"{name}.png" for name in pictures]
    for path in paths:
        path.write_bytes(PNG)
    out = write_page(made, folder, paths, place)
    assert out == folder / "report.html"
    return Page(out)


def test_it_tells_the_winner_and_how_to_train_it(tmp_path: Path) -> None:
    trials = [
        trial(0, [0.5], by="default", status="finished"),
        trial(1, [0.8, 0.9123, 0.7], params={"lr": 0.002, "optimizer": "AdamW"}, status="finished"),
    ]
    page = written(overview(trials, facts={"data": "digits, 1,438 images"}), tmp_path)
    assert "top1 0.9123 by trial 1 at epoch 2 lr 0.002 optimizer AdamW" in page.text
    assert f"orchestrator train {tmp_path}/best.yaml" in page.text
    assert "finished: all trials are done" in page.text
    assert "data digits, 1,438 images" in page.text
    remote = written(overview(trials), tmp_path, place="s3://bucket/runs/my sweep/")
    assert "orchestrator train 's3://bucket/runs/my sweep/best.yaml'" in remote.text
    assert str(tmp_path) not in remote.html


def test_the_trials_are_ranked_and_failed_ones_come_last(tmp_path: Path) -> None:
    trials = [
        trial(0, [0.2], by="default", status="stopped", because="asha"),
        trial(1, [0.9], status="failed", because="out of\n  memory"),
        trial(2, [], status="running"),
        trial(3, [0.5, 0.3], params={"lr": 0.5}, status="finished"),
    ]
    table = written(overview(trials), tmp_path).tables[0]
    assert table == [
        ["trial", "proposed by", "outcome", "epochs", "best top1", "at epoch", "lr", "optimizer"],
        ["3", "tpe", "finished", "2", "0.5000", "1", "0.5", "–"],
        ["0", "default", "stopped by asha", "1", "0.2000", "1", "0.01", "SGD"],
        ["2", "tpe", "running", "0", "–", "–", "0.01", "SGD"],
        ["1", "tpe", "failed: out of memory", "1", "0.9000", "1", "0.01", "SGD"],
    ]
    lower = written(overview(trials, mode="min"), tmp_path).tables[0]
    assert [row[0] for row in lower] == ["trial", "0", "3", "2", "1"]


def test_the_stops_are_listed_with_their_cut_offs(tmp_path: Path) -> None:
    decisions = [Decision(0, 1, 1, 0.4, 0.3, 5, stop=False), Decision(7, 4, 3, 0.25, 0.5, 6, stop=True)]
    page = written(overview([trial(7, [0.25])], decisions=decisions), tmp_path)
    assert page.tables[1][1:] == [["7", "4", "3", "0.2500", "0.5000", "6"]]
    assert "What asha stopped" in page.text


@pytest.mark.parametrize("number", [ROWS, ROWS + 1234])
def test_long_lists_are_cut(number: int, tmp_path: Path) -> None:
    decisions = [Decision(i, 1, 1, 0.1, 0.5, 9, stop=True) for i in range(number - ROWS + STOPS)]
    page = written(overview([trial(i, [0.5]) for i in range(number)], decisions=decisions), tmp_path)
    assert [len(table) - 1 for table in page.tables] == [ROWS, STOPS]
    assert ("1,234 more trials: see trials.csv" in page.text) == (number > ROWS)
    assert ("1,234 more: see decisions.csv" in page.text) == (number > ROWS)


def test_the_pictures_are_inside_and_explained(tmp_path: Path) -> None:
    names = ("curves", "parallel", "importance", "lr", "saving")
    page = written(sweep(3), tmp_path, names)
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    assert [image["alt"] for image in images] == list(names)
    for image in images:
        kind, data = str(image["src"]).split(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data) == PNG
    captions = re.findall(r"<figcaption>(.+?)</figcaption>", page.html)
    assert len(set(captions)) == len(names)
    assert not any(tag in ("script", "link", "iframe") for tag, _ in page.tags)
    for _, attrs in page.tags:
        assert all(str(attrs.get(name) or "#").startswith(("#", "data:")) for name in ("src", "href"))
    assert "http" not in page.html


def test_everything_is_escaped(tmp_path: Path) -> None:
    bad = "<script>alert('&')</script>"
    trials = [
        trial(0, [0.5], metric=bad, params={bad: bad}, by=bad, status="finished"),
        trial(1, [], params={bad: 1}, status="failed", because=bad),
    ]
    more = {"name": bad, "status": bad, "stopped_because": bad, "scheduler": bad, "facts": {bad: bad}, "metric": bad}
    page = written(overview(trials, scales={bad: "category"}, **more), tmp_path, (), f"/{bad}")
    assert "<script" not in page.html
    assert page.tables[0][1][-1] == bad
    assert page.text.count(bad) >= 10


def test_an_empty_sweep_has_a_page(tmp_path: Path) -> None:
    page = written(overview([]), tmp_path)
    assert "No trial has a value of top1." in page.text
    assert "No trial was started." in page.text
    assert "best.yaml" not in page.text
