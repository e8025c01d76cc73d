"""What `orchestrator check` finds in small sets whose flaws are known."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
import pytest

from orchestrator.check import Target, check, find_target
from orchestrator.checking import scan as scanning
from orchestrator.checking.check import Report
from orchestrator.checking.check import check as check_manifest
from orchestrator.checking.duplicates import copies, lookalikes
from orchestrator.checking.flaws import KINDS
from orchestrator.checking.histogram import Histogram
from orchestrator.checking.page import render
from orchestrator.config import ConfigError
from orchestrator.data import FORMATS, Format, Issue, Source
from orchestrator.data.images import Image
from orchestrator.data.manifest import read_manifest
from tests.conftest import ROOT
from tests.pictures import noise
from trainables.contracts import Instance, Sample

SPLITS = ("train", "val", "test")


def scene(seed: int, height: int = 96, width: int = 128) -> Image:
    """A smooth picture with many shades, as photos are."""
    rough = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return cv2.resize(rough, (width, height), interpolation=cv2.INTER_CUBIC)  # type: ignore[return-value]


def save(path: Path, pixels: np.ndarray, *options: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels, list(options))
    return path


def made(
    monkeypatch: pytest.MonkeyPatch,
    samples: Sequence[Sample],
    images: Mapping[str, Any],
    classes: tuple[str, ...] = ("cat", "dog"),
    issues: Sequence[Issue] = (),
    **options: Any,
) -> Report:
    """The report of a set that is in memory."""

    def load(image: str) -> Any:
        if image not in images:
            raise FileNotFoundError(image)
        return images[image]

    source = Source("made", classes, samples, list(issues))
    monkeypatch.setitem(FORMATS, "made", "made")
    entry = Format(lambda location: source, load)
    for module in ("data.manifest", "checking.scan", "checking.page"):
        monkeypatch.setattr(f"orchestrator.{module}.get_format", lambda name: entry)
    return check_manifest(read_manifest("made", "made", SPLITS), "made", **options)


def boxes(*items: tuple[int, float, float, float, float], id: str = "a", split: str = "train", **more: Any) -> Sample:
    return Sample(id, split, id, "", objects=tuple(Instance(i[0], i[1:]) for i in items), **more)


def flaws(report: Report) -> dict[str, int]:
    return {flaw.kind: flaw.count for flaw in report.flaws}


def ids(report: Report, kind: str) -> list[tuple[str, ...]]:
    content = next(flaw for flaw in report.to_json()["flaws"] if flaw["kind"] == kind)
    return [tuple(example["ids"]) for example in content["examples"]]


def details(report: Report, kind: str) -> list[str]:
    return [example.detail for flaw in report.flaws if flaw.kind == kind for example in flaw.examples]


@pytest.fixture
def dirty(tmp_path: Path) -> Path:
    """An ImageFolder with every flaw that files can have."""
    root = tmp_path / "dirty"
    for i in range(12):
        save(root / "train" / ("cat", "dog")[i % 2] / f"{i}.png", scene(i))
    for i in range(12, 16):
        save(root / "val" / ("cat", "dog")[i % 2] / f"{i}.png", scene(i))
    copied = (root / "train/cat/0.png").read_bytes()
    (root / "val/cat/leak.png").write_bytes(copied)
    (root / "train/cat/again.png").write_bytes((root / "train/cat/2.png").read_bytes())
    (root / "train/dog/wrong.png").write_bytes((root / "train/cat/4.png").read_bytes())
    save(root / "val/dog/saved_again.jpg", scene(1), cv2.IMWRITE_JPEG_QUALITY, 60)
    save(root / "train/dog/smaller.png", cv2.resize(scene(3), (90, 68), interpolation=cv2.INTER_AREA))
    (root / "train/cat/empty.png").touch()
    (root / "train/cat/cut.png").write_bytes(copied[: len(copied) // 2])
    (root / "val/dog/text.jpg").write_text("no image")
    (root / "train/dog/nowhere.png").symlink_to(root / "nothing.png")
    return root


# -------------------------------------------------------------------------------------------------- findings


def test_files(dirty: Path) -> None:
    report = check_manifest(read_manifest(str(dirty), splits=SPLITS), str(dirty), threads=2)
    assert flaws(report) == {
        "missing_image": 1,
        "empty_image": 1,
        "broken_image": 2,
        "duplicate_across": 1,
        "lookalike_across": 1,
        "contradiction": 1,
        "duplicate": 2,
        "lookalike": 1,
    }
    assert ids(report, "missing_image") == [("train/dog/nowhere.png",)]
    assert ids(report, "empty_image") == [("train/cat/empty.png",)]
    assert ids(report, "broken_image") == [("train/cat/cut.png",), ("val/dog/text.jpg",)]
    assert ids(report, "duplicate_across") == [("train/cat/0.png", "val/cat/leak.png")]
    assert ids(report, "lookalike_across") == [("train/dog/1.png", "val/dog/saved_again.jpg")]
    assert ids(report, "contradiction") == [("train/cat/4.png", "train/dog/wrong.png")]
    assert ids(report, "lookalike") == [("train/dog/3.png", "train/dog/smaller.png")]
    assert report.scan.contents["format"] == {"PNG": 20, "JPEG": 1}
    assert report.refused == (
        "4 of 25 images for training and validation cannot be read, more than max_bad_fraction=0.01 allows: "
        "repair or remove them, or raise max_bad_fraction"
    )


def test_the_report_does_not_depend_on_the_number_of_threads(dirty: Path) -> None:
    manifest = read_manifest(str(dirty), splits=SPLITS)
    one, four = (check_manifest(manifest, "x", threads=n).to_json() | {"seconds": 0} for n in (1, 4))
    assert one == four


def test_true_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    cat, dog = (0, 10.0, 10.0, 40.0, 40.0), (1, 50.0, 10.0, 90.0, 90.0)
    samples = [
        boxes(cat, (0, 60.0, 60.0, 90.0, 90.0), dog, id="a"),
        boxes(dog, id="b"),
        boxes(id="c"),
        boxes(cat, id="d", split="val"),
        boxes(id="e", split="test"),
    ]
    report = made(monkeypatch, samples, {id: scene(i, 100, 100) for i, id in enumerate("abcde")})
    content = report.to_json()
    assert content["images"] == {"train": 3, "val": 1, "test": 1}
    assert content["objects"] == {"train": 4, "val": 1, "test": 0}
    assert content["background"] == {"train": 1, "val": 0, "test": 1}
    assert content["classes"] == [
        {
            "index": 0,
            "name": "cat",
            "images": {"train": 1, "val": 1, "test": 0},
            "objects": {"train": 2, "val": 1, "test": 0},
        },
        {
            "index": 1,
            "name": "dog",
            "images": {"train": 2, "val": 0, "test": 0},
            "objects": {"train": 2, "val": 0, "test": 0},
        },
    ]
    assert content["sizes"]["objects"]["width"]["min"] == 30
    assert content["sizes"]["images"]["objects"]["max"] == 3
    assert flaws(report) == {"unvalidated_class": 1, "background": 2}
    assert content["data"]["labels"] == "boxes"


def test_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    twice = (0, 10.0, 10.0, 40.0, 40.0)
    samples = [
        boxes(twice, (1, 50.0, 50.0, 90.0, 90.0), twice, (1, 10.0, 10.0, 40.0, 40.0), id="a"),
        boxes((0, 20.0, 20.0, 20.0, 50.0), (0, 200.0, 0.0, 210.0, 5.0), (1, 60.0, 60.0, 60.5, 90.0), id="b"),
        boxes((1, -10.0, 0.0, 50.0, 50.0), (0, -0.5, 0.0, 40.0, 50.0), id="c"),
        boxes((0, 10.0, 10.0, 90.0, 90.0), id="d", split="val", size=(50, 80)),
    ]
    issues = [Issue("labels/x.txt", "there is no such image", "label")]
    report = made(monkeypatch, samples, {id: scene(i, 100, 100) for i, id in enumerate("abcd")}, issues=issues)
    assert {kind: count for kind, count in flaws(report).items() if kind != "unvalidated_class"} == {
        "unread_label": 1,
        "dropped_object": 2,
        "repeated_object": 1,
        "two_classes": 1,
        "tiny_object": 1,
        "label_remark": 1,
        "box_outside": 3,
    }
    assert ids(report, "dropped_object") == [("b",), ("b",)]
    assert details(report, "dropped_object")[0] == "box 0 (class 0) has no area"
    assert details(report, "unread_label") == ["labels/x.txt: there is no such image"]
    assert "box 0: 10 % beyond" in details(report, "box_outside")
    repeated = next(flaw for flaw in report.flaws if flaw.kind == "repeated_object")
    assert repeated.examples[0].box == (10, 10, 40, 40)
    assert repeated.title == "1 object labelled more than once"


def test_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("common", "rare", "untrained", "nowhere")
    labels = [("train", 0)] * 30 + [("train", 1)] + [("val", 0), ("test", 2), ("val", -1)]
    samples = [Sample(f"{i:02d}", split, f"{i:02d}", "", label) for i, (split, label) in enumerate(labels)]
    report = made(monkeypatch, samples, {s.id: scene(i) for i, s in enumerate(samples)}, names)
    assert flaws(report) == {
        "empty_class": 1,
        "untrained_class": 1,
        "unlabelled_image": 1,
        "unvalidated_class": 1,
        "rare_class": 1,
    }
    assert details(report, "empty_class") == ["nowhere"]
    assert details(report, "untrained_class") == ["untrained"]
    assert details(report, "rare_class") == ["rare (1 of 31)"]


@pytest.mark.parametrize(
    ("orientation", "size", "relative", "unclear"),
    [
        (6, (60, 100), False, 0),  # that of the stored pixels
        (6, (100, 60), False, 0),  # that of the upright picture
        (6, None, True, 1),
        (3, (60, 100), False, 1),  # half a turn changes no size
        (1, None, True, 0),
    ],
)
def test_which_way_up_the_labels_are(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    orientation: int,
    size: tuple[int, int] | None,
    relative: bool,
    unclear: int,
) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    PIL.Image.fromarray(scene(0, 60, 100)).save(tmp_path / "photo.jpg", exif=exif)
    box = (0, 0.2, 0.2, 0.6, 0.6) if relative else (0, 12.0, 12.0, 36.0, 36.0)
    sample = boxes(box, size=size, relative=relative)
    report = made(monkeypatch, [sample], {"a": (tmp_path / "photo.jpg").read_bytes()})
    assert flaws(report).get("orientation_unclear", 0) == unclear
    assert report.scan.contents["orientation"] == {str(orientation): 1}


@pytest.mark.parametrize(
    ("mode", "suffix", "content"),
    [
        ("L", "png", ("PNG", "grey")),
        ("RGBA", "png", ("PNG", "RGBA")),
        ("P", "png", ("PNG", "palette")),
        ("I;16", "png", ("PNG", "grey-16")),
        ("L", "jpeg", ("JPEG", "grey")),
        ("CMYK", "jpeg", ("JPEG", "CMYK")),
        ("RGB", "webp", ("WEBP", "RGB")),
        ("P", "gif", ("GIF", "palette")),
        ("1", "tiff", ("TIFF", "1 bit")),
    ],
)
def test_kinds_of_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mode: str, suffix: str, content: tuple[str, str]
) -> None:
    path = tmp_path / f"image.{suffix}"
    picture = PIL.Image.fromarray(scene(0))
    deep = PIL.Image.fromarray(np.arange(12, dtype=np.uint16).reshape(3, 4))
    (deep if mode == "I;16" else picture.convert(mode)).save(path)
    report = made(monkeypatch, [Sample("a", "train", "a", "", 0)], {"a": path.read_bytes()})
    assert (*report.scan.contents["format"], *report.scan.contents["mode"]) == content


def test_what_a_run_would_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [Sample(str(i), "train", str(i), "", i % 2) for i in range(10)]
    samples += [Sample(f"t{i}", "test", "missing", "") for i in range(5)]  # the test split is not read by a run
    images = {str(i): scene(i) for i in range(10)}
    assert made(monkeypatch, samples, images).refused is None
    del images["3"]
    assert "1 of 10 images" in str(made(monkeypatch, samples, images).refused)
    assert made(monkeypatch, samples, images, max_bad_fraction=0.1).refused is None
    assert "1 of 1 images" in str(made(monkeypatch, samples[3:4], images, max_bad_fraction=1.0).refused)
    assert made(monkeypatch, samples[10:], images).refused == "there are no training images"


def test_examples_are_limited_but_all_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanning, "EXAMPLES", 3)
    report = made(monkeypatch, [Sample(str(i), "train", str(i), "", 0) for i in range(8)], {})
    assert flaws(report)["missing_image"] == 8
    assert len(ids(report, "missing_image")) == 3


def test_few_images_are_open_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the rest is, the threads do not run ahead with what they read."""
    total, threads, opened, most = 2000, 2, 0, 0
    lock = threading.Lock()

    class Counting(dict[str, Any]):
        def __contains__(self, key: object) -> bool:
            nonlocal opened
            with lock:
                opened += 1
            return False

    def progress(done: int, total: int) -> None:
        nonlocal most
        threading.Event().wait(0.002)
        most = max(most, opened - done)

    samples = [Sample(f"{i:04d}", "train", str(i), "", 0) for i in range(total)]
    made(monkeypatch, samples, Counting(), threads=threads, on_progress=progress)
    assert opened == total
    assert most <= 4 * threads * scanning.CHUNK


