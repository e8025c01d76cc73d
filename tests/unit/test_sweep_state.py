"""The state of a sweep: what is journalled is what a later driver knows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.sweeps.combinations import Space
from orchestrator.sweeps.domains import Grid, Uniform
from orchestrator.sweeps.journal import Journal, read_journal
from orchestrator.sweeps.schedulers import Asha
from orchestrator.sweeps.searchers import SEARCHERS
from orchestrator.sweeps.state import Limits, Plan, State

SPACE = Space({"lr": Uniform(0.0, 1.0)})
EPOCHS = 9


def plan(samples: int | None = 6, seconds: float | None = None, epochs: int | None = None, most: int = EPOCHS) -> Plan:
    return Plan(
        metric="top1",
        mode="max",
        max_epochs=most,
        limits=Limits(samples, seconds, epochs),
        searcher=SEARCHERS["random"](SPACE, 0, "max"),
        scheduler=Asha(most, 1, 3, "max"),
        scheduler_name="asha",
        searcher_name="random",
        starts=[("default", {"lr": 0.5})],
    )


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with closing(Journal(tmp_path / "journal.jsonl")) as journal:
        journal.append("sweep", format_version=1, id="x", name="s")
        journal.append("session")
        yield journal


def started(journal: Journal, made: Plan | None = None) -> State:
    return State(made or plan(), journal)


def row(epoch: int, value: float | None) -> dict[str, Any]:
    return {"epoch": epoch, "top1": value, "train_loss": 1.0}


def run(state: State, quality: dict[int, float], until: int = EPOCHS) -> None:
    """Run what is left to try, one after the other; the metric of a trial grows by epoch towards its quality."""
    while (trial := state.next(lambda number: f"{number:04d}")) is not None:
        for epoch in range(trial.epochs + 1, until + 1):
            if state.epoch(trial.number, row(epoch, quality[trial.number] * epoch)):
                break
        else:
            state.end(trial.number, "finished", "epochs")


def replayed(path: Path, made: Plan | None = None) -> State:
    state = State(made or plan())
    state.replay(read_journal(path), lambda changes: plan(**changes))
    return state


QUALITY = {0: 0.5, 1: 0.4, 2: 0.3, 3: 0.6, 4: 0.1, 5: 0.2}


def test_a_sweep_tries_the_defaults_then_asks_and_ends(journal: Journal) -> None:
    state = started(journal)
    run(state, QUALITY)
    assert state.over == "samples"
    assert state.trials[0].params == {"lr": 0.5}
    assert [trial.by for trial in state.trials.values()] == ["default", *["random"] * 5]
    statuses = [trial.status for trial in state.trials.values()]
    assert statuses == ["finished", "finished", "stopped", "finished", "stopped", "stopped"]
    stops = [(d.trial, d.rung) for d in state.decisions if d.stop]
    assert stops == [(2, 1), (4, 1), (5, 1)]
    assert state.trials[2].because == "asha"


def test_a_later_driver_knows_all_of_it(journal: Journal, tmp_path: Path) -> None:
    state = started(journal)
    run(state, QUALITY)
    again = replayed(tmp_path / "journal.jsonl")
    assert again.trials == state.trials
    assert again.decisions == state.decisions
    assert again.folders == state.folders
    assert again.over == "samples"
    assert vars(again.plan.scheduler) == vars(state.plan.scheduler)


@pytest.mark.parametrize("cut", range(2, 40))
def test_after_a_kill_anywhere_the_sweep_comes_to_the_same_end(tmp_path: Path, cut: int) -> None:
    """No trial is lost, none is tried twice, no epoch is counted twice."""
    whole = tmp_path / "whole.jsonl"
    with closing(Journal(whole)) as journal:
        journal.append("sweep", format_version=1, id="x", name="s")
        journal.append("session")
        undisturbed = started(journal)
        run(undisturbed, QUALITY)
    lines = whole.read_bytes().splitlines(keepends=True)
    path = tmp_path / "killed.jsonl"
    path.write_bytes(b"".join(lines[:cut]) + lines[min(cut, len(lines) - 1)][:17])
    state = replayed(path)
    with closing(Journal(path)) as journal:
        state.journal = journal
        journal.append("session")
        run(state, QUALITY)
    assert [(t.params, t.status, t.rows) for t in state.trials.values()] == [
        (t.params, t.status, t.rows) for t in undisturbed.trials.values()
    ]
    assert state.decisions == undisturbed.decisions
    assert replayed(path).trials == state.trials


def test_who_ended_before_a_kill_is_known_and_nobody_else(journal: Journal, tmp_path: Path) -> None:
    state = started(journal)
    for _ in range(3):
        assert state.next(str)
    state.end(0, "finished", "epochs")
    state.record("closed")
    state.record("session")
    state.end(1, "failed", "x")
    assert replayed(tmp_path / "journal.jsonl").unclosed == {1}
    state.record("closed")
    assert replayed(tmp_path / "journal.jsonl").unclosed == set()


def test_an_epoch_that_is_told_again_is_counted_once(journal: Journal) -> None:
    state = started(journal)
    trial = state.next(str)
    assert trial
    state.epoch(0, row(1, 0.5))
    state.epoch(0, row(2, 0.6))
    assert not state.epoch(0, row(1, 0.5))
    assert not state.epoch(0, row(2, 0.6))
    assert state.trials[0].epochs == 2
    assert state.epochs_spent == 2


def test_epochs_without_a_validation_are_not_judged(journal: Journal) -> None:
    state = started(journal)
    assert state.next(str)
    assert not state.epoch(0, row(1, None))
    assert not state.epoch(0, row(2, float("nan")))
    assert state.decisions == []
    state.epoch(0, row(3, 0.3))
    assert [(d.epoch, d.rung) for d in state.decisions] == [(3, 3)]


def test_budgets_end_it(journal: Journal) -> None:
    state = started(journal, plan(samples=None, epochs=4))
    assert state.next(str)
    for epoch in range(1, 5):
        assert state.over == ""
        state.epoch(0, row(epoch, 0.1))
    assert state.over == "budget"
    assert started(journal, plan(seconds=0.0)).over == "budget"


def test_the_time_of_earlier_sessions_counts_and_the_time_between_does_not(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    times = [("sweep", 9), ("session", 9), ("decided", 69), ("session", 1000), ("decided", 1030)]
    lines = [{"kind": k, "time": t, "format_version": 1, "settings": {}} for k, t in times]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert 90 <= replayed(path).seconds < 95


def test_what_failed_alike_three_times_is_the_reason(journal: Journal) -> None:
    state = started(journal)
    for number in range(3):
        assert state.common_failure == ""
        assert state.next(str)
        state.end(number, "failed", "KeyError: 'x'")
    assert state.common_failure == "KeyError: 'x'"


@pytest.mark.parametrize("change", ["another reason", "a result"])
def test_failures_that_differ_or_follow_a_result_are_no_common_reason(journal: Journal, change: str) -> None:
    state = started(journal)
    for number in range(3):
        assert state.next(str)
        if change == "a result" and number == 0:
            state.epoch(0, row(1, 0.5))
        state.end(number, "failed", f"reason {number if change == 'another reason' else 0}")
    assert state.common_failure == ""
    assert state.over == "", "the others are still tried"


def test_more_samples(journal: Journal, tmp_path: Path) -> None:
    state = started(journal)
    run(state, QUALITY)
    state.extend({"samples": 8}, plan(samples=8))
    assert not state.waiting
    run(state, QUALITY | {6: 0.9, 7: 0.05})
    assert len(state.trials) == 8
    assert state.trials[6].status == "finished"
    assert state.trials[7].status == "stopped"
    again = replayed(tmp_path / "journal.jsonl")
    assert again.trials == state.trials
    assert again.decisions == state.decisions


def test_more_epochs_let_the_best_of_each_rung_go_on(journal: Journal, tmp_path: Path) -> None:
    quality = {0: 0.1, 1: 0.2, 2: 0.05, 3: 0.9, 4: 0.8, 5: 0.3}
    state = started(journal)
    run(state, quality)
    assert [t.status for t in state.trials.values()] == [
        "finished", "finished", "stopped", "finished", "finished", "stopped"
    ]  # fmt: skip
    state.extend({"most": 18}, plan(most=18))
    assert list(state.waiting) == [3, 4], "two of the six at epoch 1; the others are behind them there, or at epoch 3"
    run(state, quality, until=18)
    assert {n: t.epochs for n, t in state.trials.items()} == {0: 9, 1: 9, 2: 1, 3: 18, 4: 18, 5: 1}
    assert state.trials[3].epochs == 18
    assert replayed(tmp_path / "journal.jsonl").trials == state.trials


def test_interrupted_trials_go_on_first(journal: Journal, tmp_path: Path) -> None:
    state = started(journal)
    for _ in range(2):
        assert state.next(str)
    state.epoch(0, row(1, 0.5))
    state.end(0, "interrupted", "user")
    again = replayed(tmp_path / "journal.jsonl")
    again.journal = journal
    first, second = again.next(str), again.next(str)
    assert first
    assert second
    assert (first.number, second.number) == (0, 1)
    assert first.epochs == 1


def test_a_grid_is_known_to_be_finished_and_none_of_it_is_skipped(journal: Journal, tmp_path: Path) -> None:
    def grid(**changes: Any) -> Plan:
        space = Space({"lr": Grid((0.1, 0.2, 0.3))})
        made = replace(plan(samples=None), searcher=SEARCHERS["grid"](space, 0, "max"), starts=[])
        return replace(made, **changes)

    quality = {0: 0.1, 1: 0.2, 2: 0.3}
    state = started(journal, grid())
    assert state.next(str)
    state.end(0, "interrupted", "user")
    again = State(grid())
    again.replay(read_journal(tmp_path / "journal.jsonl"), lambda changes: grid())
    assert not again.all_started
    again.journal = journal
    run(again, quality)
    assert [trial.params["lr"] for trial in again.trials.values()] == [0.1, 0.2, 0.3]
    third = State(grid())
    third.replay(read_journal(tmp_path / "journal.jsonl"), lambda changes: grid())
    assert third.over == "samples"


def test_a_journal_has_one_writer(tmp_path: Path) -> None:
    with closing(Journal(tmp_path / "j")), pytest.raises(BlockingIOError):
        Journal(tmp_path / "j")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "not the journal"),
        ('{"kind": "trial"}\n', "not the journal"),
        ("[1]\n", "not the journal"),
        ('{"kind": "sweep", "format_version": 99}\n', "newer"),
        ('{"kind": "sweep", "format_version": 1}\n{broken\n{"kind": "session"}\n', "damaged"),
    ],
)
def test_a_file_that_is_no_journal_is_told(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "j").write_text(text)
    with pytest.raises(ValueError, match=told):
        read_journal(tmp_path / "j")
