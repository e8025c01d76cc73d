"""The screen, as a log file gets it and as a terminal does."""

import io
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.console import Screen, duration

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
COLOR = re.compile(r"\x1b\[[0-9;]*3[0-9;]*m")
PATH = "/data/" + "a_long_folder_name/" * 10 + "runs/brave-otter"
COMMAND = "mlflow ui --backend-store-uri sqlite:///" + PATH + "/mlflow.db"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Time stands still but for calls of this."""
    now = 0.0

    def advance(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr("orchestrator.console.time.monotonic", lambda: now)
    return advance


def row(epoch: int, top1: float | None = 0.5, **more: Any) -> dict[str, Any]:
    """A row as `fit` reports it."""
    return {
        "epoch": epoch,
        "step": epoch * 94,
        "train_loss": 1.25,
        "lr": 0.0005,
        "images_per_second": 1234.5,
        "data_wait_fraction": 0.02,
        "gpu_utilization": None,
        "gpu_memory_peak_bytes": 3 * 2**30,
        "val_loss": 1.5,
        "top1": top1,
        "top5": 0.75,
        "mean_class_accuracy": 0.4375,
        "seconds": 10.0,
        "details": {"confusion": [[1]]},
    } | more


def summary(**more: Any) -> dict[str, Any]:
    return {
        "status": "finished",
        "stopped_because": "patience",
        "epochs_completed": 120,
        "metric": {"name": "top1", "mode": "max", "best": 0.9321, "best_epoch": 70, "last": 0.9287},
        "seconds": {"total": 4321.0, "to_first_step": 8.1},
        "throughput": {"images_per_second": 1234.5, "data_wait_fraction": 0.02, "gpu_utilization": None},
    } | more


def progress(step: int, epoch: int = 1, steps: int = 100) -> dict[str, Any]:
    return {"epoch": epoch, "step": step, "steps": steps, "loss": 0.5, "images_per_second": 1234.5}


def tell(screen: Screen) -> None:
    """A whole run."""
    screen.waiting("starting [ray]")
    screen.building(0, 100)
    screen.building(50, 100)
    screen.building(100, 100)
    screen.decided({"data": "digits [bundled]: 10 classes", "run": PATH})
    screen.warn("class [/b] has no samples")
    screen.note("[bold]note[/bold] :smile:")
    for epoch in (1, 2):
        screen.progress(progress(50, epoch), 2)
        screen.epoch(row(epoch), 2, "top1", better=epoch == 1)
    screen.finished(summary(), PATH, COMMAND)


def plain(talk: Callable[[Screen], None], **options: Any) -> list[str]:
    """The lines in a log file."""
    file = io.StringIO()
    with Screen(file=file, **options) as screen:
        talk(screen)
    return file.getvalue().splitlines()


def terminal(talk: Callable[[Screen], None]) -> str:
    """Everything that a terminal gets."""
    file = Terminal()
    with Screen(file=file) as screen:
        talk(screen)
    return file.getvalue()


def test_a_log_file_gets_plain_lines() -> None:
    file = io.StringIO()
    with Screen(file=file) as screen:
        tell(screen)
    assert "\x1b" not in file.getvalue()
    assert "\r" not in file.getvalue()
    assert "━" not in file.getvalue()
    lines = file.getvalue().splitlines()
    assert "starting [ray] ..." in lines
    assert "data  digits [bundled]: 10 classes" in lines
    assert "warning: class [/b] has no samples" in lines
    assert "[bold]note[/bold] :smile:" in lines


def test_a_terminal_gets_bars_and_its_cursor_back() -> None:
    shown = terminal(tell)
    assert "━" in shown
    assert "starting [ray]" in shown
    assert "50/100  loss 0.5000  1,234 images/s" in ESCAPE.sub("", shown)
    assert COLOR.search(shown)
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l") > -1


def test_a_terminal_is_restored_after_an_exception() -> None:
    file = Terminal()

    def stop_in_the_middle() -> None:
        with Screen(file=file) as screen:
            screen.progress(progress(1), 2)
            assert "\x1b[?25l" in file.getvalue()
            assert "\x1b[?25h" not in file.getvalue()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop_in_the_middle()
    assert file.getvalue().rindex("\x1b[?25h") > file.getvalue().rindex("\x1b[?25l")


def test_both_get_the_same_lines() -> None:
    shown = [ESCAPE.sub("", line).rpartition("\r")[2] for line in terminal(tell).splitlines()]
    for line in plain(tell):
        if line and not line.startswith(("starting", "building")):
            assert line in shown


def test_paths_and_commands_stay_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert len(PATH) > 200
    for text in ("\n".join(plain(tell)), ESCAPE.sub("", terminal(tell))):
        assert f"run   {PATH}\n" in text
        assert f"\n{COMMAND}" in text


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b" not in terminal(tell)


def test_no_color_keeps_the_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    shown = terminal(tell)
    assert "━" in shown
    assert not COLOR.search(shown)


def test_forced_colors_bring_no_bars_into_a_log_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    shown = "\n".join(plain(tell))
    assert COLOR.search(shown)
    assert "━" not in shown
    assert "\x1b[?25l" not in shown


def test_a_stream_that_lacks_a_letter_does_not_end_the_run() -> None:
    bytes_ = io.BytesIO()
    stream = io.TextIOWrapper(bytes_, encoding="ascii")
    Screen(file=stream).note("Äpfel")
    stream.flush()
    assert bytes_.getvalue() == b"?pfel\n"


def test_the_cache_tells_its_quarters() -> None:
    def talk(screen: Screen) -> None:
        for done in range(0, 2001, 10):
            screen.building(done, 2000)

    assert plain(talk) == [
        "building the cache: 0 of 2,000 images (0 %)",
        "building the cache: 500 of 2,000 images (25 %)",
        "building the cache: 1,000 of 2,000 images (50 %)",
        "building the cache: 1,500 of 2,000 images (75 %)",
        "built the cache: 2,000 images",
    ]


def test_waiting_is_said_once() -> None:
    def talk(screen: Screen) -> None:
        screen.waiting("starting Ray")
        screen.note("a note")
        screen.waiting("starting Ray")

    assert plain(talk) == ["starting Ray ...", "a note"]


def test_a_slow_epoch_tells_every_ten_seconds(clock: Callable[[float], None]) -> None:
    def talk(screen: Screen) -> None:
        for step in range(1, 40):
            screen.progress(progress(step), 3)
            clock(1)

    lines = plain(talk)
    assert [line.partition("  loss")[0] for line in lines] == [
        "epoch 1/3  step 11/100",
        "epoch 1/3  step 21/100",
        "epoch 1/3  step 31/100",
    ]
    assert lines[0].endswith("loss 0.5000  1,234 images/s  1 min 29 s left, run 4 min 49 s")


def test_a_very_slow_epoch_tells_every_twentieth_of_it(clock: Callable[[float], None]) -> None:
    def talk(screen: Screen) -> None:
        for step in range(1, 1001):
            screen.progress(progress(step, steps=1000))
            clock(60)

    assert len(plain(talk)) == 20


def test_the_time_left_counts_from_where_an_epoch_was_resumed(clock: Callable[[float], None]) -> None:
    def talk(screen: Screen) -> None:
        screen.progress(progress(50))
        clock(20)
        screen.progress(progress(60))

    assert plain(talk)[0].endswith("  1 min 20 s left")


def test_the_time_left_of_the_run_goes_by_the_last_epoch(clock: Callable[[float], None]) -> None:
    def talk(screen: Screen) -> None:
        screen.epoch(row(1, seconds=3600.0), 10, "top1", better=True)
        screen.progress(progress(1, epoch=2))
        clock(20)
        screen.progress(progress(51, epoch=2))

    assert plain(talk)[-1].endswith("  20 s left, run 8 h 00 min")


def test_the_lines_of_the_epochs() -> None:
    def talk(screen: Screen) -> None:
        for epoch, top1, better in ((9, 0.5, True), (10, 0.4, False), (11, None, False), (12, float("nan"), False)):
            screen.epoch(row(epoch, top1), 300, "top1", better)

    assert plain(talk) == [
        "  epoch  train_loss    top1*  val_loss    top5  mean_class_accuracy        lr  images/s  seconds",
        "  9/300      1.2500  0.5000*    1.5000  0.7500               0.4375    0.0005     1,234     10.0",
        " 10/300      1.2500  0.4000     1.5000  0.7500               0.4375    0.0005     1,234     10.0",
        " 11/300      1.2500       -     1.5000  0.7500               0.4375    0.0005     1,234     10.0",
        " 12/300      1.2500     nan     1.5000  0.7500               0.4375    0.0005     1,234     10.0",
    ]


def test_the_primary_metric_comes_first() -> None:
    header = plain(lambda screen: screen.epoch(row(1), 3, "val_loss", better=True))[0].split()
    assert header[:4] == ["epoch", "train_loss", "val_loss*", "top1"]


def test_verbose_adds_the_devices() -> None:
    header, line = plain(lambda screen: screen.epoch(row(1), 3, "top1", better=True), verbose=True)
    assert header.endswith("data wait  GPU use  GiB on GPU")
    assert line.split()[-3:] == ["2%", "-", "3.0"]


def test_a_narrow_terminal_gets_fewer_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    shown = ESCAPE.sub("", terminal(lambda screen: screen.epoch(row(1), 300, "top1", better=True)))
    assert all(len(line) <= 50 for line in shown.splitlines())
    assert shown.splitlines()[0].split() == ["epoch", "train_loss", "top1*", "images/s", "seconds"]


def test_the_result() -> None:
    assert plain(lambda screen: screen.finished(summary(), "runs/otter", "mlflow ui")) == [
        "",
        "finished after 120 epochs: top1 has not improved for 50 epochs",
        "best   top1 0.9321 at epoch 70, 0.9287 at the end",
        "time   1 h 12 min, 8.1 s of it to the first step",
        "speed  1,234 images/s, 2% data wait",
        "run    runs/otter",
        "",
        "To see the run in MLflow:",
        "mlflow ui",
    ]


def test_the_last_value_is_told_where_it_is_not_the_best() -> None:
    best = summary(metric={"name": "top1", "mode": "max", "best": 0.9, "best_epoch": 120, "last": 0.9})
    assert "best   top1 0.9000 at epoch 120" in plain(lambda screen: screen.finished(best, "runs/otter", "mlflow ui"))


def test_the_result_of_a_run_without_an_epoch() -> None:
    nothing = summary(
        status="interrupted",
        stopped_because="interruption",
        epochs_completed=0,
        metric={"name": "top1", "mode": "max", "best": None, "best_epoch": None, "last": None},
        seconds={"total": 3.0, "to_first_step": None},
        throughput={"images_per_second": None, "data_wait_fraction": None},
    )
    assert plain(lambda screen: screen.finished(nothing, "runs/otter", "mlflow ui"))[1:5] == [
        "interrupted after 0 epochs: interrupted",
        "best  no epoch was finished",
        "time  3.0 s",
        "run   runs/otter",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (125, "2 min 05 s"),
        (3599.9, "1 h 00 min"),
        (4321, "1 h 12 min"),
        (100 * 3600, "4 d 4 h"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_importing_it_is_light() -> None:
    code = "import sys, orchestrator.console; print({'torch', 'ray', 'numpy', 'mlflow'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
