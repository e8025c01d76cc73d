"""The screen of a sweep, as a log file gets it and as a terminal does."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.sweeps.screen import TOP, SweepScreen, totals
from tests.sweep_overviews import overview, trial

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
FOLDER = "/data/" + "a_long_folder_name/" * 10 + "brave otter"
COMMAND = "mlflow ui --backend-store-uri sqlite:///mlflow.db"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (("TERM", "xterm-256color"), ("COLUMNS", "100"), ("LINES", "40")):
        monkeypatch.setenv(name, value)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Time stands still but for calls of this."""
    now = 0.0

    def advance(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr("orchestrator.sweeps.screen.time.monotonic", lambda: now)
    return advance


TRIALS = [
    trial(0, [0.5] * 9, by="default", status="finished"),
    trial(1, [0.4] * 3, status="stopped", because="asha", params={"lr": 0.01234567, "optimizer": "SGD"}),
    trial(2, [0.3, 0.9611], status="running"),
    trial(3, [], status="running", params={"lr": 0.5, "optimizer": "[b]Adam"}),
    trial(4, [], status="failed", because="no\nmemory"),
]


def summary(**more: Any) -> dict[str, Any]:
    return {
        "status": "finished",
        "stopped_because": "trials",
        "metric": {"name": "top1", "mode": "max", "best": 0.9611, "best_trial": 2, "best_epoch": 2},
        "trials": {"total": 5, "finished": 2, "stopped": 1, "failed": 2, "interrupted": 0},
        "epochs": {"spent": 14, "saved": 6, "full": 20},
        "seconds": {"total": 754.2},
    } | more


def plain(talk: Callable[[SweepScreen], None], **options: Any) -> list[str]:
    """The lines in a log file."""
    file = io.StringIO()
    with SweepScreen(file=file, **options) as screen:
        talk(screen)
    assert "\x1b" not in file.getvalue()
    return file.getvalue().splitlines()


def frames(text: str) -> list[list[str]]:
    """Each drawing of the table: its lines, without colours."""
    clean = ESCAPE.sub("", text).replace("\r", "")
    return [frame.splitlines()[1:] for frame in clean.split("trial  epoch")[1:]]


def test_a_log_file_gets_a_line_per_trial_and_no_table() -> None:
    made = overview(TRIALS)

    def talk(screen: SweepScreen) -> None:
        for _ in range(100):
            screen.update(made, {2: (3, 1, 10)}, 5.0)
        for number in (0, 1, 4):
            screen.ended(TRIALS[number], made)

    assert plain(talk) == [
        "trial 0  finished at epoch 9 of 9  top1 0.5000  best 0.9611 (trial 2)  lr=0.01 optimizer=SGD",
        "trial 1  stopped by asha at epoch 3 of 9  top1 0.4000  best 0.9611 (trial 2)  lr=0.01235 optimizer=SGD",
        "trial 4  failed at epoch 0 of 9: no memory  best 0.9611 (trial 2)  lr=0.01 optimizer=SGD",
    ]


def test_the_first_line_has_no_best() -> None:
    made = overview([TRIALS[4]])
    assert plain(lambda screen: screen.ended(TRIALS[4], made)) == [
        "trial 4  failed at epoch 0 of 9: no memory  lr=0.01 optimizer=SGD"
    ]


def test_totals_in_one_line() -> None:
    assert totals(overview(TRIALS), 120.0) == (
        "5 trials: 2 running, 1 failed, 1 stopped, 1 finished; epochs 14 spent, 6 saved; "
        "best 0.9611 by trial 2; 2 min 00 s left"
    )
    assert totals(overview([])) == "0 trials; epochs 0 spent, 0 saved"


def test_a_terminal_gets_a_table() -> None:
    file = Terminal()
    with SweepScreen(file=file) as screen:
        screen.update(overview(TRIALS), {2: (3, 4, 10), 3: (1, 12, 1000)}, 120.0)
        assert "\x1b[?25l" in file.getvalue()
        (frame,) = frames(file.getvalue())
    rows = [re.split(r"  +", line.strip()) for line in frame]
    assert rows[:4] == [
        ["2", "3/9", "4/10", "0.9611", "running", "lr=0.01 optimizer=SGD"],
        ["0", "9/9", "0.5000", "finished", "lr=0.01 optimizer=SGD"],
        ["1", "3/9", "0.4000", "stopped by asha", "lr=0.01235 optimizer=SGD"],
        ["3", "1/9", "12/1,000", "-", "running", "lr=0.5 optimizer=[b]Adam"],
    ]
    assert " ".join(frame[4:]) == totals(overview(TRIALS), 120.0)
    assert file.getvalue().endswith("\x1b[2K")  # The table is gone, and the cursor is back.
    assert file.getvalue().rindex("\x1b[?25h") > file.getvalue().rindex("\x1b[?25l")


def test_it_is_not_drawn_more_than_four_times_a_second(clock: Callable[[float], None]) -> None:
    file = Terminal()
    with SweepScreen(file=file) as screen:
        for _ in range(100):
            screen.update(overview(TRIALS), {}, None)
            clock(0.02)
        assert 4 <= len(frames(file.getvalue())) <= 8


def test_the_table_fits_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("LINES", "24")
    trials = [trial(i, [0.5], status="finished") for i in range(50)]
    trials += [trial(50 + i, [], status="running", params={"model": "a_long_name" * 20}) for i in range(50)]
    file = Terminal()
    with SweepScreen(file=file) as screen:
        screen.update(overview(trials), {}, 60.0)
        (frame,) = frames(file.getvalue())
    assert len(frame) < 24
    assert all(len(line) <= 60 for line in frame)
    assert sum("finished" in line for line in frame if "trials" not in line) == TOP
    shown = sum("running" in line for line in frame if "a_long" in line)
    assert shown > 0
    assert f"… {50 - shown} more running" in frame
    assert "0.5000" in frame[0]
    assert frame[-1].endswith("1 min 00 s left")


def test_on_a_terminal_only_failures_are_told_unless_verbose() -> None:
    for verbose in (False, True):
        file = Terminal()
        with SweepScreen(verbose, file) as screen:
            for number in (0, 4):
                screen.ended(TRIALS[number], overview(TRIALS))
        shown = ESCAPE.sub("", file.getvalue())
        assert "trial 4  failed" in shown
        assert ("trial 0  finished" in shown) == verbose


def test_the_result_has_the_commands_to_go_on() -> None:
    lines = plain(lambda screen: screen.finished(summary(), overview(TRIALS), FOLDER, COMMAND))
    assert lines == [
        "",
        "finished after 5 trials: all trials are done",
        "best      top1 0.9611 by trial 2 at epoch 2",
        "settings  lr=0.01 optimizer=SGD",
        "trials    2 finished, 1 stopped, 2 failed",
        "epochs    14 spent, 6 saved (30% of 20)",
        "time      12 min 34 s",
        f"sweep     {FOLDER}",
        f"report    {FOLDER}/report.html",
        "",
        "To train the winner:",
        f"orchestrator train '{FOLDER}/best.yaml'",
        "",
        "To see the sweep in MLflow:",
        COMMAND,
    ]


def test_a_sweep_without_a_value_has_no_winner_to_train() -> None:
    metric = {"name": "top1", "mode": "max", "best": None, "best_trial": None, "best_epoch": None}
    made = summary(metric=metric, status="failed", stopped_because=None)
    lines = plain(lambda screen: screen.finished(made, overview([]), FOLDER, COMMAND))
    assert lines[1:3] == ["failed after 5 trials", "best    no trial has a value of top1"]
    assert not any("best.yaml" in line for line in lines)


def test_the_last_table_stays_above_the_result() -> None:
    file = Terminal()
    with SweepScreen(file=file) as screen:
        screen.update(overview(TRIALS[2:3]), {2: (3, 4, 10)}, 5.0)
        screen.finished(summary(), overview(TRIALS), FOLDER, COMMAND)
    last = frames(file.getvalue())[-1]
    assert last[0].split()[:2] == ["2", "2/9"]
    assert any("finished after 5 trials" in line for line in last)
    assert COMMAND in last
    assert "\x1b[2K" not in file.getvalue().rpartition("mepoch\x1b")[2]  # Nothing is cleared after it.


def test_other_lines_go_above_the_table_and_waiting_takes_its_place() -> None:
    file = Terminal()
    with SweepScreen(file=file) as screen:
        screen.update(overview(TRIALS), {}, None)
        screen.warn("a [b]disk[/b] is full")
        screen.waiting("writing the report")
        screen.update(overview(TRIALS), {}, None)
    shown = ESCAPE.sub("", file.getvalue())
    assert "warning: a [b]disk[/b] is full\ntrial  epoch" in shown.replace("\r", "")
    assert "writing the report" in shown
    assert shown.rindex("trial  epoch") > shown.rindex("writing the report")
