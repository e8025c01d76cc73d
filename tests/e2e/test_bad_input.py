"""What a user can get wrong: exit code 2, one message that says what, where and what to do, and nothing written.

Most cases call the command's `main` in this process, which saves seconds for each; a few type the real command.
"""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from orchestrator import cli
from orchestrator.launch import cpu_count
from tests.colours import write_colours
from tests.e2e.shell import Finished, Shell
from tests.layouts import yolo

GOOD = "data: colours\nmodel: resnet18\nimgsz: 32\nepochs: 1\n"


BOXES = "data: boxes\ntask: detect\nimgsz: 64\n"


@dataclass(frozen=True)
class Bad:
    """The text of bad.yaml, further arguments, and what the message must hold."""

    config: str
    told: tuple[str, ...]
    arguments: tuple[str, ...] = ()
    file: str = "bad.yaml"


def bad(line: str, *told: str) -> Bad:
    """A good config with one more line, its fifth, and a message that points there."""
    return Bad(GOOD + line + "\n", ("bad.yaml:5", *told))


CPUS = cpu_count()

CASES = {
    # the file
    "missing file": Bad("", ("cannot read nothing.yaml", "No such file"), file="nothing.yaml"),
    "file is a folder": Bad("", ("cannot read colours", "directory"), file="colours"),
    "invalid yaml": Bad("data: [colours\nmodel: resnet18\n", ("bad.yaml:2", "invalid YAML")),
    "tab": Bad("scaling:\n\tworkers: 1\n", ("bad.yaml:2", "invalid YAML")),
    "not a mapping": Bad("- data\n- model\n", ("bad.yaml", "must hold keys and values")),
    "empty file": Bad("", ("data is missing", "digits")),
    "not text": Bad("data: \udcff\n", ("bad.yaml", "UTF-8")),
    "newer format": Bad(GOOD + "format_version: 99\n", ("bad.yaml", "format_version 99")),
    # keys
    "unknown key": bad("epoch: 3", "unknown key 'epoch'", "did you mean 'epochs'"),
    "unknown nested key": bad("scaling: {worker: 2}", "'scaling.worker'", "did you mean 'scaling.workers'"),
    "key of a group": bad("workers: 2", "'workers'", "did you mean 'scaling.workers'"),
    "key that resembles nothing": bad("zzz: 1", "unknown key 'zzz'", "orchestrator train --help"),
    "duplicate key": bad("imgsz: 64", "imgsz is set twice", "bad.yaml:3"),
    "number as a key": bad("7: 2", "7"),
    # values
    "wrong type": bad("batch: many", "batch = many", "integer"),
    "number for text": bad("name: 7", "name = 7", "string"),
    "text for a switch": bad("record_samples: perhaps", "record_samples = perhaps", "boolean"),
    "group as a value": bad("scaling: 2", "scaling"),
    "negative lr": bad("lr: -0.1", "lr = -0.1", "greater than 0"),
    "lr that is no number": bad("lr: .nan", "lr = nan", "finite"),
    "no epochs": Bad("data: colours\nepochs: 0\n", ("bad.yaml:2", "epochs = 0", "greater than or equal to 1")),
    "lrf above one": bad("lrf: 2", "lrf = 2", "less than or equal to 1"),
    "no batch": bad("batch: 0", "batch = 0", "at least 1"),
    "unknown optimizer": bad("optimizer: adamw", "optimizer = adamw", "did you mean 'AdamW'"),
    "name with a slash": bad("name: a/b", "name = a/b"),
    "no workers": bad("scaling: {workers: 0}", "scaling.workers = 0", "at least 1"),
    "too many workers": bad(
        "scaling: {workers: 1000}",
        "scaling.workers = 1000",
        f"this machine has {CPUS} CPU",
        f"set scaling.workers to {CPUS} or less",
    ),
    "workers in one process": Bad(GOOD, ("scaling.workers = 2", "--local"), ("scaling.workers=2", "--local")),
    # not available yet
    "elastic workers": bad("scaling: {workers: [1, 4]}", "scaling.workers", "not available yet"),
    "storage in the cloud": bad("storage: s3://bucket/runs", "storage", "not available yet"),
    # how the data are read and kept
    "unknown format": bad("format: coko", "format = coko", "did you mean coco"),
    "no such reader": bad("format: mine:read", "there is no module 'mine'"),
    "another format": Bad(GOOD + "format: coco", ("bad.yaml:1", "has no COCO JSON", "looked for")),
    "reader that fails": bad("format: reader:fails", "format = reader:fails", "KeyError", "reader.py:2"),
    "no fraction": bad("fraction: 0", "fraction = 0", "greater than 0"),
    "quota without a number": bad("cache_quota: much", "cache_quota = much", "50GB"),
    "unknown cache": bad("cache: disc", "cache = disc", "disk"),
    "unknown labels": bad("exif_labels: rotated", "exif_labels = rotated", "upright"),
    "data without classes": Bad("data: boxes\n", ("bad.yaml:1", "have boxes but no class", "task: detect")),
    "label beyond the classes": Bad("data: beyond\n", ("bad.yaml:1", "labels/train/0.txt:1: class 7 is not one of")),
    "no bucket": Bad("data: s3://\n", ("bad.yaml:1", "names no bucket")),
    # the model and its metric
    "unknown model": Bad("data: colours\nmodel: resnet81\n", ("bad.yaml:2", "'resnet81'", "did you mean resnet18")),
    "model that resembles nothing": Bad("data: colours\nmodel: zzz\n", ("bad.yaml:2", "'zzz'", "choose one of")),
    "no such module": Bad("data: colours\nmodel: mine:net\n", ("bad.yaml:2", "no module 'mine'")),
    "no such function": Bad("data: colours\nmodel: tests.tiny:net\n", ("bad.yaml:2", "tests.tiny", "'net'")),
    "images too small": Bad(
        "data: colours\nmodel: inception_v3\nimgsz: 32\n", ("bad.yaml:3", "inception_v3", "imgsz=32")
    ),
    "unknown metric": bad("metric: mAP", "metric", "'mAP'", "top1"),
    "metric with a typo": bad("metric: top_1", "'top_1'", "did you mean top1"),
    "masks of boxes": Bad("data: plain\ntask: segment\nimgsz: 64\n", ("bad.yaml:1", "no masks", "set task to detect")),
    "boxes of classes": Bad(
        BOXES.replace("data: boxes", "data: colours"), ("bad.yaml:1", "no boxes", "task: classify")
    ),
    "classifier as a detector": Bad(BOXES + "model: resnet18\n", ("bad.yaml:4", "resnet18", "classify")),
    "detector as a classifier": Bad("data: colours\nmodel: fcos_resnet50_fpn\n", ("bad.yaml:2", "fcos", "detect")),
    "metric of another task": Bad(BOXES + "metric: top1\n", ("bad.yaml:4", "'top1'", "map")),
    "frozen pattern that nothing has": bad("freeze: [layer9.*]", "freeze", "layer9.*", "layer4"),
    "more stages than there are": bad("freeze: 99", "freeze", "99", "5"),
    "nothing left to train": bad("freeze: ['*']", "freeze"),
    "weights of another architecture": bad(
        "pretrained: other.safetensors", "pretrained", "other.safetensors", "resnet18"
    ),
    "timm's unknown model": Bad("data: colours\nmodel: timm/resnet81\n", ("bad.yaml:2", "resnet81", "did you mean")),
    "batch below the workers": Bad(
        "data: colours\nbatch: 1\nscaling: {workers: 2}\nimgsz: 32\n", ("batch = 1 is global", "set batch to 2 or more")
    ),
    "patience without validation": bad("val_interval: 0", "patience = 50", "set val_interval to 1 or more"),
    "negative lrf": bad("lrf: -0.1", "lrf = -0.1", "greater than or equal to 0"),
    "unknown schedule": bad("schedule: cosin", "schedule = cosin", "did you mean 'cosine'"),
    "memory without a number": bad("memory: much", "memory = much", "6GB"),
    "no such weights": bad("pretrained: weights.pth", "there is no file weights.pth"),
    "weights that are none": bad("pretrained: text.txt", "text.txt", "not a readable file of weights"),
    # the data
    "no data": Bad("model: resnet18\n", ("data is missing",)),
    "no such folder": Bad("data: colors\n", ("bad.yaml:1", "there is no file or folder colors", "looked for")),
    "file for a folder": Bad("data: text.txt\n", ("bad.yaml:1", "text.txt", "no known format")),
    "empty folder": Bad("data: empty\n", ("bad.yaml:1", "no known format", "class folders")),
    "no images at all": Bad("data: hollow\n", ("bad.yaml:1", "no known format", "imagefolder")),
    "one class only": Bad("data: single\n", ("bad.yaml:1", "one class only", "blue")),
    "class without images": Bad("data: gap\n", ("bad.yaml:1", "class folders without images", "red")),
    "class in val only": Bad("data: surplus\n", ("bad.yaml:1", "yellow", "lack")),
    # where things go
    "storage below a file": bad("storage: text.txt/runs", "storage", "text.txt is a file"),
    "storage not writable": bad("storage: /proc/runs", "/proc/runs", "not writable"),
    "password in an address": bad(
        "tracking: {uri: 'http://me:s3cret@host'}", "tracking.uri", "password", "MLFLOW_TRACKING_PASSWORD"
    ),
    # derivation and overrides
    "no such base": bad("base: other.yaml", "cannot read other.yaml"),
    "base of a base": Bad("base: derived.yaml\n", ("derived.yaml:1", "one level only")),
    "base that is no path": bad("base: 3", "base = 3", "path"),
    "problem in the base": Bad("base: wrong.yaml\n", ("wrong.yaml:2", "lr = -1")),
    "override without a value": Bad(GOOD, ("'epochs'", "key=value"), ("epochs",)),
    "override without a key": Bad(GOOD, ("'=3'", "key=value"), ("=3",)),
    "unknown key in an override": Bad(GOOD, ("command line: epoch=3", "did you mean 'epochs'"), ("epoch=3",)),
    "bad value in an override": Bad(GOOD, ("command line: lr=-1", "greater than 0"), ("lr=-1",)),
    "override below a value": Bad(GOOD, ("lr = {'first': 1}", "number"), ("lr.first=1",)),
    # several at once, in the order of the file
    "several problems": Bad(
        "data: colors\nmodel: resnet81\nlr: -1\nepoch: 3\n",
        ("4 problems", "bad.yaml:1", "bad.yaml:2", "bad.yaml:3", "bad.yaml:4"),
    ),
}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data sets, good and bad, and other files that the cases name."""
    folder = tmp_path_factory.mktemp("here")
    write_colours(folder / "colours")
    (folder / "reader.py").write_text("def fails(location):\n    return {}['missing']\n")
    yolo(folder / "boxes")
    yolo(folder / "beyond")
    yolo(folder / "plain")
    for labels in (folder / "plain" / "labels").rglob("*.txt"):
        labels.write_text("0 0.5 0.5 0.2 0.2\n")
    (folder / "beyond" / "labels" / "train" / "0.txt").write_text("7 0.5 0.5 0.2 0.2")
    write_colours(folder / "single", {"train": (3, 0, 0)})
    write_colours(folder / "gap", {"train": (3, 3, 0)})
    write_colours(folder / "surplus")
    for made in ("empty", "hollow/train/blue", "hollow/train/red", "gap/train/red", "surplus/val/yellow"):
        (folder / made).mkdir(parents=True)
    shutil.copy(folder / "colours" / "val" / "blue" / "0.png", folder / "surplus" / "val" / "yellow")
    (folder / "text.txt").write_text("not a folder, nor weights")
    save_file({f"encoder.block{i}.weight": torch.zeros(7, 3) for i in range(9)}, folder / "other.safetensors")
    (folder / "derived.yaml").write_text("base: good.yaml\n")
    (folder / "good.yaml").write_text(GOOD)
    (folder / "wrong.yaml").write_text("data: colours\nlr: -1\n")
    return folder


@pytest.fixture
def inside(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That folder as the current one, with the cache below it and no cluster."""
    monkeypatch.chdir(here)
    monkeypatch.setenv("ORCHESTRATOR_CACHE", str(here / "cache"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(sys, "path", sys.path[:])
    return here


@contextmanager
def unchanged(folder: Path) -> Iterator[None]:
    before = sorted(folder.rglob("*"))
    yield
    assert sorted(folder.rglob("*")) == before


def call(*arguments: str) -> Finished:
    """The console script in this process."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["orchestrator", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
    return Finished(int(end.value.code or 0), out.getvalue(), err.getvalue())


def check_message(done: Finished, told: tuple[str, ...]) -> None:
    assert done.code == 2, done
    assert done.err.startswith("orchestrator: ")
    assert done.err.count("orchestrator: ") == 1
    assert "Traceback" not in done.err + done.out
    assert "pydantic" not in done.err
    for part in told:
        assert part in done.err


@pytest.mark.parametrize("name", CASES)
def test_bad_input(inside: Path, name: str) -> None:
    case = CASES[name]
    config = inside / "bad.yaml"
    config.write_bytes(case.config.encode(errors="surrogateescape"))
    with unchanged(inside):
        done = call("train", case.file, *case.arguments)
    check_message(done, case.told)
    assert "s3cret" not in done.err + done.out


SPACE = GOOD + "tune:\n  space:\n    "


TUNE_CASES = {
    "unknown key in the space": Bad(SPACE + "lrr: [1, 2]\n", ("bad.yaml:7", "tune.space.lrr", "did you mean lr")),
    "unknown domain": Bad(SPACE + "lr: {loguniformly: [1, 2]}\n", ("bad.yaml:7", "did you mean loguniform")),
    "empty choice": Bad(SPACE + "lr: []\n", ("bad.yaml:7", "tune.space.lr")),
    "reversed range": Bad(SPACE + "lr: {uniform: [1, 0.1]}\n", ("bad.yaml:7", "tune.space.lr")),
    "log range through zero": Bad(SPACE + "lr: {loguniform: [0, 1]}\n", ("bad.yaml:7", "tune.space.lr")),
    "end that the key refuses": Bad(SPACE + "lrf: {uniform: [0, 2]}\n", ("bad.yaml:7", "2", "less than or equal to 1")),
    "key that is locked": Bad(SPACE + "data: [a, b]\n", ("bad.yaml:7", "tune.space.data", "different data")),
    "cached key with a range": Bad(SPACE + "imgsz: {int: [32, 64]}\n", ("bad.yaml:7", "choice or grid")),
    "batch above the data": Bad(SPACE + "batch: [8, 5000]\n", ("bad.yaml:7", "5000", "training images")),
    "model that is none": Bad(SPACE + "model: [resnet18, resnet81]\n", ("bad.yaml:7", "resnet81", "resnet18")),
    "unknown searcher": Bad(GOOD + "tune: {searcher: optune}\n", ("bad.yaml:5", "did you mean optuna")),
    "unknown scheduler": Bad(GOOD + "tune: {scheduler: ahsa}\n", ("bad.yaml:5", "did you mean asha")),
    "grid over a range": Bad(
        GOOD + "tune: {searcher: grid, space: {lr: {uniform: [0.1, 1]}}}\n", ("bad.yaml:5", "grid", "lr")
    ),
    "metric that the task lacks": bad("metric: map50", "'map50'", "top1"),
    "sweep without validation": Bad(GOOD + "patience: 0\nval_interval: 0\n", ("bad.yaml:6", "val_interval = 0")),
    "start outside the space": Bad(
        SPACE + "lr: [1, 2]\n  start_from: [{momentum: 0.5}]\n", ("bad.yaml:8", "momentum", "tune.space")
    ),
    "start from no sweep": Bad(GOOD + "tune: {start_from: [colours]}\n", ("bad.yaml:5", "colours", "not the folder")),
    "more CPUs than there are": Bad(GOOD + "tune: {cpus: 999}\n", ("bad.yaml:5", "999 CPUs", "room for 0")),
    "more workers than there are": Bad(GOOD + "scaling: {workers: 999}\n", ("bad.yaml:5", "999 workers", "room for")),
    "GPUs that are not there": Bad(GOOD + "tune: {gpus: 4}\n", ("bad.yaml:5", "4 GPUs", "room for 0")),
    "part of a GPU that Ray cannot give": Bad(GOOD + "tune: {gpus: 0.6}\n", ("bad.yaml:5", "half, third")),
}


@pytest.mark.parametrize("name", TUNE_CASES)
def test_bad_input_of_a_sweep(inside: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = TUNE_CASES[name]
    monkeypatch.setattr(cli, "connect_early", lambda *arguments, **options: None)  # Ray starts beside the checks
    (inside / "bad.yaml").write_text(case.config)
    with unchanged(inside):
        done = call("tune", case.file, *case.arguments)
    check_message(done, case.told)


def test_a_sweep_that_exists_is_not_begun_again(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "connect_early", lambda *arguments, **options: None)
    taken = inside / "sweeps" / "colours" / "mine"
    taken.mkdir(parents=True)
    (inside / "bad.yaml").write_text(GOOD + "storage: sweeps\nname: mine\nbatch: 8\n")
    done = call("tune", "bad.yaml")
    check_message(done, ("bad.yaml:6", "exists already", "orchestrator resume"))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("resume", "sweep", "epochs=3"), ("epochs=3", "keeps its settings")),
        (("extend", "sweep"), ("samples=+20",)),
        (("extend", "sweep", "lr=3"), ("lr=3", "samples")),
        (("extend", "sweep", "samples=many"), ("samples=many", "+20 or 2x")),
        (("extend", "sweep", "samples=3"), ("samples = 4 already",)),
        (("extend", "sweep", "hours=+1"), ("no limit of hours",)),
        (("resume", "sweep"), ("journal.jsonl", "not the journal of a sweep")),
    ],
)
def test_a_sweep_that_cannot_go_on(inside: Path, arguments: tuple[str, ...], told: tuple[str, ...]) -> None:
    folder = inside / "sweep"
    folder.mkdir(exist_ok=True)
    (folder / "journal.jsonl").write_text("")
    (folder / "sweep.yaml").write_text(GOOD + "tune: {samples: 4}\n")
    with unchanged(inside):
        done = call(*arguments)
    check_message(done, told)


def test_several_problems_come_in_the_order_of_the_file(inside: Path) -> None:
    (inside / "bad.yaml").write_text("data: colors\nmodel: resnet81\nlr: -1\nepoch: 3\n")
    done = call("train", "bad.yaml", "batch=0")
    places = [line.split(": ")[0].strip() for line in done.err.splitlines()[1:]]
    assert places == ["bad.yaml:1", "bad.yaml:2", "bad.yaml:3", "bad.yaml:4", "command line"]
    assert "5 problems" in done.err.splitlines()[0]


OWN_MODELS = {
    "syntax error": ("def net(num_classes)\n", "SyntaxError"),
    "missing import": ("import nowhere_to_be_found\n", "nowhere_to_be_found"),
    "no argument": ("def net():\n    pass\n", "num_classes"),
    "not a module": ("def net(num_classes):\n    return 3\n", "int"),
    "builder fails": ("def net(num_classes):\n    return [][num_classes]\n", "list index out of range"),
    "forward fails": (
        "from torch import nn\nclass net(nn.Module):\n"
        "    def __init__(self, num_classes):\n        super().__init__()\n"
        "    def forward(self, images):\n        return self.missing(images)\n",
        "missing",
    ),
    "wrong output": (
        "from torch import nn\ndef net(num_classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 5))\n",
        "(2, 5)",
    ),
}


@pytest.mark.parametrize("name", OWN_MODELS)
def test_a_users_model_that_cannot_work(inside: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found before anything starts."""
    code, told = OWN_MODELS[name]
    module = f"own_{name.replace(' ', '_')}"
    (inside / f"{module}.py").write_text(code)
    (inside / "bad.yaml").write_text(f"data: colours\nmodel: {module}:net\nimgsz: 32\n")
    with unchanged(inside):
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        done = call("train", "bad.yaml")
    check_message(done, ("bad.yaml:2", module, told))


REAL = ("unknown key", "too many workers", "no such folder", "several problems")


@pytest.mark.parametrize("name", REAL)
def test_the_real_command(here: Path, environment: dict[str, str], name: str) -> None:
    """Nothing is printed twice, no process of Ray is left, no file is written."""
    case = CASES[name]
    shell = Shell(here, environment | {"ORCHESTRATOR_CACHE": str(here / "cache")})
    (here / "bad.yaml").write_text(case.config)
    with unchanged(here):
        done = shell.run("train", "bad.yaml", *case.arguments)
    check_message(done, case.told)


RESUMED = {
    "no such folder": (("nowhere",), ("nowhere", "not the folder of a run")),
    "folder of something else": (("colours",), ("colours", "not the folder of a run")),
    "other settings": (("run", "epochs=5"), ("epochs=5", "scaling")),
    "finished run": (("run",), ("run is finished after 3 epochs", "nothing to resume")),
}


@pytest.mark.parametrize("name", RESUMED)
def test_what_cannot_be_resumed(inside: Path, name: str) -> None:
    (inside / "run").mkdir(exist_ok=True)
    (inside / "run" / "summary.json").write_text('{"status": "finished", "epochs_completed": 3}')
    arguments, told = RESUMED[name]
    with unchanged(inside):
        done = call("resume", *arguments)
    check_message(done, told)
