"""The pictures: each is written, opened again and looked at."""

import csv
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from orchestrator.plots import canvas
from orchestrator.plots.canvas import COLORS
from orchestrator.report import plot_batch, plot_confusion, plot_results

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

EMPTY_ROW = (217, 217, 217)
LONG = "a class name that is much too long for any picture, {} of them"


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


def count(picture: Pixels, color: str | tuple[int, int, int]) -> int:
    """Pixels of exactly this colour."""
    wanted = [round(255 * part) for part in to_rgb(color)] if isinstance(color, str) else color
    return int((picture == np.array(wanted)).all(axis=2).sum())


def panels(picture: Pixels) -> tuple[Pixels, Pixels, Pixels, Pixels]:
    """Loss, metrics, learning rate, throughput."""
    y, x = picture.shape[0] // 2, picture.shape[1] // 2
    return picture[:y, :x], picture[:y, x:], picture[y:, :x], picture[y:, x:]


def write(path: Path, epochs: int, **columns: Callable[[int], Any]) -> Path:
    """A results.csv with the columns of a run, and others."""
    shapes: dict[str, Callable[[int], Any]] = {
        "epoch": lambda e: e,
        "step": lambda e: 94 * e,
        "train_loss": lambda e: 2 / e,
        "lr": lambda e: 0.001 * (1 - e / epochs / 2),
        "images_per_second": lambda e: 1000 + e % 7,
        "data_wait_fraction": lambda e: 0.02,
        "gpu_utilization": lambda e: "",
        "gpu_memory_peak_bytes": lambda e: "",
        "val_loss": lambda e: 2 / e + 0.1,
        "top1": lambda e: 1 - 0.8 / e,
        "top5": lambda e: 1 - 0.4 / e,
        "mean_class_accuracy": lambda e: 1 - 0.9 / e,
        "seconds": lambda e: 3.4,
    }
    shapes |= columns
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(shapes)
        writer.writerows([shape(epoch) for shape in shapes.values()] for epoch in range(1, epochs + 1))
    return path


def draw(tmp_path: Path, epochs: int, metric: str = "top1", **columns: Callable[[int], Any]) -> Pixels:
    out = tmp_path / "plots" / "results.png"
    plot_results(write(tmp_path / "results.csv", epochs, **columns), out, metric, "min" if "loss" in metric else "max")
    return read(out)


@pytest.mark.parametrize("epochs", [1, 300])
def test_results_of_any_length(tmp_path: Path, epochs: int) -> None:
    picture = draw(tmp_path, epochs)
    assert picture.shape == (960, 1408, 3)
    loss, metrics, rate, speed = panels(picture)
    assert [count(loss, color) > 20 for color in COLORS[:3]] == [True, True, False]
    assert [count(metrics, color) > 20 for color in COLORS[:4]] == [True, True, True, False]
    assert count(rate, COLORS[0]) > 20
    assert count(speed, COLORS[0]) > 20


def test_results_with_empty_cells_still_have_their_curve(tmp_path: Path) -> None:
    sparse = draw(tmp_path, 50, val_loss=lambda e: "" if e % 5 else 2 / e, train_loss=lambda e: "")
    loss, *_ = panels(sparse)
    assert count(loss, COLORS[0]) > 200
    assert count(loss, COLORS[1]) == 0


def test_results_with_other_columns(tmp_path: Path, figures: list[Figure]) -> None:
    draw(tmp_path, 5, box_loss=lambda e: 1 / e, f1=lambda e: 0.5, temperature=lambda e: 71, host=lambda e: "node-1")
    loss, metrics, *_ = figures[-1].axes
    assert [line.get_label() for line in loss.lines] == ["train_loss", "val_loss", "box_loss"]
    drawn = [str(line.get_label()) for line in metrics.lines]
    assert [name for name in drawn if not name.startswith("_")] == ["top1", "top5", "mean_class_accuracy", "f1"]


def test_a_detectors_metrics_by_area_are_left_to_the_file(tmp_path: Path, figures: list[Figure]) -> None:
    columns = {name: lambda e: 0.1 * e for name in ("map", "map50", "map_small", "map_medium", "map_large", "mar")}
    draw(tmp_path, 5, "map", **columns, loss_box_reg=lambda e: 0.5, top1=lambda e: "", top5=lambda e: "")
    loss, metrics, *_ = figures[-1].axes
    assert [line.get_label() for line in loss.lines] == ["train_loss", "val_loss", "loss_box_reg"]
    drawn = [str(line.get_label()) for line in metrics.lines]
    assert [n for n in drawn if not n.startswith("_")] == ["map", "mean_class_accuracy", "map50", "mar"]
    draw(tmp_path, 5, "map_small", **columns)
    assert figures[-1].axes[1].lines[0].get_label() == "map_small"


