"""The pictures of a sweep: drawn, and their lines, points, bars and words looked at."""

from __future__ import annotations

import math
import random
import warnings
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import same_color

from orchestrator.plots import canvas
from orchestrator.plots.canvas import COLORS
from orchestrator.sweeps import importance, pictures
from orchestrator.sweeps.axes import scale_of
from orchestrator.sweeps.importance import FEWEST, draw_importance, importances
from orchestrator.sweeps.parallel import AXES, draw_parallel
from orchestrator.sweeps.pictures import draw_all, draw_curves, draw_saving
from orchestrator.sweeps.rates import draw_lr
from orchestrator.sweeps.records import Decision, Overview
from tests.sweep_overviews import overview, sweep, trial

OUT = "picture.png"
ALL = ["curves", "parallel", "importance", "lr", "saving"]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures saved, last one last."""
    saved: list[Any] = []
    save = canvas.save_figure

    def keep(figure: Any, out: Path, **options: Any) -> None:
        saved.append(figure)
        save(figure, out, **options)

    monkeypatch.setattr(canvas, "save_figure", keep)
    return saved


def words(figure: Any) -> str:
    """Everything that is written on the figure."""
    found = [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]
    return " | ".join(text for text in found if text)


def fail(message: str) -> None:
    raise AssertionError(message)


def by_lr(number: int, **more: Any) -> Overview:
    """Trials whose value follows from their lr alone, and a key that does nothing."""
    draw = random.Random(0)
    trials = []
    for i in range(number):
        lr = 10 ** draw.uniform(-5, -1)
        params = {"lr": lr, "lrf": draw.random(), "optimizer": draw.choice(["SGD", "Adam"])}
        trials.append(trial(i, [1 - abs(math.log10(lr) + 3) / 3], params=params, status="finished"))
    return overview(trials, scales={"lrf": "linear", "lr": "log", "optimizer": "category"}, **more)


@pytest.mark.parametrize(("number", "keys", "mode"), [(0, 4, "max"), (1, 1, "max"), (3, 12, "min"), (1000, 4, "max")])
def test_every_picture_is_drawn(number: int, keys: int, mode: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = draw_all(sweep(number, keys, mode=mode), tmp_path, fail)
    assert drawn == [tmp_path / "plots" / f"{name}.png" for name in ALL]
    for path in drawn:
        picture = cv2.imread(str(path))
        assert picture is not None
        assert picture.shape[1] == 10 * canvas.DPI
        assert picture.std() > 1


def test_a_picture_that_fails_does_not_cost_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> None:
        raise RuntimeError("no ink")

    monkeypatch.setattr(pictures, "draw_curves", broken)
    monkeypatch.setattr(importance, "_fanova", broken)
    monkeypatch.setattr(pictures, "draw_importance", lambda *args: importances(args[0]))
    warned: list[str] = []
    drawn = draw_all(replace(sweep(12), scales={"optimizer": "category"}), tmp_path, warned.append)
    assert [path.stem for path in drawn] == ["parallel", "saving"]  # lr is not searched
    assert warned == ["curves.png could not be drawn: no ink", "importance.png could not be drawn: no ink"]


def test_the_best_curve_is_bold_and_named(tmp_path: Path, figures: list[Any]) -> None:
    trials = [
        trial(4, [0.2, 0.6, 0.5], status="finished"),
        trial(5, [0.1, None, 0.9, math.nan], status="finished"),
        trial(6, [0.3], status="stopped", because="asha"),
    ]
    draw_curves(overview(trials), tmp_path / OUT)
    axes = figures[-1].axes[0]
    assert "the best is trial 5 with 0.9000 at epoch 3" in axes.get_title(loc="left")
    bold = max(axes.lines, key=lambda line: line.get_linewidth())
    assert np.array_equal(bold.get_xydata(), [[1, 0.1], [3, 0.9]])
    star = next(line for line in axes.lines if line.get_marker() == "*")
    assert star.get_xydata().tolist() == [[3, 0.9]]
    draw_curves(overview(trials, mode="min"), tmp_path / OUT)
    assert "the best is trial 5 with 0.1000 at epoch 1" in figures[-1].axes[0].get_title(loc="left")


def test_a_cross_tells_where_a_trial_was_stopped(tmp_path: Path, figures: list[Any]) -> None:
    trials = [
        trial(0, [0.5] * 9, status="finished"),
        trial(1, [0.2, 0.4], status="stopped", because="asha"),
        trial(2, [0.3, 0.3, 0.3, 0.2], status="stopped", because="patience"),
        trial(3, [], status="failed", because="no memory"),
    ]
    decisions = [Decision(0, 3, 3, 0.5, None, 1, False), Decision(1, 3, 3, 0.4, 0.45, 2, True)]
    draw_curves(overview(trials, decisions=[*decisions, replace(decisions[1], cutoff=0.47)]), tmp_path / OUT)
    axes = figures[-1].axes[0]
    markers = {line.get_marker(): line for line in axes.lines}
    assert markers["x"].get_xydata().tolist() == [[2, 0.4]]
    assert same_color(markers["x"].get_color(), COLORS[1])
    assert markers["D"].get_xydata().tolist() == [[4, 0.2]]
    assert markers["_"].get_xydata().tolist() == [[3, 0.47]]
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert {"finished (1)", "stopped by asha (1)", "stopped by patience (1)"} < set(legend)
    assert not any("failed" in name for name in legend)


def test_losses_over_decades_get_a_logarithmic_axis(tmp_path: Path, figures: list[Any]) -> None:
    trials = [trial(0, [2.0, 0.5], status="finished"), trial(1, [1e6, 1e5], status="finished")]
    draw_curves(overview(trials, mode="min"), tmp_path / OUT)
    assert figures[-1].axes[0].get_yscale() == "log"
    assert scale_of([0.001, 0.9]) == scale_of([-1, 1e6]) == scale_of([2.0, 9.0]) == "linear"


def heights(figure: Any) -> np.ndarray:
    """(trials, axes): where each line of a picture in parallel coordinates crosses its axes, the best last."""
    axes = figure.axes[0]
    (others,) = [artist for artist in axes.collections if isinstance(artist, LineCollection)]
    best = max(axes.lines, key=lambda line: line.get_linewidth()).get_xydata()
    rows = []
    for line in [*others.get_segments(), best]:
        rows.append([line[line[:, 0] == x, 1][0] for x in np.unique(np.round(line[:, 0]))])
    return np.array(rows)


def test_lines_cross_the_axes_at_their_values(tmp_path: Path, figures: list[Any]) -> None:
    params = [{"lr": 1.0, "batch": 16, "amp": True}, {"lr": 0.1, "batch": 32, "amp": False}, {"lr": 0.01, "batch": 48}]
    trials = [trial(i, [0.3 * (i + 1)], params=p, status="finished") for i, p in enumerate(params)]
    made = overview(trials, scales={"lr": "log", "batch": "linear", "amp": "category"})
    draw_parallel(made, tmp_path / OUT)
    assert heights(figures[-1]) == pytest.approx(
        np.array([[1, 0, 1, 0], [0.5, 0.5, 0, 0.5], [0, 1, -0.1, 1]]), abs=1e-6
    )
    assert "not set" in words(figures[-1])
    assert "the best (trial 2)" in words(figures[-1])
    draw_parallel(replace(made, mode="min"), tmp_path / OUT)
    assert heights(figures[-1])[-1] == pytest.approx([1, 0, 1, 1], abs=1e-6)


def test_the_most_important_keys_are_drawn(tmp_path: Path, figures: list[Any]) -> None:
    made = sweep(12, keys=14)
    shares = {name: (1 + i) / 100 for i, name in enumerate(made.scales)}
    draw_parallel(made, tmp_path / OUT, shares)
    assert heights(figures[-1]).shape[1] == AXES + 1
    titles = [text for text in figures[-1].axes[0].texts if text.get_fontweight() == "bold"]
    shown = [text.get_text().replace("\n", "") for text in titles]
    assert shown == ["…".join((n[:13], n[-12:])) if len(n) > 26 else n for n in list(shares)[:3:-1]] + ["top1"]
    assert "the 4 least important keys are left out" in words(figures[-1])


def test_what_decides_is_found_and_is_always_the_same() -> None:
    found = importances(by_lr(24))
    assert next(iter(found)) == "lr"
    assert found["lr"] > 0.6
    assert sum(found.values()) == pytest.approx(1)
    assert found == importances(by_lr(24))
    assert found == pytest.approx(importances(by_lr(24, mode="min")), abs=0.15)


def test_a_learning_rate_counts_by_decades() -> None:
    """Over the linear axis almost all of the range is one decade, in which the values hardly differ."""
    log = linear = by_lr(40)
    linear = replace(linear, scales={**linear.scales, "lr": "linear"})
    assert importances(log)["lr"] > importances(linear)["lr"]


def test_keys_that_are_missing_or_constant_do_no_harm() -> None:
    made = by_lr(24)
    for one in made.trials:
        one.params["epochs"] = 9
    for one in made.trials[::4]:
        del one.params["lrf"], one.params["optimizer"]
    made.trials[3].params["lr"] = "auto"
    scales = {**made.scales, "epochs": "linear", "never": "log", "nothing": "category"}
    found = importances(replace(made, scales=scales))
    assert found.keys() == scales.keys()
    assert found["epochs"] == found["never"] == found["nothing"] == 0
    assert next(iter(found)) == "lr"


def test_too_few_trials_are_told(tmp_path: Path, figures: list[Any]) -> None:
    draw_importance(by_lr(FEWEST - 1), tmp_path / OUT)
    assert f"too few trials: {FEWEST - 1} with a value, {FEWEST} are needed" in words(figures[-1])
    same = [trial(i, [0.5], params={"lr": 0.1 + i}) for i in range(20)]
    draw_importance(overview(same), tmp_path / OUT)
    assert "all 20 trials have the same top1" in words(figures[-1])


def test_a_bar_has_its_number(tmp_path: Path, figures: list[Any]) -> None:
    draw_importance(by_lr(FEWEST), tmp_path / OUT, {"lr": 0.75, "lrf": 0.249, "batch": 0.001, "amp": 0.0})
    axes = figures[-1].axes[0]
    assert [bar.get_width() for bar in axes.patches] == [0.75, 0.249, 0.001, 0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["lr", "lrf", "batch", "amp"]
    assert {"75%", "25%", "<1%", "0%"} <= set(words(figures[-1]).split(" | "))


def test_points_are_filled_where_a_trial_went_to_the_end(tmp_path: Path, figures: list[Any]) -> None:
    trials = [
        trial(0, [0.5], params={"lr": 0.1, "optimizer": "SGD"}, status="finished"),
        trial(1, [0.4], params={"lr": 0.01, "optimizer": "SGD"}, status="stopped", because="asha"),
        trial(2, [0.9], params={"lr": 0.001, "optimizer": "Adam"}, status="finished"),
        trial(3, [0.8], params={"optimizer": "Adam"}, status="finished"),
    ]
    assert draw_lr(overview(trials), tmp_path / OUT)
    axes = figures[-1].axes[0]
    points = {tuple(point): line for line in axes.lines[:4] for point in line.get_xydata().tolist()}
    assert points.keys() == {(0.1, 0.5), (0.01, 0.4), (0.001, 0.9)}
    assert points[0.1, 0.5].get_color() == points[0.01, 0.4].get_color() != points[0.001, 0.9].get_color()
    assert points[0.1, 0.5].get_markerfacecolor() == points[0.1, 0.5].get_color()
    assert same_color(points[0.01, 0.4].get_markerfacecolor(), "white")
    assert axes.get_xscale() == "log"
    assert "the best is 0.9000 at lr 0.001 with Adam" in words(figures[-1])
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["Adam", "SGD", "the best (trial 2)"]


def test_without_a_searched_lr_there_is_no_picture_of_it(tmp_path: Path) -> None:
    made = overview([trial(0, [0.5])], scales={"optimizer": "category"})
    assert not draw_lr(made, tmp_path / OUT)
    assert not (tmp_path / OUT).exists()


def test_the_areas_are_the_epochs(tmp_path: Path, figures: list[Any]) -> None:
    trials = [
        trial(0, [0.5] * 9, status="finished"),
        trial(1, [0.5] * 3, status="stopped", because="asha"),
        trial(2, [0.5] * 4, status="stopped", because="patience"),
        trial(3, [0.5] * 2, status="failed", because="no memory"),
    ]
    made = overview(trials)
    draw_saving(made, tmp_path / OUT)
    bars, steps = figures[-1].axes
    assert [bar.get_width() for bar in bars.patches] == [18, 29]
    trained, saved = (patch.get_data() for patch in steps.patches)
    assert trained.values.tolist() == [4, 4, 3, 2, 1, 1, 1, 1, 1]
    assert (saved.values - saved.baseline).sum() == made.epochs_saved == 11
    assert bars.get_title(loc="left").startswith("Stopping early saved 11 of 29 epochs (38%)")


def test_names_are_not_read_as_formulas(tmp_path: Path, figures: list[Any]) -> None:
    params = {"lr": 0.1, "$x$_{": "$y$"}
    trials = [trial(i, [i / 10], metric="$a^$", params=params, status="finished") for i in range(10)]
    made = overview(trials, metric="$a^$", scales={"lr": "log", "$x$_{": "category"})
    draw_all(made, tmp_path, fail)
    assert "$a^$ of 10 trials" in words(figures[0])
    for figure in figures:
        drawn = figure.findobj(lambda artist: hasattr(artist, "get_parse_math") and "$" in artist.get_text())
        assert all(not text.get_parse_math() for text in drawn if "mathdefault" not in text.get_text())


def test_ticks_do_not_overlap(tmp_path: Path, figures: list[Any]) -> None:
    made = sweep(40, keys=10)
    for one in made.trials:
        one.params["lr"] = max(one.params["lr"], 0.00099)  # The end of the axis is close to a tick.
    draw_parallel(made, tmp_path / OUT)
    axes, renderer = figures[-1].axes[0], figures[-1].canvas.get_renderer()
    places: dict[float, list[Any]] = {}
    for text in axes.texts:
        if text.get_bbox_patch():
            places.setdefault(text.get_position()[0], []).append(text.get_window_extent(renderer))
    assert len(places) == 11
    for boxes in places.values():
        for low, high in pairwise(sorted(boxes, key=lambda box: box.y0)):
            assert low.y1 <= high.y0 + 1
