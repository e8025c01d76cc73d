"""The pictures of detectors: made from the details of a validation, opened again and looked at."""

from __future__ import annotations

import csv
import json
import warnings
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from orchestrator.data import masks
from orchestrator.data.cache import Cache, Stored
from orchestrator.data.objects import Objects
from orchestrator.plots import canvas
from orchestrator.plots.classes import ROWS, class_rows, plot_classes
from orchestrator.plots.examples import EXAMPLES, Picture, plot_predictions, plot_targets
from orchestrator.plots.objects import COLORS, CROWD, Marks, color_of, draw_marks, rgb
from orchestrator.plots.precision_recall import COLOURED, LOWEST, plot_precision_recall
from orchestrator.plots.sheet import CAPTION, GAP, LEGEND_NAMES, compose
from orchestrator.report import pictures_of, plot_details, plot_train_batch
from tests.pictures import row, write_cache
from trainables.contracts import Batch, Targets

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
GREY = (90, 90, 90)
RECALL = np.linspace(0, 1, 101).tolist()


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures saved, last one last."""
    saved: list[Figure] = []
    save = canvas.save_figure

    def keep(figure: Figure, out: Path, **options: Any) -> None:
        saved.append(figure)
        save(figure, out, **options)

    monkeypatch.setattr(canvas, "save_figure", keep)
    return saved


def read(path: Path) -> Pixels:
    """(height, width, 3) RGB."""
    picture = cv2.imread(str(path))
    assert picture is not None
    return np.asarray(picture[:, :, ::-1], dtype=np.uint8)


def grey(height: int, width: int) -> Pixels:
    return np.full((height, width, 3), GREY, np.uint8)


def where(picture: Pixels, color: tuple[int, int, int]) -> tuple[int, int, int, int] | None:
    """The bounds (x0, y0, x1, y1) of the pixels of exactly this colour."""
    y, x = np.nonzero((picture == color).all(axis=2))
    return (int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1) if len(x) else None


def runs(mask: Pixels) -> dict[str, Any]:
    from faster_coco_eval.core import mask as coco

    encoded = coco.encode(np.asfortranarray(mask))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode()}


def objects(boxes: Sequence[Sequence[float]], labels: Sequence[int], **more: Any) -> Objects:
    crowd = more.pop("crowd", [False] * len(labels))
    array = np.array(boxes, np.float32).reshape(-1, 4)
    return Objects(np.array(labels, np.int64), array, np.array(crowd, bool), **more)


def example(size: tuple[int, int], found: Sequence[tuple[Sequence[float], int, float]], **more: Any) -> dict[str, Any]:
    boxes, labels, scores = (list(part) for part in zip(*found, strict=True)) if found else ([], [], [])
    return {"id": 0, "size": list(size), "boxes": boxes, "labels": labels, "scores": scores} | more


def predictions(
    tmp_path: Path, picture: Picture, found: dict[str, Any], with_masks: bool = False, classes: int = 3
) -> tuple[Pixels, Pixels]:
    """The tiles of the one image: as labelled, as predicted."""
    names = [f"class {i}" for i in range(classes)]
    plot_predictions([found], lambda position: picture, names, tmp_path / "predictions.png", with_masks)
    sheet = read(tmp_path / "predictions.png")
    height, width = picture.image.shape[:2]
    top = 3 * CAPTION
    return sheet[top : top + height, GAP : GAP + width], sheet[
        top : top + height, GAP + width + 4 : GAP + 2 * width + 4
    ]


# ------------------------------------------------------------------------------------ drawing on an image


def test_a_box_is_drawn_where_it_is() -> None:
    drawn = draw_marks(grey(400, 400), Marks(np.array([[100.0, 120, 301, 340]]), [color_of(1)], [""]))
    assert where(drawn, color_of(1)) == (100, 120, 301, 340)
    assert (drawn[130:330, 110:290] == GREY).all()
    assert (drawn[:110] == GREY).all()


@pytest.mark.parametrize("box", [(-50, -50, 500, 500), (399.9, 399.9, 400, 400), (5, 5, 5, 5), (0, 0, 1, 1)])
def test_a_box_at_the_edge_stays_in_the_image(box: tuple[float, ...]) -> None:
    drawn = draw_marks(grey(400, 400), Marks(np.array([box]), [color_of(0)], ["a name"]))
    assert drawn.shape == (400, 400, 3)
    assert where(drawn, color_of(0)) is not None


def test_a_mask_is_a_shade_with_an_outline() -> None:
    mask = np.zeros((400, 400), np.uint8)
    mask[50:150, 200:300] = 1
    drawn = draw_marks(grey(400, 400), Marks(np.array([[200.0, 50, 300, 150]]), [(255, 0, 0)], [""], [mask]))
    assert tuple(drawn[100, 250]) == (147, 58, 58)  # 0.65 of the grey, 0.35 of the red
    assert tuple(drawn[50, 250]) == (255, 0, 0)
    assert tuple(drawn[100, 320]) == GREY


def test_names_do_not_cover_each_other() -> None:
    boxes = np.tile([[100.0, 100, 200, 200]], (30, 1))
    colors = [(i, 255 - i, 7) for i in range(30)]
    drawn = draw_marks(grey(400, 400), Marks(boxes, colors, ["a name"] * 30))
    labels = [place for color in colors if (place := where(drawn, color)) and place[3] - place[1] < 60]
    assert 1 <= len(labels) <= 4  # above and below the box, and in it
    crowded = draw_marks(
        grey(300, 300), Marks(np.random.default_rng(0).uniform(0, 300, (300, 4)), colors * 10, ["n"] * 300)
    )
    assert (crowded == GREY).all(axis=2).mean() > 0.2


def test_seven_classes_have_colours_that_differ_for_everybody() -> None:
    assert len(set(COLORS)) == 7
    assert color_of(0) == color_of(7) != color_of(1)


# --------------------------------------------------------------------------- predictions beside labels


def test_labels_are_left_and_predictions_right(tmp_path: Path) -> None:
    picture = Picture("a.jpg", grey(400, 600), (800, 1200), objects([[100, 200, 300, 400]], [0]))
    found = example((800, 1200), [([600, 400, 1000, 600], 1, 0.9), ([0, 0, 90, 90], 2, 0.1)])
    left, right = predictions(tmp_path, picture, found)
    box = where(left, color_of(0))
    assert box is not None
    assert box[0] == 50
    assert box[2:] == (150, 200)
    assert where(left, color_of(1)) is None
    box = where(right, color_of(1))
    assert box is not None
    assert box[0] == 300
    assert box[2:] == (500, 300)
    assert where(right, color_of(2)) is None, "a score of 0.1 is not worth a box"


def test_the_best_of_a_model_that_is_sure_of_nothing_are_drawn(tmp_path: Path) -> None:
    picture = Picture("a.jpg", grey(400, 600), (400, 600), None)
    found = [([10 * i, 10 * i, 10 * i + 40, 10 * i + 30], 0, 0.05 + i / 1000) for i in range(20)]
    _, right = predictions(tmp_path, picture, example((400, 600), found))
    box = where(right, color_of(0))
    assert box is not None
    assert box[1] > 80, "the ten best of twenty"


def test_masks_are_drawn_at_the_scale_of_the_picture(tmp_path: Path) -> None:
    full = np.zeros((800, 1200), np.uint8)
    full[200:400, 100:300] = 1
    labelled = objects([[100, 200, 300, 400]], [0], masks=(masks.encode(masks.crop(full)),))
    picture = Picture("a.jpg", grey(400, 600), (800, 1200), labelled)
    found = example((800, 1200), [([100, 200, 300, 400], 0, 0.9)], masks=[runs(full)])
    for tile in predictions(tmp_path, picture, found, with_masks=True):
        shaded = (tile[150, 50:150] != GREY).any(axis=1)
        assert shaded.all()
        assert (tile[150, :49] == GREY).all()
        assert (tile[150, 151:] == GREY).all()


def test_a_crowd_is_grey_and_an_object_without_mask_has_its_box(tmp_path: Path) -> None:
    labelled = objects([[10, 30, 100, 100], [200, 30, 300, 100]], [0, 1], crowd=[True, False], masks=(b"", b""))
    left, _ = predictions(tmp_path, Picture("a", grey(400, 600), (400, 600), labelled), example((400, 600), []), True)
    assert where(left, rgb(CROWD)) is not None
    assert where(left, color_of(0)) is None
    assert where(left, color_of(1)) is not None


def test_one_class_needs_no_names(tmp_path: Path) -> None:
    picture = Picture("a.jpg", grey(400, 600), (400, 600), objects([[100, 100, 300, 300]], [0]))
    left, right = predictions(tmp_path, picture, example((400, 600), [([100, 100, 300, 300], 0, 0.9)]), classes=1)
    assert where(left, color_of(0)) == (100, 100, 300, 300)
    above = where(right, color_of(0))
    assert above is not None
    assert above[1] < 100, "the score"


@pytest.mark.parametrize(("images", "size"), [(1, (8, 8)), (2, (3000, 100)), (5, (100, 2500)), (20, (700, 900))])
def test_sheets_of_any_images_are_of_a_size_that_can_be_looked_at(
    tmp_path: Path, images: int, size: tuple[int, int]
) -> None:
    labelled = objects([[1, 1, 5, 5]], [79])
    found = [example(size, [([1, 1, 6, 6], 3, 0.5)]) for _ in range(images)]
    classes = [f"class {i} with a name that is too long for any legend" for i in range(80)]
    plot_predictions(
        found, lambda p: Picture("x" * 500, grey(*size), size, labelled), classes, tmp_path / "p.png", False
    )
    height, width = read(tmp_path / "p.png").shape[:2]
    assert 300 <= width <= 3300
    assert height <= 3300
    assert images <= EXAMPLES or height < 2200


def test_a_legend_ends_where_it_gets_too_long() -> None:
    tile = grey(100, 100)
    short = compose([tile], ["caption"], 1, "headline", [(color_of(i), f"c{i}") for i in range(LEGEND_NAMES)])
    longer = compose([tile], ["caption"], 1, "headline", [(color_of(i), f"c{i}") for i in range(500)])
    assert longer.shape[0] - short.shape[0] == CAPTION


def test_a_training_batch_is_drawn_with_its_boxes_and_masks(tmp_path: Path) -> None:
    images = np.stack([grey(64, 64)] * 3)
    mask = np.zeros((1, 64, 64), np.uint8)
    mask[0, 16:48, 8:40] = 1
    boxes = [np.array([[8.0, 16, 40, 48]], np.float32), np.zeros((0, 4), np.float32), np.array([[0.0, 0, 64, 64]])]
    labels = [np.array([0]), np.array([], np.int64), np.array([1])]
    plot_targets(images, boxes, labels, [mask, mask[:0], None], ["a", "b"], tmp_path / "batch.png")
    sheet = read(tmp_path / "batch.png")
    side = 640
    first = sheet[3 * CAPTION : 3 * CAPTION + side, GAP : GAP + side]
    inside = first[side // 2, side * 24 // 64]
    assert tuple(inside) != GREY
    assert tuple(first[side * 60 // 64, side // 2]) == GREY


def test_the_train_batch_of_any_task_is_drawn(tmp_path: Path) -> None:
    images = torch.full((2, 3, 32, 32), 90, dtype=torch.uint8)
    nowhere = np.array([0, 1])
    plot_train_batch(Batch(images, torch.tensor([0, 1]), nowhere, 2), ["cat", "dog"], tmp_path / "classify.png")
    targets = [
        Targets(
            torch.tensor([[2.0, 2, 20, 20]]), torch.tensor([1]), torch.tensor([False]), torch.ones(1, 32, 32).byte()
        ),
        Targets(torch.zeros(0, 4), torch.zeros(0).long(), torch.zeros(0).bool(), torch.zeros(0, 32, 32).byte()),
    ]
    batch = Batch(images, torch.tensor([-1, -1]), nowhere, 2, targets)
    plot_train_batch(batch, ["cat", "dog"], tmp_path / "segment.png")
    assert where(read(tmp_path / "segment.png"), color_of(1)) is not None
    assert where(read(tmp_path / "classify.png"), color_of(1)) is None


# ------------------------------------------------------------------------------------------ curves and bars


def curve(area: float) -> list[float]:
    return [1.0 if recall < area else 0.0 for recall in RECALL]


def names_of(figure: Figure) -> list[str]:
    [legend] = [axes.get_legend() for axes in figure.axes]
    assert legend is not None
    return [text.get_text() for text in legend.get_texts()]


def test_the_legend_tells_the_area_under_each_curve(tmp_path: Path, figures: list[Figure]) -> None:
    names = ["_hidden", "$\\frac", "日本", "none"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_precision_recall(RECALL, [curve(0.5), curve(1.1), curve(0.0), None], names, tmp_path / "pr.png", "boxes")
    assert names_of(figures[-1]) == ["0.498  mean of 3 classes", "1.000  $\\frac", "0.495  _hidden", "0.000  日本"]


def test_of_many_classes_the_lowest_are_named(tmp_path: Path, figures: list[Figure]) -> None:
    classes = [f"a class name that is much too long for a legend, {i}" for i in range(80)]
    plot_precision_recall(RECALL, [curve(i / 80) for i in range(80)], classes, tmp_path / "pr.png", "masks")
    names = names_of(figures[-1])
    assert len(names) == LOWEST + 1 < COLOURED
    assert {name.rpartition(", ")[2] for name in names[1:]} == {str(i) for i in range(LOWEST)}
    assert len(figures[-1].axes[0].lines) == 81


@pytest.mark.parametrize("curves", [[None, None], [curve(0.5), None]])
def test_curves_of_no_class_or_one(tmp_path: Path, figures: list[Figure], curves: list[Any]) -> None:
    plot_precision_recall(RECALL, curves, ["a", "b"], tmp_path / "pr.png", "boxes")
    assert len(figures[-1].axes[0].lines) == sum(c is not None for c in curves)
    assert read(tmp_path / "pr.png").std() > 5


def class_row(name: str, value: float | None, objects: int = 5, masks: bool = False) -> dict[str, Any]:
    figures = {"map": value, "map50": value, "map75": value, "mar": value}
    return (
        {"name": name, "images": 3, "objects": objects}
        | figures
        | ({f"mask_{key}": number for key, number in figures.items()} if masks else {})
    )


def test_classes_are_sorted_and_those_without_objects_come_last(tmp_path: Path, figures: list[Figure]) -> None:
    details = {"classes": [class_row("low", 0.1), class_row("none", None, 0), class_row("$high$", 0.9, 1)]}
    plot_classes(class_rows(details, ()), tmp_path / "per_class.png")
    axes = figures[-1].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["$high$", "low", "none"]
    assert [text.get_text() for text in axes.texts] == ["0.900   1 object", "0.100   5 objects", "no objects"]


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.slow
def test_bars_of_a_thousand_classes(tmp_path: Path, figures: list[Figure], masks: bool) -> None:
    rows = [class_row(f"class {i} of the many that there are here", i / 1200 or None, 5, masks) for i in range(1000)]
    plot_classes(class_rows({"classes": rows}, ()), tmp_path / "per_class.png")
    axes = figures[-1].axes[0]
    assert len(axes.get_yticklabels()) == ROWS
    assert f"the {ROWS // 2} best and the {ROWS // 2} worst of 1,000" in axes.get_title()
    assert read(tmp_path / "per_class.png").shape[0] < 3000
    labels = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert not any(one.overlaps(other) for one, other in pairwise(labels))
    legend = axes.get_legend()
    assert legend is not None
    assert not legend.get_window_extent().overlaps(axes.title.get_window_extent())


# ------------------------------------------------------------------------------------ everything of a run


def detected(with_masks: bool) -> dict[str, Any]:
    mask = np.zeros((40, 50), np.uint8)
    mask[5:20, 5:30] = 1
    found = example((40, 50), [([5, 5, 30, 20], 1, 0.8)], **({"masks": [runs(mask)]} if with_masks else {}))
    curves = {"box": [curve(0.5), None]} | ({"mask": [curve(0.4), None]} if with_masks else {})
    rows = [class_row("cat", 0.5, 4, with_masks), class_row("dög", None, 0, with_masks)]
    return {"classes": rows, "pr": {"recall": RECALL} | curves, "examples": [found]}


def pictures(position: int) -> Picture:
    return Picture("a.jpg", grey(20, 25), (40, 50), objects([[5, 5, 30, 20]], [1]))


@pytest.mark.parametrize("with_masks", [False, True])
def test_the_details_of_a_detector_become_pictures_and_a_table(tmp_path: Path, with_masks: bool) -> None:
    details = json.loads(json.dumps(detected(with_masks)))
    plot_details(details, ("cat", "dög"), tmp_path, pictures)
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")}
    common = {"per_class.csv", "plots/per_class.png", "plots/pr_curve.png", "plots/predictions.png"}
    assert written == common | ({"plots/pr_curve_mask.png"} if with_masks else set())
    with (tmp_path / "per_class.csv").open(newline="", encoding="utf-8") as file:
        cat, dog = csv.DictReader(file)
    assert (cat["class"], cat["objects"], cat["map50"]) == ("cat", "4", "0.5")
    assert (dog["class"], dog["objects"], dog["map50"]) == ("dög", "0", "")
    assert ("mask_map" in cat) == with_masks


def test_the_details_of_a_classifier_become_pictures_and_a_table(tmp_path: Path) -> None:
    details = {"confusion": [[3, 1], [0, 0]], "class_accuracy": {"cat": 0.75, "dog": None}}
    plot_details(details, ("cat", "dog"), tmp_path, pictures)
    assert {p.name for p in (tmp_path / "plots").iterdir()} == {"per_class.png", "confusion_matrix.png"}
    assert (tmp_path / "per_class.csv").read_text().splitlines() == ["class,samples,accuracy", "cat,4,0.75", "dog,0,"]


def test_a_validation_set_without_objects_is_drawn_too(tmp_path: Path) -> None:
    details = {
        "classes": [class_row("cat", None, 0)],
        "pr": {"recall": RECALL, "box": [None]},
        "examples": [example((40, 50), [])],
    }
    plot_details(details, ("cat",), tmp_path, lambda p: Picture("a", grey(20, 25), (40, 50), objects([], [])))
    assert (tmp_path / "plots" / "predictions.png").exists()


def test_pictures_come_from_the_cache(tmp_path: Path) -> None:
    there = row("val/a.jpg", 7, -1, grey(12, 16), objects([[1, 2, 3, 4]], [0]))
    picture = pictures_of(Cache(write_cache(tmp_path / "cache", [there])))(0)
    assert picture.name == "val/a.jpg"
    assert picture.size == (12, 16)
    assert picture.image.shape == (12, 16, 3)
    assert picture.objects is not None
    assert picture.objects.boxes.tolist() == [[1, 2, 3, 4]]


def test_without_pixels_in_the_cache_the_image_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), grey(30, 40))
    labels = row(str(path), 7, -1, None, objects([[1, 2, 3, 4]], [0]))
    stored = Stored("voc", 20, "long", pixels=False)
    folder = write_cache(
        tmp_path / "cache", [replace(labels, image=str(path), height=30, width=40)], stored=vars(stored)
    )
    cache = Cache(folder)
    assert pictures_of(cache)(0).image.shape == (15, 20, 3)
    path.unlink()
    assert pictures_of(cache)(0).image.shape == (30, 40, 3), "grey, where it is gone"