def test_results_that_are_not_numbers(tmp_path: Path, figures: list[Figure]) -> None:
    draw(
        tmp_path, 3, train_loss=lambda e: "nan" if e == 1 else "inf" if e == 2 else 0.5, images_per_second=lambda e: ""
    )
    loss, _, _, speed = figures[-1].axes
    assert np.asarray(loss.lines[0].get_ydata()).tolist() == [0.5]
    assert [text.get_text() for text in speed.texts] == ["not measured"]


def star(panel: Pixels) -> tuple[float, float] | None:
    """Where the marker of the best epoch is: the one black thing that is thicker than lines and letters."""
    ink = (panel.max(axis=2) < 60).astype(np.uint8)
    y, x = np.nonzero(cv2.erode(ink, np.ones((6, 6), np.uint8)))
    return (float(x.mean()) / panel.shape[1], float(y.mean()) / panel.shape[0]) if len(x) else None


def test_the_best_epoch_is_marked(tmp_path: Path, figures: list[Figure]) -> None:
    peak = {"top1": lambda e: 0.9 - 0.1 * abs(e - 3), "val_loss": lambda e: 0.5 + abs(e - 7)}
    loss, metrics, *_ = panels(draw(tmp_path, 9, "top1", **peak))
    assert figures[-1].axes[1].get_title() == "Validation metrics: best top1 0.9000 at epoch 3"
    early = star(metrics)
    assert early is not None
    assert star(loss) is None
    loss, metrics, *_ = panels(draw(tmp_path, 9, "val_loss", **peak))
    assert figures[-1].axes[0].get_title() == "Loss: best val_loss 0.5000 at epoch 7"
    late = star(loss)
    assert late is not None
    assert star(metrics) is None
    assert late[0] - early[0] > 0.2


def confusion(size: int, per_class: int = 10) -> list[list[int]]:
    """Nine of ten right, one taken for the next class."""
    matrix = (per_class - 1) * np.eye(size, dtype=int) + np.roll(np.eye(size, dtype=int), 1, axis=1)
    rows: list[list[int]] = matrix.tolist()
    return rows


def confuse(
    tmp_path: Path, figures: list[Figure], matrix: Sequence[Sequence[int]], classes: Sequence[str]
) -> tuple[Pixels, Axes]:
    plot_confusion(matrix, classes, tmp_path / "confusion_matrix.png")
    return read(tmp_path / "confusion_matrix.png"), figures[-1].axes[0]


@pytest.mark.parametrize(("size", "labels"), [(2, 2), (100, 100), (1000, 50)])
def test_a_confusion_matrix_of_any_size(tmp_path: Path, figures: list[Figure], size: int, labels: int) -> None:
    picture, axes = confuse(tmp_path, figures, confusion(size), [LONG.format(i) for i in range(size)])
    assert max(picture.shape) < 2300
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert len(names) == len(axes.get_xticklabels()) == labels
    assert max(map(len, names)) <= 32
    assert names[1].endswith("1 of them" if labels == size else "20 of them")
    boxes = [label.get_window_extent() for label in [*axes.get_yticklabels(), *axes.get_xticklabels()]]
    for one, other in pairwise(boxes):
        assert not one.overlaps(other)
    assert min(min(box.x0, box.y0) for box in boxes) > 0
    assert axes.get_title() == f"{size:,} classes, {size * 10:,} samples, 90.0% right"


def test_counts_are_written_where_they_can_be_read(tmp_path: Path, figures: list[Figure]) -> None:
    _, axes = confuse(tmp_path, figures, [[123, 5], [0, 7]], ["cat", "dog"])
    assert [text.get_text() for text in axes.texts] == ["123", "5", "0", "7"]
    _, axes = confuse(tmp_path, figures, confusion(8, 1234567), [str(i) for i in range(8)])
    assert max(text.get_window_extent().width for text in axes.texts) < axes.get_window_extent().width / 8
    _, axes = confuse(tmp_path, figures, confusion(26), [str(i) for i in range(26)])
    assert not axes.texts


