"""`orchestrator val` in this process, on a run that was trained without Ray and a cache that is ready."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from orchestrator import supervisor
from orchestrator.config import Config, ConfigError
from orchestrator.data import Source
from orchestrator.data.cache import Stored, stored_side
from orchestrator.data.loader import Loader, View
from orchestrator.data.manifest import Manifest, read_manifest
from orchestrator.data.selection import select
from orchestrator.data.wrapped import RelabelledData
from orchestrator.errors import RunError
from orchestrator.evaluate import evaluate_run
from orchestrator.evaluating import evaluator, job
from orchestrator.evaluating.screen import SHOWN_CLASSES, ValScreen
from orchestrator.evaluating.subject import choose_subject
from orchestrator.storage import RunFolder
from orchestrator.trained import open_trained
from tests.pictures import row, write_cache
from trainables.augment import FITS
from trainables.checkpoint import BEST, LAST
from trainables.contracts import Batch, DataInfo, Metrics, State, Truth
from trainables.local import LocalRuntime
from trainables.loop import fit
from trainables.order import sample_keys
from trainables.tasks import build_task

SIZE = 8
COUNTS = {"train/cat": 7, "train/dog": 6, "val/cat": 5, "val/dog": 4, "test/cat": 2, "test/dog": 3}


@pytest.fixture(autouse=True)
def _threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "set_threads", lambda *arguments: 1)


def write_pictures(root: Path, counts: dict[str, int]) -> Path:
    """Noise, of which cats are brighter."""
    random = np.random.default_rng(0)
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True)
        for i in range(count):
            pixels = random.integers(0, 200, (SIZE, SIZE, 3), np.uint8) + np.uint8(40 * ("cat" in folder))
            cv2.imwrite(str(root / folder / f"{i}.png"), pixels)
    return root


def make_cache(config: Config, manifest: Manifest) -> None:
    """As a run would have left it, made without Ray."""
    side = stored_side(config.imgsz or SIZE, config.multi_scale)
    stored = Stored(manifest.format, side, FITS[config.task], config.exif_labels)
    folder = Path(str(config.cache_dir)) / stored.key(manifest)
    if folder.exists():
        return
    rows = [
        row(s.id, int(key), s.label, np.asarray(cv2.imread(s.image))[:, :, ::-1])
        for s, key in zip(manifest.samples(), sample_keys(manifest.table["id"].to_pylist()), strict=True)
    ]
    write_cache(folder, rows, stored=vars(stored))


def train(config: Config, manifest: Manifest, run: Path) -> list[Metrics]:
    """A run folder as the train command leaves it, as far as val looks at it."""
    from orchestrator.data.cache import Cache

    make_cache(config, manifest)
    [cache] = [path for path in Path(str(config.cache_dir)).iterdir() if path.is_dir()]
    selection, _ = select(manifest, config.val_fraction, config.fraction, config.seed)
    view = View(manifest.name, "", manifest.classes, SIZE, config.batch, 0, selection.train, selection.val)
    rows: list[Metrics] = []

    def on_report(metrics: Metrics, state: State | None) -> None:
        if state is not None:
            rows.append(metrics)

    (run / "checkpoints").mkdir(parents=True)
    with LocalRuntime(run / "checkpoints", on_report, device=torch.device("cpu")) as runtime:
        fit(config, build_task(config), Loader(Cache(cache), view), runtime)
    folder = RunFolder(run)
    folder.write_config(config)
    for values in rows:
        folder.append_result({key: value for key, value in values.items() if key != "details"})
    dataset = {"classes": list(manifest.classes), "fingerprint": manifest.fingerprint}
    folder.write_json("summary.json", {"dataset": dataset, "batch": {"per_worker": config.batch}})
    return rows


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Metrics]]:
    """A run of a data set with three splits, and its rows."""
    root = tmp_path_factory.mktemp("trained")
    data = write_pictures(root / "pets", COUNTS)
    config = Config(
        data=str(data), model="tests.tiny:conv", imgsz=SIZE, epochs=3, batch=4, lr=0.02, optimizer="SGD", ema=0.5,
        cache_dir=str(root / "cache"), amp=False, channels_last=True, patience=0,
    )  # fmt: skip
    rows = train(config, read_manifest(str(data)), root / "runs" / "pets" / "mine")
    make_cache(config, read_manifest(str(data), splits=("test",)))
    return root, rows


@pytest.fixture
def run(trained: tuple[Path, list[Metrics]], tmp_path: Path) -> Path:
    """A copy of the run's folder."""
    return Path(shutil.copytree(trained[0] / "runs", tmp_path / "runs")) / "pets" / "mine"


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the pictures."""
    monkeypatch.setattr(evaluator, "plot_details", lambda *arguments: None)


def best_row(rows: list[Metrics]) -> Metrics:
    return max(rows, key=lambda values: (values["top1"], -values["epoch"]))


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file() and "val" not in path.relative_to(folder).parts)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# ------------------------------------------------------------------------------------------- what it gives


def test_the_numbers_are_those_of_the_run(
    run: Path, trained: tuple[Path, list[Metrics]], capsys: pytest.CaptureFixture[str]
) -> None:
    before, best = digests(run), best_row(trained[1])
    found = evaluate_run(run)
    assert found.report["metrics"] == {name: best[name] for name in found.report["metrics"]}
    assert (found.report["epoch"], found.report["weights"]) == (best["epoch"], "ema")
    assert digests(run) == before, "nothing else of the run is touched"
    assert found.folder == run / "val" / "val-pets"
    assert json.loads((found.folder / "metrics.json").read_text()) == found.report
    assert found.report["dataset"]["images"] == 9
    assert {p.name for p in (found.folder / "plots").iterdir()} == {"per_class.png", "confusion_matrix.png"}
    with (found.folder / "per_class.csv").open() as file:
        assert [(line["class"], line["samples"]) for line in csv.DictReader(file)] == [("cat", "5"), ("dog", "4")]
    told = capsys.readouterr().out
    assert f"top1                 {best['top1']:.4f}" in told
    assert "moving average" in told


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(("split", "images"), [("train", 13), ("val", 9), ("test", 5)])
def test_each_split_has_its_images_and_its_folder(run: Path, split: str, images: int) -> None:
    first, second = evaluate_run(run, split=split), evaluate_run(run, split=split)
    assert first.report["dataset"]["images"] == images
    assert sum(sum(counts) for counts in first.details["confusion"]) == images
    assert (first.folder.name, second.folder.name) == (f"{split}-pets", f"{split}-pets-2")
    assert first.report["metrics"] == second.report["metrics"]


@pytest.mark.usefixtures("quiet")
def test_checkpoints_and_weights_are_chosen(run: Path, trained: tuple[Path, list[Metrics]]) -> None:
    last = evaluate_run(run / "checkpoints" / "last")
    assert (last.report["checkpoint"], last.report["epoch"]) == ("last", 3)
    assert last.report["metrics"]["val_loss"] == trained[1][-1]["val_loss"]
    raw = evaluate_run(run / "checkpoints" / "last", weights="raw")
    assert raw.report["weights"] == "raw"
    assert raw.report["metrics"]["val_loss"] != last.report["metrics"]["val_loss"]


@pytest.mark.usefixtures("quiet")
def test_other_batches_and_sizes(run: Path, trained: tuple[Path, list[Metrics]]) -> None:
    found = evaluate_run(run, ["batch=9"])
    assert found.report["batch"] == 9
    best = best_row(trained[1])
    assert found.report["metrics"]["top1"] == best["top1"]
    assert found.report["metrics"]["val_loss"] == pytest.approx(best["val_loss"], abs=1e-6)


def reader(location: str) -> Source:
    """The images of a class folder tree, whose classes come in the order of the file classes.txt."""
    from orchestrator.data.imagefolder import FORMAT

    names = tuple((Path(location) / "classes.txt").read_text().split())
    found = FORMAT.read(location)
    from dataclasses import replace

    samples = [replace(s, label=names.index(found.classes[s.label])) for s in found.samples]
    return Source("turned", names, samples)


@pytest.mark.usefixtures("quiet")
def test_other_data_may_have_its_classes_in_another_order(
    run: Path, trained: tuple[Path, list[Metrics]], tmp_path: Path
) -> None:
    data = Path(shutil.copytree(trained[0] / "pets", tmp_path / "pets"))
    (data / "classes.txt").write_text("dog cat")
    own = "tests.unit.test_evaluate:reader"
    config = Config(data=str(data), format=own, imgsz=SIZE, cache_dir=str(trained[0] / "cache"))
    whole = read_manifest(str(data), own)
    make_cache(config, whole)
    found = evaluate_run(run, [f"data={data}", f"format={own}"])
    assert found.folder.name == "val-turned"
    straight = evaluate_run(run)
    assert found.report["metrics"] == straight.report["metrics"]
    assert found.details == straight.details


def test_labels_are_replaced_wherever_they_are() -> None:
    empty = torch.zeros(2, 4)
    truth = Truth((4, 4), empty, torch.tensor([0, 1]), torch.zeros(2).bool(), None, 0, 0, 1)

    class Some:
        info, steps = DataInfo("", "", ("a", "b"), 0, 2, 0, 8), 0

        def validation(self) -> Iterator[Batch]:
            yield Batch(torch.zeros(2, 3, 4, 4), torch.tensor([-1, 1]), np.arange(2), 2, None, [truth, truth])

        def train(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
            yield from ()

        def id_of(self, sample: int) -> str:
            return str(sample)

    [batch] = RelabelledData(Some(), (5, 3)).validation()
    assert batch.labels.tolist() == [-1, 3]
    assert batch.truths is not None
    assert batch.truths[1].labels.tolist() == [5, 3]


# ------------------------------------------------------------------------------------------ what it refuses


@pytest.mark.parametrize(
    ("overrides", "options", "message"),
    [
        (["lr=3"], {}, "lr: val takes split, weights, data"),
        (["batch=0"], {}, "batch = 0: must be at least 1"),
        (["batch=-1"], {}, "batch = -1: name the images"),
        (["metric=map"], {}, "unknown metric 'map'"),
        (["imgsz=many"], {}, "imgsz = many"),
        (["data=nowhere"], {}, "there is no file or folder nowhere"),
        (["scaling.workers=2", "scaling.address=127.0.0.1:1"], {}, "no Ray cluster answers at 127.0.0.1:1"),
        ([], {"split": "tset"}, "split = tset: did you mean test?"),
        ([], {"weights": "emma"}, "weights = emma: did you mean ema?"),
    ],
)  # fmt: skip
def test_wrong_input(run: Path, overrides: list[str], options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^[^\n]*{message.replace('?', '[?]')}"):
        evaluate_run(run, overrides, **options)
    assert not list((run / "val").iterdir() if (run / "val").exists() else [])


def test_a_split_without_images_tells_which_there_are(run: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path / "few", {"train/cat": 2, "train/dog": 1, "test/cat": 3})
    with pytest.raises(
        ConfigError, match=r"no val images; there are split=train \(3 images\), split=test \(3 images\)"
    ):
        evaluate_run(run, [f"data={tmp_path / 'few'}"])


def test_own_data_without_a_validation_set_have_the_part_held_back(tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "few", {"cat": 10, "dog": 10})
    config = Config(data=str(data), val_fraction=0.3)
    assert len(choose_subject(config, "val", True, ("cat", "dog")).keys) == 6
    assert len(choose_subject(config, "train", True, ("cat", "dog")).keys) == 14
    assert len(choose_subject(config, "train", False, ("cat", "dog")).keys) == 20
    with pytest.raises(ConfigError, match=r"split=val \(the part of train"):
        choose_subject(config, "test", True, ("cat", "dog"))


def test_classes_that_the_run_lacks_are_refused_by_name(tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "zoo", {"train/cat": 1, "train/emu": 1, "val/cat": 1})
    with pytest.raises(ConfigError, match="'emu' is not among them, and 'dog' of the run is missing"):
        choose_subject(Config(data=str(data)), "val", False, ("cat", "dog"))


def test_data_without_some_classes_of_the_run_will_do(tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "zoo", {"train/dog": 1, "train/emu": 1, "val/dog": 2})
    subject = choose_subject(Config(data=str(data)), "val", False, ("cat", "dog", "emu"))
    assert (subject.indices, subject.absent) == ((1, 2), ("cat",))


@pytest.mark.parametrize(("task", "message"), [("detect", "have no boxes"), ("segment", "have no boxes")])
def test_labels_of_another_task_are_refused(tmp_path: Path, task: str, message: str) -> None:
    data = write_pictures(tmp_path / "pets", {"train/cat": 1, "train/dog": 1, "val/dog": 1})
    with pytest.raises(ConfigError, match=message):
        choose_subject(Config.model_validate({"data": str(data), "task": task}), "val", False, ("cat", "dog"))


def test_what_is_no_run(run: Path, tmp_path: Path) -> None:
    for target, message in ((tmp_path / "gone", "no such folder"), (tmp_path, "is not the folder of a run")):
        with pytest.raises(ConfigError, match=message):
            open_trained(target)
    shutil.rmtree(run / "checkpoints" / BEST)
    assert open_trained(run).checkpoint.name == LAST
    shutil.rmtree(run / "checkpoints" / LAST)
    with pytest.raises(ConfigError, match="no checkpoint yet"):
        open_trained(run)


def test_a_damaged_checkpoint_is_not_evaluated(run: Path) -> None:
    weights = run / "checkpoints" / BEST / "model.safetensors"
    weights.unlink()  # it may be a link to that of the last one
    weights.write_bytes(b"damaged")
    with pytest.raises(ConfigError, match=r"differs from its manifest; try .*last"):
        open_trained(run)
    assert open_trained(run / "checkpoints" / LAST).epoch == 3


def test_a_checkpoint_that_is_being_replaced_is_found(run: Path) -> None:
    best = run / "checkpoints" / BEST
    best.rename(best.with_name(f".{BEST}.previous"))
    assert open_trained(run).checkpoint == best


def test_there_is_no_moving_average_where_there_was_none(run: Path) -> None:
    best = run / "checkpoints" / BEST
    manifest = json.loads((best / "manifest.json").read_text())
    del manifest["ema.safetensors"]
    (best / "manifest.json").write_text(json.dumps(manifest))
    assert not open_trained(run).has_ema("auto")
    with pytest.raises(ConfigError, match="without a moving average"):
        evaluate_run(run, weights="ema")


def test_what_fails_leaves_nothing_behind(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise LookupError("this model was never finished")

    monkeypatch.setattr(job, "evaluate", fail)
    with pytest.raises(RunError, match="the evaluation failed: LookupError: this model was never finished"):
        evaluate_run(run)
    assert not list((run / "val").iterdir())


def test_a_request_to_stop_ends_it_at_the_next_batch(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def stop(self: LocalRuntime) -> bool:
        seen.append(1)
        self.stop.set()
        return True

    monkeypatch.setattr(LocalRuntime, "interrupted", stop)
    with pytest.raises(KeyboardInterrupt):
        evaluate_run(run)
    assert len(seen) == 1
    assert not list((run / "val").iterdir())


def test_changed_data_are_told(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    summary = json.loads((run / "summary.json").read_text())
    summary["dataset"]["fingerprint"] = "0" * 64
    (run / "summary.json").write_text(json.dumps(summary))
    monkeypatch.setattr(evaluator, "plot_details", lambda *arguments: None)
    evaluate_run(run)
    assert "warning: the data have changed" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------- the screen


def test_of_many_classes_the_lowest_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"class": f"c{i}", "objects": 3, "map": None if i == 7 else i / 100} for i in range(100)]
    ValScreen().classes(rows, "map")
    told = capsys.readouterr().out.splitlines()
    assert told[0].split() == ["class", "objects", "map"]
    assert len(told) == SHOWN_CLASSES + 3
    assert [line.split()[0] for line in told[1:9]] == ["c0", "c1", "c2", "c3", "c4", "c5", "c6", "c8"]
    assert "40 lowest of 100 classes by map" in told[-2]


def test_what_was_not_measured_is_a_dash(capsys: pytest.CaptureFixture[str]) -> None:
    ValScreen().scores({"map50": 0.5, "map_small": None, "map": 0.25}, "map")
    assert capsys.readouterr().out.split() == ["map", "0.2500", "map50", "0.5000", "map_small", "-"]