# ------------------------------------------------------------------------------------------------ duplicates


def thumbnails(*pictures: np.ndarray) -> np.ndarray:
    grey = [cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in pictures]
    return np.stack([cv2.resize(picture, (16, 16), interpolation=cv2.INTER_AREA) for picture in grey])


def again(picture: Image, quality: int, factor: float = 1) -> Image:
    smaller = cv2.resize(picture, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    data = cv2.imencode(".jpg", smaller, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return cv2.imdecode(data, cv2.IMREAD_COLOR)  # type: ignore[return-value]


def test_copies() -> None:
    digests = np.array([[1] * 16, [2] * 16, [1] * 16, [3] * 16, [2] * 16, [1] * 16, [3] * 16], np.uint8)
    there = np.array([1, 1, 1, 1, 1, 1, 0], bool)
    assert copies(digests, there) == [[0, 2, 5], [1, 4]]
    assert copies(digests, ~there) == []
    assert copies(digests, there & False) == []


@pytest.mark.parametrize("quality", [95, 75, 50])
@pytest.mark.parametrize("factor", [1, 0.6])
def test_pictures_that_were_saved_again_look_the_same(quality: int, factor: float) -> None:
    originals = [scene(i, 180, 240) for i in range(40)]
    pictures = originals + [again(picture, quality, factor) for picture in originals]
    groups = lookalikes(thumbnails(*pictures), np.ones(80, bool))
    assert groups == [[i, i + 40] for i in range(40)]


def test_other_pictures_do_not() -> None:
    scenes = [scene(i) for i in range(200)] + [noise(96, 128, i) for i in range(5)]
    shades = [np.full((20, 20, 3), value, np.uint8) for value in range(0, 256, 15)]
    dot = np.full((96, 128, 3), 255, np.uint8)
    dots = [cv2.circle(dot.copy(), (x, 40), 9, (30, 60, 90), -1) for x in range(10, 120, 10)]
    pictures = [*scenes, *shades, *dots]
    assert lookalikes(thumbnails(*pictures), np.ones(len(pictures), bool)) == []


# ------------------------------------------------------------------------------------------------ histograms


def test_histogram() -> None:
    histogram = Histogram(1, 1024)
    histogram.add([640] * 90 + [480] * 10)
    histogram.add([])
    content = histogram.to_json()
    assert content is not None
    assert {name: content[name] for name in ("min", "median", "mean", "max")} == {
        "min": 480,
        "median": 640,
        "mean": 624,
        "max": 640,
    }
    assert (content["counts"][0], content["counts"][-1], sum(content["counts"])) == (10, 90, 100)
    assert len(content["edges"]) == len(content["counts"]) + 1
    assert content["edges"][0] <= 480 < content["edges"][1]
    assert content["edges"][-2] <= 640 < content["edges"][-1]
    assert Histogram(1, 2).to_json() is None


def test_whole_numbers_have_bins_of_their_own() -> None:
    histogram = Histogram(1, 1024, steps=1, whole=4)
    histogram.add([0, 0, 1, 2, 3, 3, 4, 7, 8, 5000])
    assert histogram.counts.tolist()[:6] == [2, 1, 1, 2, 2, 1]
    assert histogram.counts.sum() == 10
    assert histogram.counts[-1] == 1


# ------------------------------------------------------------------------------------------------------ page


class Page(HTMLParser):
    """The tags of a page with their attributes, and its visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def pictures(self) -> dict[str, list[Image]]:
        """Decoded, by the sample's id."""
        found: dict[str, list[Image]] = {}
        for tag, attributes in self.tags:
            if tag == "img":
                head, data = str(attributes["src"]).split(",")
                assert head == "data:image/jpeg;base64"
                pixels = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR_RGB)
                found.setdefault(str(attributes["alt"]), []).append(pixels)  # type: ignore[arg-type]
        return found


def test_the_page_shows_what_was_found_and_needs_nothing_else(dirty: Path) -> None:
    report = check_manifest(read_manifest(str(dirty), splits=SPLITS), str(dirty))
    html = render(report, "auto", 2)
    page = Page(html)
    assert "A run refuses this data: 4 of 25 images" in page.text
    for flaw in report.flaws:
        assert flaw.title[1:] in page.text
    assert "train/dog/nowhere.png: there is no such file" in page.text
    assert {"train/cat/0.png", "val/cat/leak.png"} <= page.pictures.keys()
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe"}
    assert not re.search(r"(src|href)=\"(?!data:image/jpeg;base64,|#)", html)
    assert "http" not in html.replace("http://www.w3.org", "")
    assert len(html) < 2_000_000


def test_names_are_escaped(tmp_path: Path) -> None:
    name = "<script>alert('&')</script>"
    for i in range(2):
        save(tmp_path / "x" / "train" / name.replace("/", "") / f'"{i}".png', scene(i))
        save(tmp_path / "x" / "train" / "plain" / f"{i}.png", scene(i + 2))
    page = Page(render(check_manifest(read_manifest(str(tmp_path / "x"), splits=SPLITS), "<b>"), "auto", 1))
    assert "script" not in {tag for tag, _ in page.tags}
    assert "<b>" in page.text
    assert name.replace("/", "") in page.text
    assert f'train/{name.replace("/", "")}/"0".png' in page.pictures


def test_boxes_and_masks_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Orange is the class of the sheet; a polygon is filled; a small object gets a picture of its surroundings."""
    outline = [[300.0, 100.0, 500.0, 100.0, 500.0, 300.0, 300.0, 300.0]]
    samples = [
        boxes((0, 100.0, 50.0, 300.0, 350.0), (1, 400.0, 50.0, 500.0, 350.0), id="whole"),
        boxes((0, 500.0, 300.0, 520.0, 320.0), id="small"),
        Sample("mask", "train", "mask", "", objects=(Instance(0, None, outline),)),
    ]
    images = {s.id: np.full((400, 600, 3), 90 + 30 * i, np.uint8) for i, s in enumerate(samples)}
    report = made(monkeypatch, samples, images)
    assert report.to_json()["data"]["labels"] == "masks"
    pictures = Page(render(report, "auto", 1)).pictures

    def orange(picture: Image) -> np.ndarray:
        channels = picture.astype(int)
        return (channels[..., 0] > 150) & (channels[..., 2] < 115) & (channels[..., 0] > channels[..., 1] + 40)

    def extent(marked: np.ndarray) -> tuple[int, int, int, int]:
        rows, columns = np.flatnonzero(marked.any(1)), np.flatnonzero(marked.any(0))
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1

    whole = next(p for p in pictures["whole"] if orange(p).any())
    scale = whole.shape[1] / 600
    assert whole.shape[0] == round(400 * scale)
    assert np.abs(np.array(extent(orange(whole))) - np.array([100, 50, 300, 350]) * scale).max() <= 3
    assert not orange(whole)[30:80, 40:70].any(), "a box is not filled"

    small = next(p for p in pictures["small"] if orange(p).any())
    assert small.shape[0] == small.shape[1]
    left, top, right, bottom = extent(orange(small))
    assert right - left > small.shape[1] / 5
    assert abs((left + right) - small.shape[1]) <= 4
    assert abs((top + bottom) - small.shape[0]) <= 4

    mask = next(p for p in pictures["mask"] if orange(p).any())
    assert orange(mask).mean() == pytest.approx(200 * 200 / (400 * 600), rel=0.15)


def test_the_template_lies_in_the_package() -> None:
    assert files("orchestrator.checking").joinpath("check.html.j2").is_file()


# --------------------------------------------------------------------------------------- targets and outputs


def test_targets(tmp_path: Path) -> None:
    yolo = tmp_path / "data.yaml"
    yolo.write_text("names: [a, b]\ntrain: images\n")
    assert find_target(str(yolo)) == Target(str(yolo))
    assert find_target("digits", format="digits") == Target("digits", "digits")
    assert find_target("s3://bucket/x.yaml") == Target("s3://bucket/x.yaml")
    config = tmp_path / "config.yaml"
    config.write_text("data: digits\nmodel: resnet18\nmax_bad_fraction: 0.2\nexif_labels: upright\n")
    found = find_target(str(config), ["data=other"], "coco")
    assert (found.location, found.format, found.frame, found.max_bad_fraction) == ("other", "coco", "upright", 0.2)


def test_targets_that_make_no_sense(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="overrides a config, but digits is data"):
        find_target("digits", ["epochs=3"])
    config = tmp_path / "config.yaml"
    config.write_text("data: digits\nmodel: resnet18\nepoch: 3\n")
    with pytest.raises(ConfigError, match=r"config.yaml:3: unknown key 'epoch'"):
        find_target(str(config))
    config.write_text("data: nowhere\nmodel: resnet18\n")
    with pytest.raises(ConfigError, match=r"config.yaml:1: data = nowhere: there is no file or folder"):
        check(str(config), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_outputs(tmp_path: Path, dirty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = check(str(dirty), out=tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["check.html", "check.json"]
    content = json.loads((tmp_path / "out" / "check.json").read_text())
    assert content == json.loads(json.dumps(report.to_json()))
    assert list(content) == [
        "format_version",
        "data",
        "images",
        "objects",
        "background",
        "classes",
        "files",
        "sizes",
        "flaws",
        "refused",
        "seconds",
    ]
    out = capsys.readouterr().out
    assert re.search(r"images +18 train, 7 val", out)
    assert re.search(r"cat +9 +3\n", out)
    assert "warning   1 picture in more than one split: train/cat/0.png = val/cat/leak.png" in out
    assert str(tmp_path / "out" / "check.html") in out


def test_the_documentation_names_every_kind_and_key(monkeypatch: pytest.MonkeyPatch) -> None:
    content = made(monkeypatch, [boxes((0, 1.0, 1.0, 9.0, 9.0))], {"a": scene(0)}).to_json()
    keys = {*KINDS, *content, *content["data"], *content["files"], *content["sizes"]["objects"], *content["flaws"][0]}
    text = (ROOT / "docs" / "check.md").read_text()
    assert not {key for key in keys if f"`{key}`" not in text}
    assert set(re.findall(r"`([a-z]+_[a-z]+)`", text)) - keys <= {"max_bad_fraction", "exif_labels"}


# ------------------------------------------------------------------------------------------------- real data


@pytest.mark.parametrize(
    ("name", "images", "objects", "found"),
    [
        ("bccd_voc", {"train": 205, "val": 87, "test": 72}, 4888, {"dropped_object": 2}),
        ("veg_yolo", {"train": 28, "val": 12}, 161, {"empty_class": 6}),
        ("nuts_coco", {"train": 18}, 165, {"no_validation": 1}),
    ],
)
def test_real_data(test_data: Path, name: str, images: dict[str, int], objects: int, found: dict[str, int]) -> None:
    report = check_manifest(read_manifest(str(test_data / name), splits=SPLITS), name, threads=2)
    content = report.to_json()
    assert content["images"] == images
    assert sum((content["objects"] or {}).values()) == objects
    assert flaws(report) == found
    assert content["refused"] is None
    if name == "bccd_voc":
        totals = {c["name"]: sum(c["objects"].values()) for c in content["classes"]}
        assert totals == {"RBC": 4155, "WBC": 372, "Platelets": 361}
        assert [i[0][-8:-4] for i in ids(report, "dropped_object")] == ["0338", "0343"]