def test_the_colour_is_the_share_of_the_true_class(tmp_path: Path, figures: list[Figure]) -> None:
    picture, axes = confuse(tmp_path, figures, [[1000, 0], [5, 5]], ["cat", "dog"])
    box = axes.get_window_extent()
    height = picture.shape[0]

    def shade(row: int, column: int) -> int:
        """Red of a pixel near the upper left corner of a cell: the less, the darker the blue."""
        x, y = box.x0 + (column + 0.1) * box.width / 2, height - box.y1 + (row + 0.1) * box.height / 2
        return int(picture[round(y), round(x), 0])

    assert shade(0, 0) + 50 < shade(1, 0) < shade(0, 1) - 50
    assert shade(1, 0) == shade(1, 1)


def test_a_row_without_samples_is_shown_as_such(tmp_path: Path, figures: list[Figure]) -> None:
    picture, axes = confuse(tmp_path, figures, [[5, 0, 0], [0, 0, 0], [1, 0, 4]], ["a", "b", "c"])
    assert count(picture, EMPTY_ROW) > 0.9 * axes.get_window_extent().width * axes.get_window_extent().height / 3
    assert "grey rows: no samples" in axes.get_title()
    assert len(axes.texts) == 6
    picture, axes = confuse(tmp_path, figures, [[5, 0], [1, 0]], ["a", "b"])
    assert count(picture, EMPTY_ROW) < 100
    assert "grey" not in axes.get_title()


def test_names_are_not_read_as_formulas(tmp_path: Path, figures: list[Figure]) -> None:
    names = ["$5 bill$", r"$\frac$", "日本"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, axes = confuse(tmp_path, figures, confusion(3), names)
        plot_batch(np.zeros((3, 8, 8, 3), np.uint8), names, tmp_path / "batch.png")
    assert [label.get_text() for label in axes.get_yticklabels()] == names
    assert [text.get_text() for text in figures[-1].texts] == names


def mosaic(tmp_path: Path, images: Pixels, titles: Sequence[str]) -> Pixels:
    plot_batch(images, titles, tmp_path / "train_batch.png")
    return read(tmp_path / "train_batch.png")


@pytest.mark.parametrize(
    ("images", "size", "tile", "shape"),
    [(1, 32, 256, (288, 264)), (5, 32, 256, (576, 792)), (70, 32, 224, (2048, 1856)), (2, 1200, 992, (1024, 2000))],
)
def test_a_mosaic_of_any_batch(tmp_path: Path, images: int, size: int, tile: int, shape: tuple[int, int]) -> None:
    picture = mosaic(tmp_path, np.full((images, size, size, 3), 200, np.uint8), [""] * images)
    assert picture.shape[:2] == shape
    assert count(picture, (200, 200, 200)) == min(images, 64) * tile**2


def test_every_image_is_in_its_place_and_its_colours(tmp_path: Path) -> None:
    colors = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)]
    images = np.stack([np.full((32, 32, 3), color, np.uint8) for color in colors])
    picture = mosaic(tmp_path, images, "abcd")
    height, width = picture.shape[0] // 2, picture.shape[1] // 2
    for i, color in enumerate(colors):
        tile = picture[i // 2 * height :, i % 2 * width :][:height, :width]
        assert count(tile, color) == 256 * 256


def test_small_images_are_enlarged_without_smoothing(tmp_path: Path) -> None:
    image = np.zeros((1, 32, 32, 3), np.uint8)
    image[:, ::2, ::2] = 255
    tile = mosaic(tmp_path, image, [""])[24 : 24 + 256, 4 : 4 + 256]
    np.testing.assert_array_equal(tile, image[0].repeat(8, 0).repeat(8, 1))


def test_captions_fit_over_their_image(tmp_path: Path, figures: list[Figure]) -> None:
    mosaic(tmp_path, np.zeros((9, 32, 32, 3), np.uint8), [LONG.format(i) for i in range(9)])
    captions = figures[-1].texts
    assert max(caption.get_window_extent().width for caption in captions) <= 256
    assert all(caption.get_text().startswith("a class name") for caption in captions)
    assert captions[8].get_text().endswith("8 of them")
    picture = mosaic(tmp_path, np.full((2, 32, 32, 3), 255, np.uint8), ["cat", ""])
    half = picture.shape[1] // 2
    assert (picture[:24, :half] < 100).any()
    assert (picture[:, half:] == 255).all()


def test_matplotlib_is_imported_with_the_first_picture() -> None:
    code = "import sys, orchestrator.report; print({'matplotlib', 'torch', 'ray'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
